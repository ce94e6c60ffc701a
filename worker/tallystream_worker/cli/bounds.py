"""The sentence about what a figure over a range does not cover, for the commands that print such figures."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tallystream.reading.freshness import RangeFigure


def bounds_note(figure: RangeFigure) -> str:
    """Return a text on why a figure is incomplete, `""` if it is not.

    If `error` of the figure is `None`, the text states that its leaderboard lacks subjects. Otherwise it names the
    times that are missing, and the time at which the figure begins; a figure of all time lacks none.
    """
    if figure.error is None:
        return "incomplete: top was added to a metric with events, and lacks subjects; run: tallystream rebuild"
    if figure.complete or figure.start is None:
        return ""
    missing = " and ".join(f"{utc(span.start)} to {utc(span.end)}" for span in figure.missing)
    return f"incomplete: buckets of {missing} have expired, or lack events; the figures begin at {utc(figure.start)}"


def utc(second: int) -> str:
    """Return a second since 1970 as a text in UTC, rounded down to the minute: `2026-11-01 12:00 UTC`."""
    return dt.datetime.fromtimestamp(second, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
