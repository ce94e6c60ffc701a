"""Queries for counters: the totals of subjects by metric, and their ratios."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from tallystream.reading.freshness import Figure, as_of, freshness, lag_of
from tallystream.reading.query import Command, Query, raise_on_error
from tallystream.reading.reach import UnreachablePartition  # noqa: TC001  # msgspec reads the type
from tallystream.reading.sketches import error_of, estimate, estimate_command
from tallystream.rules.parts import SKETCHES
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_metric, check_text
from tallystream.wire.position import CountingPosition, parse_position, position_commands

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout

NOTHING: Final[Mapping[str, int]] = {}
"""The value of `Deployment.removed` if nothing was removed, and no rule was changed."""

Counter = tuple[str, str]
"""A subject and a metric: they identify one total."""


class CounterTotal(Figure, frozen=True):
    """The total of one counter.

    Attributes:
        subject: The subject, in its normal form.
        metric: The metric.
        value: The total, but at least the metric's `floor`.
    """

    subject: str
    metric: str
    value: int


class CounterValue(msgspec.Struct, frozen=True):
    """One counter of a `CounterTotals`.

    Attributes:
        subject: The subject, in its normal form.
        metric: The metric.
        value: The total, but at least the metric's `floor`.
    """

    subject: str
    metric: str
    value: int


class MissingCounter(msgspec.Struct, frozen=True):
    """A counter whose total is not known, because a partition that may have a part of it is not reachable.

    Attributes:
        subject: The subject, in its normal form.
        metric: The metric.
        streams: The streams of the partitions that were not read.
        at_least: Of a spread metric, the sum over the other partitions, but at least the metric's `floor`: without
            negative amounts, the total is at least that. `null` if none of its partitions was read.
    """

    subject: str
    metric: str
    streams: list[str]
    at_least: int | None


class CounterTotals(Figure, frozen=True):
    """The totals of many counters; `error` is the largest error of one of them.

    Attributes:
        counters: The counters, each once, in the order in which they were asked for, without those in `missing`.
        positions: By name of each stream that was read, the stream ID up to which its entries are in the totals.
        missing: The counters whose totals are not known, because a partition is not reachable: see `unreachable`.
    """

    counters: list[CounterValue]
    positions: dict[str, str]
    missing: list[MissingCounter] = []  # noqa: RUF012  # msgspec makes a new one for each

    @property
    def values(self) -> dict[Counter, int]:
        """By subject (in its normal form) and metric, the total as in `counters`; a new dict at each access.

        It lacks the counters in `missing`.
        """
        return {(each.subject, each.metric): each.value for each in self.counters}


class SubjectTotals(Figure, frozen=True):
    """The totals of one subject, and their ratios.

    `error` (see `Figure`) is the most by which any of the totals may be wrong; ratios are not considered.

    Attributes:
        subject: The subject, in its normal form.
        counters: By metric, the total. If the rule of the metric has a `floor`, a smaller total is shown as the floor.
            Metrics in `missing` are left out.
        ratios: By name of each ratio whose metrics were all read, its value, computed from `counters`; 0 if the
            denominator is 0.
        missing: The counters whose totals are not known, because a partition is not reachable: see `unreachable`.
    """

    subject: str
    counters: dict[str, int]
    ratios: dict[str, float]
    missing: list[MissingCounter] = []  # noqa: RUF012  # msgspec makes a new one for each


class Reading(msgspec.Struct, frozen=True):
    """Totals with the error of each, and the positions of their partitions.

    Attributes:
        values: By counter, its total, in the order in which they were asked for, each once; 0 if nothing was counted,
            but at least the declared floor; without the counters in `missing`. The subject of a counter is in its
            normal form here.
        positions: By number of each partition that was read, a position that the values are complete up to.
        errors: By counter, by how much its value may be too high; only for estimates, also those of a counter in
            `missing` that was read in part. For a spread metric, it is the sum over the sketches of all partitions that
            were read. In at most 2 % of cases, the estimate of one sketch is too high by more; after negative amounts
            (`max_subjects` allows them), it may be too low.
        missing: The counters that are not in `values`, because one of their partitions is not reachable.
        unreachable: The partitions that were not read.
    """

    values: dict[Counter, int]
    positions: dict[int, CountingPosition]
    errors: dict[Counter, int] = {}  # msgspec makes a new one for each
    missing: list[MissingCounter] = []
    unreachable: list[UnreachablePartition] = []

    def lacking(self, unreachable: list[UnreachablePartition]) -> Reading:
        """Return a copy with the given partitions as `unreachable`, in place of those that it has."""
        return replace(self, unreachable=unreachable)

    @property
    def lag(self) -> int | None:
        """The number of entries of the partitions in `positions` that are not in the values yet.

        It is 0 if no partition was read, and `None` if it is not known, or if a partition is unreachable.
        """
        return None if self.unreachable else lag_of(list(self.positions.values()))

    @property
    def as_of(self) -> str:
        """The stream ID up to which every entry of the partitions in `positions` is in the values; `0-0` for none."""
        return as_of(list(self.positions.values()))

    def error(self, counter: Counter | None = None) -> int:
        """Return by how much a value may be too high, see `errors`; 0 if `errors` does not have it.

        Args:
            counter: The counter, with the subject in its normal form; `None` for the largest of all `errors`.
        """
        return max(self.errors.values(), default=0) if counter is None else self.errors.get(counter, 0)


def query_total(
    layout: Layout, rules: Rules | None, subject: str, metric: str, removed: Mapping[str, int] = NOTHING
) -> Query[CounterTotal]:
    """Return a query for the total of one subject and metric.

    Unreachable partitions of the layout are not read: the total is then the sum over the others, 0 if there are none.

    Args:
        layout: The partitions.
        rules: The declared metrics; `None` if none are published: then every metric is accepted, and the total is that
            of its key, without floor and sketch.
        subject: The subject.
        metric: The metric.
        removed: That of the deployment: see `tallystream.deployment.Deployment`. Without it, the part of a total that
            is in the sketch may be missing after a change of `exact` or `max_subjects`.

    Raises:
        EventError: the subject or the metric is not valid, or `rules` are given and do not declare the metric.
    """
    _refuse_undeclared(rules, [metric])

    def show(reading: Reading) -> CounterTotal:
        # A spread total of which not all partitions were read: what the others have.
        partly = {(each.subject, each.metric): each.at_least or 0 for each in reading.missing}
        (((normal, _), value),) = (reading.values or partly).items()
        return CounterTotal(normal, metric, value, **freshness(list(reading.positions.values()), reading.error()))

    return query_counters(layout, [(subject, metric)], rules, removed).then(show)


def query_totals(
    layout: Layout, rules: Rules | None, counters: Iterable[Counter], removed: Mapping[str, int] = NOTHING
) -> Query[CounterTotals]:
    """Return a query for many totals, each once, in the given order.

    If `counters` is empty, the query has no commands, and the answer has no totals, `as_of` `0-0` and `lag` 0.

    Args:
        layout: The partitions.
        rules: The declared metrics; `None` if none are published: then every metric is accepted, and a total is that of
            its key, without floor and sketch.
        counters: Pairs of a subject and a metric.
        removed: That of the deployment: see `tallystream.deployment.Deployment`.

    Raises:
        EventError: a subject or a metric is not valid, or `rules` are given and do not declare a metric.
    """
    wanted = list(counters)
    _refuse_undeclared(rules, dict.fromkeys(metric for _, metric in wanted))

    def show(reading: Reading) -> CounterTotals:
        return CounterTotals(
            [CounterValue(subject, metric, value) for (subject, metric), value in reading.values.items()],
            {layout.keys[partition].stream: position.as_of for partition, position in reading.positions.items()},
            reading.missing,
            **freshness(list(reading.positions.values()), reading.error()),
        )

    return query_counters(layout, wanted, rules, removed).then(show)


def query_subject(
    layout: Layout,
    rules: Rules,
    subject: str,
    metrics: Iterable[str] | None = None,
    removed: Mapping[str, int] = NOTHING,
) -> Query[SubjectTotals]:
    """Return a query for the totals of a subject, and their ratios.

    Args:
        layout: The partitions.
        rules: The declared metrics and ratios.
        subject: The subject.
        metrics: The metrics to read; `None` for every declared one, in order of name. If it is empty, nothing is read,
            and `as_of` of the answer is `0-0`. A ratio is included if all its metrics are read.
        removed: That of the deployment: see `tallystream.deployment.Deployment`.

    Raises:
        EventError: the subject is not valid, or a metric is not declared.
    """
    names = sorted(rules.metric) if metrics is None else list(dict.fromkeys(metrics))
    _refuse_undeclared(rules, names)
    normal = check_text("subject", subject, MAX_SUBJECT_BYTES)

    def show(reading: Reading) -> SubjectTotals:
        values = {metric: value for (_, metric), value in reading.values.items()}
        known = {
            name: value for name, value in ratios(rules, values).items() if _metrics_of(rules, name) <= values.keys()
        }
        fresh = freshness(list(reading.positions.values()), reading.error())
        return SubjectTotals(normal, values, known, reading.missing, **fresh)

    return query_counters(layout, ((normal, metric) for metric in names), rules, removed).then(show)


def query_counters(
    layout: Layout, counters: Iterable[Counter], rules: Rules | None = None, removed: Mapping[str, int] = NOTHING
) -> Query[Reading]:
    """Return a query for the totals of several counters, each once, with their errors and positions.

    With `rules`, a total below its metric's floor is shown as the floor, and the total of a spread metric is the sum
    over all partitions. If the metric has `exact = false` or `max_subjects`, a counter without a key is estimated from
    the sketch. If totals were split by a change of `exact` or `max_subjects` (a mark in `removed`), a total is the sum
    of its key and its estimate. An undeclared metric is no error. Without `rules`, or for an undeclared metric, a total
    is that of its key, in the one partition that its subject belongs to. `removed` is that of the deployment: see
    `tallystream.deployment.Deployment`. Unreachable partitions of the layout are not read; counters in them are in
    `missing` of the answer.

    Raises:
        EventError: a subject or a metric is not valid.
    """
    by_partition: dict[int, list[Counter]] = defaultdict(list)
    asked: dict[Counter, int] = {}
    unread: dict[Counter, tuple[list[int], bool]] = {}  # the partitions, and whether another one is read
    spread = rules.spread if rules is not None else frozenset()
    for subject, metric in counters:
        check_metric(metric)
        counter = check_text("subject", subject, MAX_SUBJECT_BYTES), metric
        asked[counter] = 0
        holding = layout.holding(counter[0], spread=metric in spread)
        reached = layout.reached_among(holding)
        if len(reached) < len(holding):
            unread[counter] = [number for number in holding if number in layout.unreachable], bool(reached)
        for number in reached:
            by_partition[number].append(counter)
    commands: list[Command] = []
    sketched: list[list[Counter]] = []
    for partition, wanted in by_partition.items():
        keys = layout.keys[partition]
        commands += position_commands(keys)
        commands.append(("MGET", *(keys.total(metric, subject) for subject, metric in wanted)))
        sketched.append([counter for counter in wanted if _may_be_sketched(rules, counter[1], removed)])
        for subject, metric in sketched[-1]:
            commands.append(estimate_command(keys.sketch(metric), subject))
            commands.append(("HGET", keys.ledger, f"sketched@{metric}"))
            commands.append(("HGET", keys.resets, f"{metric}\n{subject}"))

    def parse(replies: list[Any]) -> Reading:
        reading = Reading(asked.copy(), {})
        answers = iter(replies)
        for (partition, wanted), in_sketch in zip(by_partition.items(), sketched, strict=True):
            group = layout.keys[partition].group
            reading.positions[partition] = parse_position([next(answers), next(answers)], group)
            values = dict(zip(wanted, raise_on_error(next(answers)), strict=True))
            for counter in in_sketch:
                estimated, sketched_sum = estimate(raise_on_error(next(answers))), raise_on_error(next(answers))
                was_reset = raise_on_error(next(answers)) is not None
                exact = values[counter]
                if (sketched_sum or estimated) and (exact is None or f"{SKETCHES}:{counter[1]}" in removed):
                    values[counter] = int(exact or 0) + estimated
                    # A reset takes nothing out of a sketch, so all of the estimate may be from before it.
                    error = error_of(estimated, int(sketched_sum or 0), was_reset=was_reset)
                    reading.errors[counter] = reading.errors.get(counter, 0) + error
            for counter, value in values.items():
                reading.values[counter] += int(value or 0)
        for counter, value in reading.values.items():
            reading.values[counter] = floored(rules, counter[1], value)
        for counter, (numbers, is_partly_known) in unread.items():
            known = reading.values.pop(counter)
            streams = [layout.keys[number].stream for number in numbers]
            reading.missing.append(MissingCounter(*counter, streams, known if is_partly_known else None))
        return reading

    return Query(commands, parse)


def floored(rules: Rules | None, metric: str, value: int) -> int:
    """Return `value`, or the declared floor of `metric` if that is larger; `value` without rules or without a floor."""
    floor = rules.metric[metric].floor if rules is not None and metric in rules.metric else None
    return value if floor is None else max(floor, value)


def ratios(rules: Rules, values: Mapping[str, int]) -> dict[str, float]:
    """Return every declared ratio by name, from the values of a subject by metric; 0 if the denominator is 0.

    A metric that is missing in `values` counts as 0.
    """
    found = {}
    for name, ratio in rules.ratio.items():
        below = sum(values.get(metric, 0) for metric in ratio.by)
        found[name] = sum(values.get(metric, 0) for metric in ratio.of) / below if below else 0.0
    return found


def _metrics_of(rules: Rules, ratio: str) -> set[str]:
    return {*rules.ratio[ratio].of, *rules.ratio[ratio].by}


def _refuse_undeclared(rules: Rules | None, metrics: Iterable[str]) -> None:
    if rules is not None:
        for metric in metrics:
            rules.refuse_undeclared(metric)


def _may_be_sketched(rules: Rules | None, metric: str, removed: Mapping[str, int]) -> bool:
    rule = rules.metric.get(metric) if rules is not None else None
    return rule is not None and (not rule.exact or rule.max_subjects is not None or f"{SKETCHES}:{metric}" in removed)
