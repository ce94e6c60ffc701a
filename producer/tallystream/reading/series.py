"""Queries for windows: a series of buckets, and sums over ranges such as the last 7 days."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypedDict

import msgspec

from tallystream.errors import EventError
from tallystream.reading.counters import NOTHING, floored, query_counters
from tallystream.reading.freshness import Freshness, Gap, RangeFigure, freshness
from tallystream.reading.query import Answer, Command, Query, raise_on_error
from tallystream.rules.parts import SKETCHES
from tallystream.rules.windows import Bucket, bucket, cover, seconds
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_text
from tallystream.wire.position import parse_position, position_commands
from tallystream.wire.window import MINUTE, WINDOWS, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout

MAX_POINTS: Final = 1000
"""The most buckets that one series may have."""

MAX_RANGE: Final = 4000 * 86_400
"""The longest range of a rolling sum, in seconds."""


class Point(msgspec.Struct, frozen=True):
    """One bucket of a series.

    Attributes:
        bucket: The label of the bucket, such as `2026-05-06T07` for an hour.
        start: The second (since 1970) at which the bucket begins.
        value: The sum in the bucket, but at least the metric's `floor`; `null` if the bucket has expired or was
            removed, or may lack events because it began before a change of the rules, such as a new window, or in the
            hour after it.
    """

    bucket: str
    start: int
    value: int | None


class Series(RangeFigure, frozen=True):
    """The latest buckets of a counter; `error` is how much may be missing from all of them together.

    Attributes:
        subject: The subject, in its normal form.
        metric: The metric.
        window: The window.
        series: The buckets, oldest first, also those that are not kept (their value is `null`); one that is kept and
            has no event has the value 0, or the metric's `floor` if that is above 0.
    """

    subject: str
    metric: str
    window: str
    series: list[Point]


class RollingSum(RangeFigure, frozen=True):
    """The sum of a counter from `start` to `end`, which are bounds of buckets; at most `error` may be missing from it.

    Attributes:
        subject: The subject, in its normal form.
        metric: The metric.
        over: The duration that was asked for.
        value: The sum, but at least the metric's `floor`.
        buckets: The number of buckets that were added up; 0 if none is kept.
    """

    subject: str
    metric: str
    over: str
    value: int
    buckets: int


class Bounds(TypedDict):
    """The fields of a `RangeFigure` that state its bounds, as keyword arguments."""

    start: int | None
    end: int | None
    complete: bool
    missing: list[Gap]


@dataclass(frozen=True)
class Covered:
    """The buckets that a figure over a range is read from.

    Attributes:
        buckets: The buckets that are kept, oldest first and without gaps, each with its window; none if all are gone.
        asked: The first second of the range that was asked for, moved down to a bound of a bucket.
        end: The first second after the range, moved up to a bound of a bucket.
    """

    buckets: Sequence[tuple[str, Bucket]]
    asked: int
    end: int

    @property
    def bounds(self) -> Bounds:
        """The bounds of the figure, and the part of the range before them that is not kept.

        `start` is that of the first kept bucket, or `end` if none is kept. `missing` has at most one gap, from `asked`
        to `start`; `complete` is whether it has none.
        """
        start = self.buckets[0][1].start if self.buckets else self.end
        missing = [Gap(self.asked, start)] if start > self.asked else []
        return {"start": start, "end": self.end, "complete": not missing, "missing": missing}


def query_series(
    layout: Layout,
    rules: Rules,
    subject: str,
    metric: str,
    window: str,
    last: int,
    now: float,
    removed: Mapping[str, int] = NOTHING,
) -> Query[Series]:
    """Return a query for the last `last` buckets of a window, up to the bucket that contains second `now` (since 1970).

    Buckets that have expired, were removed or may lack events (see `Point.value`) are in the answer too, with the value
    `None`. `removed` is that of the deployment: see `tallystream.deployment.Deployment`.

    Raises:
        EventError: the metric is not declared or does not have this window, `last` is not 1 to 1,000, or the subject is
            not valid.
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
    since = _open_since(rules, metric, {name: name}, now, removed).get(name, buckets[0].start)
    expired, kept = [b for b in buckets if b.start < since], [b for b in buckets if b.start >= since]
    covered = Covered([(name, each) for each in kept], buckets[0].start, buckets[-1].end)

    def show(values: list[int], fresh: Freshness) -> Series:
        points = [Point(each.label, each.start, None) for each in expired]
        points += [Point(b.label, b.start, floored(rules, metric, v)) for b, v in zip(kept, values, strict=True)]
        return Series(normal, metric, window, points, **covered.bounds, **fresh)

    return _query_buckets(layout, rules, normal, metric, covered.buckets, show, removed)


