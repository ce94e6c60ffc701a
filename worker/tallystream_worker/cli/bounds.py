"""The sentence about what a figure over a range does not cover, for the commands that print such figures."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tallystream.reading.freshness import RangeFigure


def bounds_note(figure: RangeFigure) -> str:
    """Return a sentence on what a figure lacks: subjects, or expired buckets, and the second from which on it counts.

    `""` if nothing of this is known to be missing.
    """
    if figure.error is None:
        return "incomplete: top was added to a metric with events, and lacks subjects; run: tallystream rebuild"
    if figure.complete or figure.start is None:
        return ""
    missing = " and ".join(f"{utc(span.start)} to {utc(span.end)}" for span in figure.missing)
    return f"incomplete: buckets of {missing} have expired, or lack events; the figures begin at {utc(figure.start)}"


def utc(second: int) -> str:
    """Return a second since 1970 as a text in UTC, to the minute."""
    return dt.datetime.fromtimestamp(second, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
