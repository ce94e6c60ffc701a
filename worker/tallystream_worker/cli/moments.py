"""Moments as the command line takes and prints them."""

from __future__ import annotations

from datetime import UTC, datetime

from tallystream.errors import ConfigurationError


def parse_moment(option: str, text: str | None, default: float = 0.0) -> float:
    """Return the second of a moment that an option names, `default` if it was not given.

    Raises:
        ConfigurationError: it cannot be read.
    """
    if text is None:
        return default
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(
            f"{option}: must be like 2026-11-01, 2026-11-01T12:00Z or seconds since 1970, not {text!r}"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def format_moment(second: float) -> str:
    """Return a moment in UTC, to the second."""
    return datetime.fromtimestamp(second, UTC).isoformat(" ", "seconds")
