"""Stream IDs as pairs of numbers that compare as Redis orders them."""

from __future__ import annotations

StreamID = tuple[int, int]
"""Milliseconds since 1970, and a sequence within that millisecond."""


def parse_id(text: str) -> StreamID:
    """Return a stream ID as two comparable numbers.

    Raises:
        ValueError: it is not of the form `1763900000000-0`.
    """
    milliseconds, separator, sequence = text.partition("-")
    numbers = (milliseconds, sequence) if separator else (milliseconds, "0")
    if not all(part.isascii() and part.isdigit() and len(part) <= 20 for part in numbers):  # noqa: PLR2004  # digits of 2^64
        raise ValueError("a stream ID is of the form 1763900000000-0")
    return int(numbers[0]), int(numbers[1])


def before(stream_id: StreamID) -> StreamID:
    """Return the largest ID below this one; `0-0` has none and returns itself."""
    milliseconds, sequence = stream_id
    if sequence > 0:
        return milliseconds, sequence - 1
    return (milliseconds - 1, 2**64 - 1) if milliseconds > 0 else (0, 0)
