"""Parses the moments that the command line takes."""

from __future__ import annotations

from datetime import UTC, datetime

from tallystream.errors import ConfigurationError
from tallystream.wire.event import MAX_AT


def parse_moment(option: str, text: str | None, default: float = 0.0) -> float:
    """Return the value of an option that is a moment, in seconds since 1970.

    Args:
        option: The name of the option with `--`, for the error message.
        text: Seconds since 1970, or an ISO date or time; a time without a zone is in UTC. A text that is a number is
            seconds, so a date needs its hyphens: `20261101` is a second of the year 1970.
        default: Returned if `text` is `None`.

    Raises:
        ConfigurationError: the text is neither, or the moment is not between the years 1970 and 9999.
    """
    if text is None:
        return default
    second = _seconds(text)
    if second is None:
        raise ConfigurationError(
            f"{option}: must be like 2026-11-01, 2026-11-01T12:00Z or seconds since 1970, not {text!r}"
        )
    if not 0 <= second < MAX_AT:
        raise ConfigurationError(f"{option}: must lie between the years 1970 and 9999, not at {text!r}")
    return second


def _seconds(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
