"""Formats a moment for messages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_LATEST: Final = 253_402_300_799.0
"""The last second that a date can have: a stream ID may be later."""


def format_moment(second: float, *, has_milliseconds: bool = False) -> str:
    """Return a moment in seconds since 1970 as text in UTC, rounded down to seconds: `2026-11-01 12:00:00+00:00`.

    With `has_milliseconds`, it is rounded down to milliseconds: `2026-11-01 12:00:00.000+00:00`. For a moment after the
    year 9999, return the last second of that year.
    """
    moment = datetime.fromtimestamp(min(second, _LATEST), UTC)
    return moment.isoformat(" ", "milliseconds" if has_milliseconds else "seconds")
