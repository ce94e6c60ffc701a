"""Reads of counters: the totals of subjects by metric, and the ratios of them."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from tallystream.reading.freshness import Figure, as_of, freshness, lag_of
from tallystream.reading.query import Command, Query, raise_on_error
from tallystream.reading.sketches import bound, estimate, estimate_command
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_metric, check_text
from tallystream.wire.position import CountingPosition, parse_position, position_commands

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout

Counter = tuple[str, str]
"""A subject and a metric of it."""


class CounterTotal(Figure, frozen=True):
    """The total of one counter."""

    subject: str
    metric: str
    value: int


class CounterValue(msgspec.Struct, frozen=True):
    """One of many counters."""

    subject: str
    metric: str
    value: int


class CounterTotals(Figure, frozen=True):
    """Many counters; `positions` has `as_of` by the names of the streams that they are counted from.

    `error` is that of the worst of them.
    """

    counters: list[CounterValue]
    positions: dict[str, str]

    @property
    def values(self) -> dict[Counter, int]:
        """The values by subject and metric."""
        return {(each.subject, each.metric): each.value for each in self.counters}


class SubjectTotals(Figure, frozen=True):
    """Every declared metric and ratio of a subject; `error` is that of the worst of the counters."""

    subject: str
    counters: dict[str, int]
    ratios: dict[str, float]


class Reading(msgspec.Struct, frozen=True):
    """Values, and how good each of them is.

    Attributes:
        values: What was asked for, in the order asked, 0 where nothing was counted.
        positions: By partition number, how far counting had come when the values were read, or less far.
        errors: By how much a value may be too high, for those that are not exact.
    """

    values: dict[Counter, int]
    positions: dict[int, CountingPosition]
    errors: dict[Counter, int] = {}  # msgspec makes a new one for each

    @property
    def lag(self) -> int | None:
        """Entries of these partitions that are not in the values yet; `None` if the server cannot tell."""
        return lag_of(list(self.positions.values()))

    @property
    def as_of(self) -> str:
        """Stream ID up to which everything is in the values."""
        return as_of(list(self.positions.values()))

    def error(self, counter: Counter | None = None) -> int:
        """Return by how much a value (or the worst of them) may be too high: 0 when exact."""
        return max(self.errors.values(), default=0) if counter is None else self.errors.get(counter, 0)


def query_total(layout: Layout, rules: Rules | None, subject: str, metric: str) -> Query[CounterTotal]:
    """Ask for one total; see `query_counters`.

    Raises:
        EventError: a subject or a metric that cannot exist, or a metric that is not declared.
    """
    _refuse_undeclared(rules, [metric])

    def show(reading: Reading) -> CounterTotal:
        (((normal, _), value),) = reading.values.items()
        return CounterTotal(normal, metric, value, **freshness(list(reading.positions.values()), reading.error()))

    return query_counters(layout, [(subject, metric)], rules).then(show)


def query_totals(layout: Layout, rules: Rules | None, counters: Iterable[Counter]) -> Query[CounterTotals]:
    """Ask for many totals, each once, in the order asked; see `query_counters`.

    Raises:
        EventError: a subject or a metric that cannot exist, or a metric that is not declared.
    """
    wanted = list(counters)
    _refuse_undeclared(rules, dict.fromkeys(metric for _, metric in wanted))

    def show(reading: Reading) -> CounterTotals:
        return CounterTotals(
            [CounterValue(subject, metric, value) for (subject, metric), value in reading.values.items()],
            {layout.keys[partition].stream: position.as_of for partition, position in reading.positions.items()},
            **freshness(list(reading.positions.values()), reading.error()),
        )

    return query_counters(layout, wanted, rules).then(show)


def query_subject(
    layout: Layout, rules: Rules, subject: str, metrics: Iterable[str] | None = None
) -> Query[SubjectTotals]:
    """Ask for the totals of a subject, and for the ratios of them.

    Args:
        layout: How many partitions there are.
        rules: The declared metrics.
        subject: Whose.
        metrics: Which; `None` for every declared one. A ratio is left out unless all its metrics are asked for.

    Raises:
        EventError: a subject or a metric that cannot exist, or a metric that is not declared.
    """
    names = sorted(rules.metric) if metrics is None else list(dict.fromkeys(metrics))
    _refuse_undeclared(rules, names)
    normal = check_text("subject", subject, MAX_SUBJECT_BYTES)

    def show(reading: Reading) -> SubjectTotals:
        values = {metric: value for (_, metric), value in reading.values.items()}
        known = {
            name: value for name, value in ratios(rules, values).items() if _metrics_of(rules, name) <= values.keys()
        }
        return SubjectTotals(normal, values, known, **freshness(list(reading.positions.values()), reading.error()))

    return query_counters(layout, ((normal, metric) for metric in names), rules).then(show)


def query_counters(layout: Layout, counters: Iterable[Counter], rules: Rules | None = None) -> Query[Reading]:
    """Ask for counters, each a subject and a metric.

    With `rules`, a floor is applied to what is shown, what has no counter of its own is read from its sketch, and what
    is spread is the sum over all partitions.

    Raises:
        EventError: a subject or a metric that cannot exist.
    """
    by_partition: dict[int, list[Counter]] = defaultdict(list)
    asked: dict[Counter, int] = {}
    spread = rules.spread if rules is not None else frozenset()
    for subject, metric in counters:
        check_metric(metric)
        counter = check_text("subject", subject, MAX_SUBJECT_BYTES), metric
        asked[counter] = 0
        for number in layout.holding(counter[0], spread=metric in spread):
            by_partition[number].append(counter)
    commands: list[Command] = []
    sketched: list[list[Counter]] = []
    for partition, wanted in by_partition.items():
        keys = layout.keys[partition]
        commands += position_commands(keys)
        commands.append(("MGET", *(keys.total(metric, subject) for subject, metric in wanted)))
        sketched.append([counter for counter in wanted if _may_be_sketched(rules, counter[1])])
        for subject, metric in sketched[-1]:
            commands.append(estimate_command(keys.sketch(metric), subject))
            commands.append(("HGET", keys.ledger, f"sketched@{metric}"))

    def parse(replies: list[Any]) -> Reading:
        reading = Reading(asked.copy(), {})
        answers = iter(replies)
        for (partition, wanted), in_sketch in zip(by_partition.items(), sketched, strict=True):
            group = layout.keys[partition].group
            reading.positions[partition] = parse_position([next(answers), next(answers)], group)
            values = dict(zip(wanted, raise_on_error(next(answers)), strict=True))
            for counter in in_sketch:
                cells, sketched_sum = raise_on_error(next(answers)), int(raise_on_error(next(answers)) or 0)
                if values[counter] is None and sketched_sum > 0:
                    values[counter] = estimate(cells)
                    reading.errors[counter] = bound(sketched_sum)
            for counter, value in values.items():
                reading.values[counter] += int(value or 0)
        for counter, value in reading.values.items():
            reading.values[counter] = floored(rules, counter[1], value)
        return reading

    return Query(commands, parse)


def floored(rules: Rules | None, metric: str, value: int) -> int:
    """Return a value as it is shown: never below the metric's floor. What is stored stays the true sum."""
    floor = rules.metric[metric].floor if rules is not None and metric in rules.metric else None
    return value if floor is None else max(floor, value)


def ratios(rules: Rules, values: Mapping[str, int]) -> dict[str, float]:
    """Return the declared ratios of a subject's values by metric; 0 where the denominator is 0."""
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


def _may_be_sketched(rules: Rules | None, metric: str) -> bool:
    rule = rules.metric.get(metric) if rules is not None else None
    return rule is not None and (not rule.exact or rule.max_subjects is not None)
