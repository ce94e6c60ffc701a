"""The ledger: the outcome of every event, and whether the sums agree.

The ledger of a partition is a hash of events: `appended`, and for each outcome `<outcome>` or `<outcome>:<rule>`. Each
field of an outcome is there for all metrics together, and again for each metric with `@<metric>` at the end.
`total@<metric>` is the sum of the amounts that were counted.

Five fields count entries, so that the worker can find out how many were removed from the stream before they were
counted: `entries:gated`, appended by a script, which also added their events to `appended`; `entries:settled`, with an
outcome; `entries:plain`, with an outcome, but not appended by a script; `entries:retired`, removed by retention; and
`entries:removed`, removed by other means. Other fields begin with `entries:` but count no entries of the stream:
`entries:retried` is the time of the last retry of a dead letter, in microseconds since 1970; `entries:dropped` is the
number of dead letters that were dropped for good; `entries:copied` shows that a repartition has copied entries to the
partition; `entries:first` and `entries:unordered:<number>` are about the rules that counted the entries (see
`tallystream.storage.keys`).

The scripts add to `appended` in the ledger of the topic, which is also the ledger of the first generation; `plain` is
the part of it that the worker of the first generation added, for plain entries. A later generation has a separate
ledger. The field `appended` of this ledger begins below 0, at minus the events that the scripts had appended before,
and grows by each of these events when the generation counts it. A reader adds `appended - plain` of the topic to it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
from msgspec.structs import replace

from tallystream.client.server_time import parse_time
from tallystream.reading.freshness import lag_of
from tallystream.reading.query import Query, raise_on_error
from tallystream.reading.reach import UnreachablePartition  # noqa: TC001  # msgspec reads the type
from tallystream.wire.position import CountingPosition, parse_position, position_commands
from tallystream.wire.stream_id import parse_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tallystream.storage.keys import Layout, PartitionKeys

OUTCOMES: Final = ("counted", "rejected", "duplicate", "late", "dead", "trimmed", "retracted")
"""The outcomes of appended events; each event has exactly one."""

_TOLERANCE: Final = 1.0
"""Seconds by which a stream ID may be ahead of the server's clock without being reported."""


class PartitionSummary(msgspec.Struct, frozen=True):
    """The counting position of one partition.

    Attributes:
        stream: The name of the stream.
        as_of: The stream ID up to which every entry is counted; `0-0` before the first.
        lag: The number of entries not counted yet, pending ones included; `null` if it is not known.
        pending: The number of entries that were delivered to a worker and not acknowledged.
        oldest_pending_seconds: Seconds since the oldest pending entry was appended; `null` if nothing is pending, or if
            this is not known because the entry's stream ID is over 1 second ahead of the server's clock.
        dead: The number of dead letters.
        ids_ahead_seconds: Seconds by which the newest stream ID that a worker read is ahead of the server's clock, for
            example because the clock was set back; 0 if they are at most 1.
    """

    stream: str
    as_of: str
    lag: int | None
    pending: int
    oldest_pending_seconds: float | None
    dead: int
    ids_ahead_seconds: float


class LedgerSummary(msgspec.Struct, frozen=True):
    """The outcomes of all events, and the counting positions of all partitions, without those in `unreachable`.

    Attributes:
        partitions: The partitions that were read.
        lag: The number of entries not counted yet in all partitions; `null` if it is not known.
        pending: The number of entries in these partitions that were delivered to a worker and not acknowledged.
        dead: The number of dead letters in these partitions, in entries; the number of their events is in `ledger`.
        ledger: By outcome, and for `appended`, the number of events in these partitions.
        unaccounted: The number of appended events without an outcome: a value other than 0 is a fault. `null` while
            entries wait to be counted, or if the lag is not known.
        unreachable: The partitions that are not in the figures, because their nodes of the cluster do not answer. If
            there are any, `lag` and `unaccounted` are `null`.
    """

    partitions: list[PartitionSummary]
    lag: int | None
    pending: int
    dead: int
    ledger: dict[str, int]
    unaccounted: int | None
    unreachable: list[UnreachablePartition] = []

    def lacking(self, unreachable: list[UnreachablePartition]) -> Self:
        """Return a copy with the given partitions as `unreachable`; its `lag` and `unaccounted` are `None`."""
        return replace(self, lag=None, unaccounted=None, unreachable=unreachable)


