"""Formats a moment for messages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_LATEST: Final = 253_402_300_799.0
"""The last second that a date can have: a stream ID may be later."""


def format_moment(second: float) -> str:
    """Return a moment in seconds since 1970 as text in UTC, rounded down to seconds: `2026-11-01 12:00:00+00:00`.

    A moment after the year 9999 is the last second of that year.
    """
    return datetime.fromtimestamp(min(second, _LATEST), UTC).isoformat(" ", "seconds")
