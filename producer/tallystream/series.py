"""Reads of windows: a series of buckets, and sums over ranges such as the last 7 days."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import EventError
from tallystream.event import MAX_SUBJECT_BYTES, check_text
from tallystream.keys import partition_of
from tallystream.position import Position, parse_position, position_commands
from tallystream.query import Command, Query, sound
from tallystream.totals import floored
from tallystream.windows import MINUTE, WINDOWS, Bucket, Window, bucket, cover, seconds

if TYPE_CHECKING:
    from tallystream.keys import Layout, PartitionKeys
    from tallystream.rules import Rules

MAX_POINTS: Final = 1000
"""The most buckets that one series may have."""

MAX_RANGE: Final = 4000 * 86_400
"""The longest range of a rolling sum, in seconds."""


@dataclass(frozen=True)
class Point:
    """The sum of one bucket, which begins at second `start`."""

    label: str
    start: int
    value: int


@dataclass(frozen=True)
class Series:
    """The latest buckets of a window, oldest first; those without an event, or expired, are 0."""

    points: list[Point]
    position: Position


@dataclass(frozen=True)
class Rolling:
    """The sum over a range; `start` and `end` are the bounds of the buckets that cover it, `buckets` how many."""

    value: int
    start: int
    end: int
    buckets: int
    position: Position


def query_series(
    layout: Layout, rules: Rules, subject: str, metric: str, window: str, last: int, now: float
) -> Query[Series]:
    """Ask for the latest buckets of a window, up to the one in which second `now` lies.

    Raises:
        EventError: a window that the metric does not have, or too many buckets.
    """
    name = declared_window(rules, metric, window)
    if not 1 <= last <= MAX_POINTS:
        raise EventError("last", f"must be 1 to {MAX_POINTS:,} buckets, not {last:,}")
    buckets: list[Bucket] = []
    at = int(now)
    while len(buckets) < last and at >= 0:
        buckets.append(bucket(name, at // MINUTE, rules.zone))
        at = buckets[-1].start - 1
    buckets.reverse()
    subject, keys = _home(layout, subject)
    commands = [
        *position_commands(keys),
        *(("HGET", keys.window(name, metric, each.label), subject) for each in buckets),
    ]

    def parse(replies: list[Any]) -> Series:
        values = [floored(rules, metric, int(sound(reply) or 0)) for reply in replies[2:]]
        points = [Point(each.label, each.start, value) for each, value in zip(buckets, values, strict=True)]
        return Series(points, parse_position(replies[:2], keys.group))

    return Query(commands, parse)


def query_rolling(layout: Layout, rules: Rules, subject: str, metric: str, over: str, now: float) -> Query[Rolling]:
    """Ask for the sum over a duration that ends at second `now`, from the fewest buckets that cover it.

    Raises:
        EventError: a duration that cannot be read or is too long, or a metric without windows.
    """
    subject, keys = _home(layout, subject)
    covering = rolling_buckets(rules, metric, over, now)
    by_window: dict[str, list[Bucket]] = defaultdict(list)
    for window, each in covering:
        by_window[window].append(each)
    commands: list[Command] = [
        *position_commands(keys),
        *(("HGET", keys.window(window, metric, each.label), subject) for window, each in covering),
    ]

    def parse(replies: list[Any]) -> Rolling:
        value = sum(int(sound(reply) or 0) for reply in replies[2:])
        start, end = covering[0][1].start, covering[-1][1].end
        return Rolling(
            floored(rules, metric, value), start, end, len(covering), parse_position(replies[:2], keys.group)
        )

    return Query(commands, parse)


def rolling_buckets(rules: Rules, metric: str, over: str, now: float) -> list[tuple[str, Bucket]]:
    """Return the fewest buckets that cover a duration which ends at second `now`, each with its window."""
    rules.refuse_undeclared(metric)
    windows = rules.metric[metric].windows
    if not windows:
        raise EventError("metric", f"{metric} has no windows: declare windows in [metric.{metric}]")
    try:
        length = seconds(over)
    except ValueError as error:
        raise EventError("over", str(error)) from None
    if length is None or length > MAX_RANGE:
        raise EventError("over", "must be at most 4000d")
    # One more than the limit is enough to refuse: a long range of minutes would be millions.
    covering = list(islice(cover(int(now) - length + 1, int(now) + 1, windows, rules.zone), MAX_POINTS + 1))
    if len(covering) > MAX_POINTS:
        finest = next(window for window in WINDOWS if window in windows)
        raise EventError("over", f"would read more than {MAX_POINTS:,} {finest} buckets: ask for a shorter range")
    return covering


def declared_window(rules: Rules, metric: str, window: str) -> Window:
    """Return a window's name, checked: the metric must have it.

    Raises:
        EventError: it has not; names those that it has.
    """
    rules.refuse_undeclared(metric)
    declared = rules.metric[metric].windows
    for name in declared:
        if name == window:
            return name
    kept = ", ".join(declared) or "none"
    raise EventError("window", f"{window[:32]!r} is not kept for {metric}; kept are: {kept}")


def _home(layout: Layout, subject: str) -> tuple[str, PartitionKeys]:
    normal = check_text("subject", subject, MAX_SUBJECT_BYTES)
    return normal, layout.keys[partition_of(normal, layout.partitions)]