@dataclass(frozen=True)
class Account:
    """One field of a ledger.

    Attributes:
        outcome: The outcome; or `appended`, `total`, or another name of a field, such as `entries`.
        rule: The rule that decided the outcome, or any other part of the field's name after a colon, such as `gated`;
            `None` if there is none.
        metric: The metric; `None` for all metrics together.
        amount: The value of the field: of an outcome and of `appended`, a number of events; of `total`, the sum of
            their amounts; of any other field, a figure of another kind, such as a number of entries.
    """

    outcome: str
    rule: str | None
    metric: str | None
    amount: int


@dataclass(frozen=True)
class PartitionLedger:
    """The ledger and the counting position of one partition, from one moment unless the server's memory is full.

    Attributes:
        stream: The name of the stream.
        position: The counting position; its `lag` is in entries, pending ones included.
        oldest_pending: Seconds since the oldest pending entry was appended, by the server's clock; `None` if nothing
            is pending, or if the entry's stream ID is more than 1 second ahead of that clock.
        ids_ahead: Seconds by which the newest stream ID that a worker has read is ahead of the server's clock; 0 if
            they are at most 1.
        dead: The number of dead letters.
        accounts: The fields of the ledger. A later generation has a second account `appended`, from the ledger of the
            topic; the two together are the number of appended events.
    """

    stream: str
    position: CountingPosition
    oldest_pending: float | None
    ids_ahead: float
    dead: int
    accounts: Sequence[Account]


@dataclass(frozen=True)
class Ledger:
    """The ledgers of all partitions that were read. The figures are events unless their description names another unit.

    The properties, `by_metric` and `by_metric_and_rule` are sums over these partitions; `summary` returns the main ones
    as a struct.

    Attributes:
        partitions: The ledger of each partition that was read, by ascending number.
        unreachable: The partitions that were not read, because their nodes of the cluster do not answer.
    """

    partitions: Sequence[PartitionLedger]
    unreachable: Sequence[UnreachablePartition] = ()

    def lacking(self, unreachable: list[UnreachablePartition]) -> Ledger:
        """Return a copy with the given partitions as `unreachable`, in place of those that it has."""
        return Ledger(self.partitions, unreachable)

    @cached_property
    def events(self) -> Mapping[str, int]:
        """By outcome, and for `appended`, the number of events of all metrics and rules; 0 for a missing outcome.

        Other fields without a metric are in it as well, by the part of the name before the colon: their sums, such as
        that of the fields `entries:...`, may be no numbers of events.
        """
        sums: Counter[str] = Counter()
        for account in self._accounts():
            if account.metric is None:
                sums[account.outcome] += account.amount
        return sums

    @property
    def appended(self) -> int:
        """The number of events that are, or were, in the streams; those of plain entries only after they were counted.

        A plain entry was not appended by a script of tallystream, but by any client with XADD.
        """
        return self.events["appended"]

    @property
    def counted(self) -> int:
        """The number of events with the outcome `counted`; a reset of totals does not lower it."""
        return self.events["counted"]

    @property
    def waiting(self) -> int | None:
        """The lag of all partitions, in entries; `None` if it is not known."""
        return None if self.unreachable else lag_of([partition.position for partition in self.partitions])

    @property
    def pending(self) -> int:
        """The number of entries, in the partitions that were read, that a worker got and has not acknowledged."""
        return sum(partition.position.pending for partition in self.partitions)

    @property
    def dead(self) -> int:
        """The number of dead letters, in entries, in the partitions that were read.

        `events["dead"]` is the number of their events.
        """
        return sum(partition.dead for partition in self.partitions)

    @property
    def unaccounted(self) -> int | None:
        """The number of appended events without an outcome; `None` while entries wait, or if the lag is not known.

        A value other than 0 is a fault, for example because the server lost writes.
        """
        if self.waiting != 0:
            return None
        return self.appended - sum(self.events[outcome] for outcome in OUTCOMES)

    def by_metric(self, outcome: str) -> Mapping[str, int]:
        """Return the number of events of an outcome by metric; events without a known metric are under `""`.

        A metric without such events may be missing; its number, by `[...]`, is 0.
        """
        sums: Counter[str] = Counter()
        for (metric, _), events in self.by_metric_and_rule(outcome).items():
            sums[metric] += events
        return sums

    def by_metric_and_rule(self, outcome: str) -> Mapping[tuple[str, str], int]:
        """Return the number of events of an outcome by metric and rule; the rule is `""` if the outcome has none.

        Events without a known metric are under the metric `""`. A pair without such events may be missing; its number,
        by `[...]`, is 0.
        """
        sums: Counter[tuple[str, str]] = Counter()
        rest: Counter[str] = Counter()
        for account in self._accounts():
            if account.outcome == outcome:
                rule = account.rule or ""
                if account.metric is None:
                    rest[rule] += account.amount
                else:
                    rest[rule] -= account.amount
                    sums[account.metric, rule] += account.amount
        sums.update({("", rule): events for rule, events in rest.items() if events > 0})
        return sums

    @property
    def totals(self) -> Mapping[str, int]:
        """By metric, the sum of the totals of all its subjects, by the ledgers of the partitions that were read.

        A missing metric has the sum 0, by `[...]`.
        """
        sums: Counter[str] = Counter()
        for account in self._accounts():
            if account.outcome == "total" and account.metric is not None:
                sums[account.metric] += account.amount
        return sums

    def summary(self) -> LedgerSummary:
        """Return the outcomes and positions as the struct that `Totals.ledger`, HTTP and the command line return."""
        return LedgerSummary(
            [
                PartitionSummary(
                    partition.stream,
                    partition.position.as_of,
                    partition.position.lag,
                    partition.position.pending,
                    partition.oldest_pending,
                    partition.dead,
                    partition.ids_ahead,
                )
                for partition in self.partitions
            ],
            self.waiting,
            self.pending,
            self.dead,
            {name: self.events[name] for name in ("appended", *OUTCOMES)},
            self.unaccounted,
            list(self.unreachable),
        )

    def _accounts(self) -> Iterator[Account]:
        return (account for partition in self.partitions for account in partition.accounts)