def query_rolling(
    layout: Layout,
    rules: Rules,
    subject: str,
    metric: str,
    over: str,
    now: float,
    removed: Mapping[str, int] = NOTHING,
) -> Query[RollingSum]:
    """Return a query for a subject's sum over a duration that ends at second `now`, from few buckets.

    The sum is that of the whole buckets that cover the duration. So it may begin earlier than the duration, and end
    later: `start` and `end` of the answer state its bounds. If fine buckets at the beginning are not kept, coarser ones
    replace them; if these are not kept, either, it begins later, and `complete` is false.

    Args:
        layout: The partitions.
        rules: The declared metrics.
        subject: The subject.
        metric: The metric.
        over: The duration: a number and a unit, `s`, `m`, `h` or `d`, such as `90m` or `7d`.
        now: The current time, in seconds since 1970.
        removed: That of the deployment: see `tallystream.deployment.Deployment`. Without it, buckets that were removed
            or lack events are added up like others: the sum may be too small, although `complete` is true.

    Raises:
        EventError: the duration is not valid, longer than 4,000 days, or needs more than 1,000 buckets; the metric is
            not declared or has no windows; or the subject is not valid.
    """
    covered = rolling_buckets(rules, metric, over, now, removed)
    normal = check_text("subject", subject, MAX_SUBJECT_BYTES)

    def show(values: list[int], fresh: Freshness) -> RollingSum:
        value = floored(rules, metric, sum(values))
        return RollingSum(normal, metric, over, value, len(covered.buckets), **covered.bounds, **fresh)

    return _query_buckets(layout, rules, normal, metric, covered.buckets, show, removed)


