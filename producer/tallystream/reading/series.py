"""Reads of windows: a series of buckets, and sums over ranges such as the last 7 days."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tallystream.errors import EventError
from tallystream.reading.counters import floored, query_counters
from tallystream.reading.freshness import Figure, Freshness, freshness
from tallystream.reading.query import Answer, Command, Query, raise_on_error
from tallystream.rules.windows import Bucket, bucket, cover, seconds
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_text
from tallystream.wire.position import parse_position, position_commands
from tallystream.wire.window import MINUTE, WINDOWS, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout

MAX_POINTS: Final = 1000
"""The most buckets that one series may have."""

MAX_RANGE: Final = 4000 * 86_400
"""The longest range of a rolling sum, in seconds."""


class Point(msgspec.Struct, frozen=True):
    """One bucket of a series; it begins at second `start`."""

    bucket: str
    start: int
    value: int


class Series(Figure, frozen=True):
    """The latest buckets of a counter, oldest first; those without an event, or expired, are 0.

    `error` is how much may be missing from them in all.
    """

    subject: str
    metric: str
    window: str
    series: list[Point]


class RollingSum(Figure, frozen=True):
    """A counter's sum over whole buckets, from second `start` to `end`; `error` is how much may be missing."""

    subject: str
    metric: str
    over: str
    value: int
    start: int
    end: int
    buckets: int


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

    normal = check_text("subject", subject, MAX_SUBJECT_BYTES)

    def show(values: list[int], fresh: Freshness) -> Series:
        shown = [floored(rules, metric, value) for value in values]
        points = [Point(each.label, each.start, value) for each, value in zip(buckets, shown, strict=True)]
        return Series(normal, metric, window, points, **fresh)

    return _query_buckets(layout, rules, normal, metric, [(name, each) for each in buckets], show)


def query_rolling(layout: Layout, rules: Rules, subject: str, metric: str, over: str, now: float) -> Query[RollingSum]:
    """Ask for the sum over a duration that ends at second `now`, from the fewest buckets that cover it.

    Raises:
        EventError: a duration that cannot be read or is too long, or a metric without windows.
    """
    covering = rolling_buckets(rules, metric, over, now)

    normal = check_text("subject", subject, MAX_SUBJECT_BYTES)
    start, end = covering[0][1].start, covering[-1][1].end

    def show(values: list[int], fresh: Freshness) -> RollingSum:
        value = floored(rules, metric, sum(values))
        return RollingSum(normal, metric, over, value, start, end, len(covering), **fresh)

    return _query_buckets(layout, rules, normal, metric, covering, show)


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
    raise EventError("window", f"{window[:32]!r} is not a window of {metric}; its windows are: {kept}")


def _query_buckets(
    layout: Layout,
    rules: Rules,
    subject: str,
    metric: str,
    buckets: Sequence[tuple[str, Bucket]],
    show: Callable[[list[int], Freshness], Answer],
) -> Query[Answer]:
    """Ask for what a subject has in each of some buckets, in all partitions that hold it."""
    holding = [layout.keys[number] for number in layout.holding(subject, spread=rules.metric[metric].spread)]
    commands: list[Command] = []
    for keys in holding:
        commands += position_commands(keys)
        commands += [("HGET", keys.window(window, metric, each.label), subject) for window, each in buckets]
    stride = 2 + len(buckets)

    def after(missing: int) -> Query[Answer]:
        def parse(replies: list[Any]) -> Answer:
            values, positions = [0] * len(buckets), []
            for number, keys in enumerate(holding):
                positions.append(parse_position(replies[stride * number : stride * number + 2], keys.group))
                for nth, reply in enumerate(replies[stride * number + 2 : stride * (number + 1)]):
                    values[nth] += int(raise_on_error(reply) or 0)
            return show(values, freshness(positions, missing))

        return Query(commands, parse)

    if rules.metric[metric].max_subjects is None:
        return after(0)
    # A subject beyond the quota has no buckets: all that was counted for it may be missing from them.
    total = query_counters(layout, [(subject, metric)], rules)
    return total.then(lambda reading: after(reading.values[subject, metric] if reading.errors else 0))
