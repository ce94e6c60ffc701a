"""Stream IDs as pairs of numbers, which compare in the order of Redis."""

from __future__ import annotations

StreamID = tuple[int, int]
"""A stream ID: milliseconds since 1970, and a sequence number within that millisecond."""


def parse_id(text: str) -> StreamID:
    """Return the two numbers of a stream ID; a missing sequence number is 0.

    Raises:
        ValueError: `text` has neither the form `1763900000000-0` nor `1763900000000`.
    """
    milliseconds, separator, sequence = text.partition("-")
    numbers = (milliseconds, sequence) if separator else (milliseconds, "0")
    if not all(part.isascii() and part.isdigit() and len(part) <= 20 for part in numbers):  # noqa: PLR2004  # digits of 2^64
        raise ValueError("a stream ID must have the form 1763900000000-0")
    return int(numbers[0]), int(numbers[1])


def id_text(stream_id: StreamID) -> str:
    """Return the text of a stream ID, such as `1763900000000-0`, which `parse_id` reads."""
    return f"{stream_id[0]}-{stream_id[1]}"


def before(stream_id: StreamID) -> StreamID:
    """Return the largest stream ID below `stream_id`; for `0-0`, which is the smallest, return `0-0`."""
    milliseconds, sequence = stream_id
    if sequence > 0:
        return milliseconds, sequence - 1
    return (milliseconds - 1, 2**64 - 1) if milliseconds > 0 else (0, 0)


def after(stream_id: StreamID) -> StreamID:
    """Return the smallest stream ID above `stream_id`."""
    milliseconds, sequence = stream_id
    return (milliseconds, sequence + 1) if sequence < 2**64 - 1 else (milliseconds + 1, 0)