def current_bucket(
    rules: Rules, metric: str, window: str, now: float, kind: str, removed: Mapping[str, int]
) -> Covered:
    """Return the bounds of the window's bucket at second `now`, and the bucket itself if it is kept.

    It is not kept if it begins before the time in `removed` for its kind and metric. Then `buckets` of the result is
    empty. It is not checked that the metric is declared, or has the window.

    Args:
        rules: The declared metrics.
        metric: The metric.
        window: The window.
        now: The current time, in seconds since 1970.
        kind: The kind of the bucket in `removed`: the window, or `unique` for a bucket of unique actors.
        removed: That of the deployment: see `tallystream.deployment.Deployment`.
    """
    current = bucket(window, int(now) // MINUTE, rules.zone)
    is_kept = current.start >= removed.get(f"{kind}:{metric}", 0)
    return Covered([(window, current)] if is_kept else [], current.start, current.end)


def rolling_buckets(
    rules: Rules,
    metric: str,
    over: str,
    now: float,
    removed: Mapping[str, int] = NOTHING,
    unique: Window | None = None,
) -> Covered:
    """Return kept buckets that cover a duration that ends at second `now`.

    They are whole buckets, so the cover may begin before the duration, and end after it. If fine buckets have expired
    or were removed, coarser ones replace them. If no kept bucket has the beginning of the duration, the cover begins
    later, or is empty.

    Args:
        rules: The declared metrics.
        metric: The metric.
        over: The duration, such as `7d`.
        now: The current time, in seconds since 1970.
        removed: That of the deployment: see `tallystream.deployment.Deployment`. Without it, buckets that were removed
            or lack events count as kept.
        unique: The window of unique actors whose buckets are read; `None` for the windows of the metric. It is not
            checked that the metric has this window.

    Raises:
        EventError: the duration is not valid, longer than 4,000 days, or needs more than 1,000 buckets; the metric is
            not declared; or `unique` is `None`, and the metric has no windows.
    """
    rules.refuse_undeclared(metric)
    rule = rules.metric[metric]
    kinds = {each: each for each in rule.windows} if unique is None else {unique: "unique"}
    windows = list(kinds)
    if not windows:
        raise EventError("metric", f"{metric} has no windows: declare windows in [metric.{metric}]")
    try:
        length = seconds(over)
    except ValueError as error:
        raise EventError("over", str(error)) from None
    if length is None or length > MAX_RANGE:
        raise EventError("over", "must be at most 4000d")
    begin, end = int(now) - length + 1, int(now) + 1
    since = _open_since(rules, metric, kinds, now, removed)
    # Stop at one bucket more than the limit: a long range of minutes would have millions.
    covering = cover(begin, end, windows, rules.zone, since, MAX_POINTS)
    finest = next(window for window in WINDOWS if window in windows)
    if len(covering) > MAX_POINTS:
        raise EventError("over", f"would read more than {MAX_POINTS:,} {finest} buckets: ask for a shorter range")
    asked = bucket(finest, begin // MINUTE, rules.zone).start
    if not covering or covering[0][1].start > now:  # all buckets up to the present were removed
        return Covered([], asked, bucket(finest, int(now) // MINUTE, rules.zone).end)
    start = covering[0][1].start
    return Covered(covering, start if start <= begin else asked, covering[-1][1].end)


def _open_since(
    rules: Rules, metric: str, kinds: Mapping[Window, str], now: float, removed: Mapping[str, int]
) -> dict[str, int]:
    """Return, by window, the second (since 1970) at which its oldest bucket begins that has not expired and is whole.

    Buckets that begin before the time in `removed` were removed, or may lack events. If that is so for all buckets up
    to `now`, the next one is the oldest. `kinds` has, by window, its kind in the keys of `removed`: the window, or
    `unique`. Windows whose buckets are all kept are left out.
    """
    since = rules.metric[metric].open_since(kinds, now, rules.zone)
    for window, kind in kinds.items():
        if end := removed.get(f"{kind}:{metric}"):
            end = min(end, int(now) + 1)  # every later end leaves out all buckets up to the present
            first = bucket(window, end // MINUTE, rules.zone)
            begin = end if first.start == end else first.end
            since[window] = max(since.get(window, begin), begin)
    return since


def declared_window(rules: Rules, metric: str, window: str) -> Window:
    """Return `window` as the name of a window that the metric has.

    Raises:
        EventError: the metric is not declared, or does not have this window; the error then names its windows.
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
    removed: Mapping[str, int],
) -> Query[Answer]:
    """Return a query for the values of a subject in `buckets`, summed over the reachable partitions that may have it.

    `show` makes the answer from the values, in the order of `buckets`, and their freshness; without `buckets`, it gets
    an empty list. If the subject may be counted in a sketch, which has no buckets, its total is read first; if it has
    an estimated part, the whole total becomes the `error` of the answer, else the error is 0. The metric must be
    declared, and the subject in normal form.
    """
    numbers = layout.reached_among(layout.holding(subject, spread=rules.metric[metric].spread))
    holding = [layout.keys[number] for number in numbers]
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

    if rules.metric[metric].max_subjects is None and f"{SKETCHES}:{metric}" not in removed:
        return after(0)
    # A subject beyond the quota has no buckets, so its whole total may be missing from them: that is the error.
    total = query_counters(layout, [(subject, metric)], rules, removed)
    return total.then(lambda reading: after(sum(reading.values.values()) if reading.errors else 0))
