"""Reads of windows: a series of buckets, and sums over ranges such as the last 7 days."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import EventError
from tallystream.reading.query import Answer, Command, Query, combined, raise_on_error
from tallystream.reading.totals import floored
from tallystream.rules.windows import Bucket, bucket, cover, seconds
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_text
from tallystream.wire.position import CountingPosition, parse_position, position_commands
from tallystream.wire.window import MINUTE, WINDOWS, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout

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
    position: CountingPosition


@dataclass(frozen=True)
class Rolling:
    """The sum over a range; `start` and `end` are the bounds of the buckets that cover it, `buckets` how many."""

    value: int
    start: int
    end: int
    buckets: int
    position: CountingPosition


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

    def parse(found: _Found) -> Series:
        values = [floored(rules, metric, value) for value in found.values]
        points = [Point(each.label, each.start, value) for each, value in zip(buckets, values, strict=True)]
        return Series(points, found.position)

    return _query_buckets(layout, rules, subject, metric, [(name, each) for each in buckets], parse)


def query_rolling(layout: Layout, rules: Rules, subject: str, metric: str, over: str, now: float) -> Query[Rolling]:
    """Ask for the sum over a duration that ends at second `now`, from the fewest buckets that cover it.

    Raises:
        EventError: a duration that cannot be read or is too long, or a metric without windows.
    """
    covering = rolling_buckets(rules, metric, over, now)

    def parse(found: _Found) -> Rolling:
        start, end = covering[0][1].start, covering[-1][1].end
        return Rolling(floored(rules, metric, sum(found.values)), start, end, len(covering), found.position)

    return _query_buckets(layout, rules, subject, metric, covering, parse)


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


@dataclass(frozen=True)
class _Found:
    values: list[int]
    position: CountingPosition


def _query_buckets(
    layout: Layout,
    rules: Rules,
    subject: str,
    metric: str,
    buckets: Sequence[tuple[str, Bucket]],
    parse: Callable[[_Found], Answer],
) -> Query[Answer]:
    """Ask for what a subject has in each of some buckets, in all partitions that hold it."""
    normal = check_text("subject", subject, MAX_SUBJECT_BYTES)
    holding = [layout.keys[number] for number in layout.holding(normal, spread=rules.metric[metric].spread)]
    commands: list[Command] = []
    for keys in holding:
        commands += position_commands(keys)
        commands += [("HGET", keys.window(window, metric, each.label), normal) for window, each in buckets]
    stride = 2 + len(buckets)

    def read(replies: list[Any]) -> Answer:
        values, positions = [0] * len(buckets), []
        for number, keys in enumerate(holding):
            positions.append(parse_position(replies[stride * number : stride * number + 2], keys.group))
            for nth, reply in enumerate(replies[stride * number + 2 : stride * (number + 1)]):
                values[nth] += int(raise_on_error(reply) or 0)
        return parse(_Found(values, combined(positions)))

    return Query(commands, read)
