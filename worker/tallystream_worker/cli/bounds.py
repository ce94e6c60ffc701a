"""The sentences about what a figure does not cover, for the commands that print figures."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tallystream.reading.freshness import RangeFigure
    from tallystream.reading.reach import UnreachablePartition


def bounds_note(figure: RangeFigure) -> str:
    """Return a text on why a figure is incomplete, or `""`. Unreachable partitions are left to `reach_notes`.

    If no partition is unreachable, and the error of the figure is not known, the text states that a leaderboard lacks
    subjects. Otherwise it names the times that are missing, and the time at which the figure begins.
    """
    if figure.error is None and not figure.unreachable:
        return "incomplete: top was added to a metric with events, and lacks subjects; run: tallystream rebuild"
    if figure.complete or figure.start is None or (figure.unreachable and not figure.missing):
        return ""
    missing = " and ".join(f"{utc(span.start)} to {utc(span.end)}" for span in figure.missing)
    return f"incomplete: buckets of {missing} have expired, or lack events; the figures begin at {utc(figure.start)}"


def reach_notes(unreachable: Sequence[UnreachablePartition]) -> list[str]:
    """Return one text for each node that does not answer, with the streams that the figures lack because of it.

    The streams that no node serves have one text, too.
    """
    by_node: dict[str | None, list[str]] = {}
    for each in unreachable:
        by_node.setdefault(each.node, []).append(each.stream)
    return [
        f"incomplete: {f'node {node} does not answer' if node else 'no node serves these streams'}, "
        f"so the figures lack {', '.join(streams)}"
        for node, streams in by_node.items()
    ]


def utc(second: int) -> str:
    """Return a second since 1970 as a text in UTC, rounded down to the minute: `2026-11-01 12:00 UTC`."""
    return dt.datetime.fromtimestamp(second, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