def query_ledger(layout: Layout) -> Query[Ledger]:
    """Return a query for the ledgers of all partitions, without the unreachable ones of the layout.

    The figures of each partition are from one moment (MULTI); otherwise an event could be read twice or not at all. On
    a single server, those of all partitions are from the same moment. The exception is a server whose memory is full:
    it rejects MULTI.
    """
    commands: list[tuple[Any, ...]] = []
    for keys in layout.reached:
        commands += [
            ("TIME",),
            *position_commands(keys),
            ("XLEN", keys.dead),
            ("HGETALL", keys.ledger),
            ("HMGET", keys.topic_ledger, "appended", "plain"),
        ]

    def parse(replies: list[Any]) -> Ledger:
        answers = iter(replies)
        return Ledger([_parse_partition(keys, list(islice(answers, 6))) for keys in layout.reached])

    return Query(commands, parse, atomic=True)


def _parse_partition(keys: PartitionKeys, replies: list[Any]) -> PartitionLedger:
    time, groups, pending, *others = replies
    now = parse_time(raise_on_error(time)) / 1e6
    dead, ledger, log = map(raise_on_error, others)
    position = parse_position([groups, pending], keys.group)
    oldest = None
    if position.pending and pending["min"] is not None:
        age = now - parse_id(pending["min"].decode())[0] / 1e3
        oldest = None if age < -_TOLERANCE else max(0.0, age)
    ahead = parse_id(position.delivered)[0] / 1e3 - now
    accounts = [_parse_account(name.decode(errors="replace"), int(amount)) for name, amount in ledger.items()]
    if keys.ledger != keys.topic_ledger:
        appended, plain = (int(events or 0) for events in log)
        accounts.append(Account("appended", None, None, appended - plain))
    return PartitionLedger(keys.stream, position, oldest, ahead if ahead > _TOLERANCE else 0.0, dead, accounts)


def _parse_account(field: str, amount: int) -> Account:
    name, of_metric, metric = field.partition("@")
    outcome, by_rule, rule = name.partition(":")
    return Account(outcome, rule if by_rule else None, metric if of_metric else None, amount)
