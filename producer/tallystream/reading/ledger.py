"""The books: what became of every event, and whether that adds up.

The ledger of a partition is a hash: `appended`, and for each outcome `<outcome>` or `<outcome>:<rule>`, in all and
again with `@<metric>` behind it; `total@<metric>` is the sum of the amounts that were counted. `entries:gated` are
the entries that came with their events in `appended`; `entries:settled` those that something became of, `entries:plain`
those of them that no gate had counted; `entries:retired` what retention removed, `entries:removed` what others did: by
these the worker tells what vanished before it was counted.

The gate moves `appended` in the first generation's ledger, which is the log's as well; `plain` says how much of it was
moved by that generation itself. A later generation has a ledger of its own: its `appended` begins at less than 0, at
what the gate had let in before, counts those events as it comes to them, and the log's is added where it is read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tallystream.reading.freshness import lag_of
from tallystream.reading.query import Query, raise_on_error
from tallystream.wire.position import CountingPosition, parse_position, position_commands
from tallystream.wire.stream_id import parse_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tallystream.storage.keys import Layout, PartitionKeys

OUTCOMES: Final = ("counted", "rejected", "duplicate", "late", "dead", "trimmed", "retracted")
"""What can become of an appended event, each exactly one of these."""


class PartitionSummary(msgspec.Struct, frozen=True):
    """One partition: entries not counted yet, handed to a worker, and dead; seconds since the oldest was appended."""

    stream: str
    as_of: str
    lag: int | None
    pending: int
    oldest_pending_seconds: float | None
    dead: int


class LedgerSummary(msgspec.Struct, frozen=True):
    """What became of all events: entries by partition and in all, events by outcome.

    `lag`, `pending` and `dead` count entries. `unaccounted` counts appended events that nothing became of, `null`
    while entries wait: anything but 0 is a fault.
    """

    partitions: list[PartitionSummary]
    lag: int | None
    pending: int
    dead: int
    ledger: dict[str, int]
    unaccounted: int | None


@dataclass(frozen=True)
class Account:
    """Events of one outcome, or (`total`) the sum of their amounts, in one partition.

    `rule` says which rule decided, `metric` of what they are; `None` is all of them together.
    """

    outcome: str
    rule: str | None
    metric: str | None
    amount: int


@dataclass(frozen=True)
class PartitionLedger:
    """The books of one partition, all of one moment.

    Attributes:
        stream: The stream's name.
        position: How far counting has come; its `lag` counts entries, pending ones included.
        oldest_pending: Seconds since the oldest pending entry was appended, by the server's clock; `None` where
            nothing is pending.
        parked: Entries in the dead stream.
        accounts: What the ledger says.
    """

    stream: str
    position: CountingPosition
    oldest_pending: float | None
    parked: int
    accounts: Sequence[Account]


@dataclass(frozen=True)
class Ledger:
    """The books of all partitions; events, where nothing else is said."""

    partitions: Sequence[PartitionLedger]

    @cached_property
    def events(self) -> Mapping[str, int]:
        """By outcome, and `appended`, the events of all metrics and rules."""
        sums: Counter[str] = Counter()
        for account in self._accounts():
            if account.metric is None:
                sums[account.outcome] += account.amount
        return sums

    @property
    def appended(self) -> int:
        """Events that are, or were, in the streams."""
        return self.events["appended"]

    @property
    def counted(self) -> int:
        """Events that are in the totals."""
        return self.events["counted"]

    @property
    def waiting(self) -> int | None:
        """Entries that nothing has become of yet; `None` where the server cannot tell."""
        return lag_of([partition.position for partition in self.partitions])

    @property
    def pending(self) -> int:
        """Entries handed to a worker and not acknowledged."""
        return sum(partition.position.pending for partition in self.partitions)

    @property
    def parked(self) -> int:
        """Entries in the dead streams."""
        return sum(partition.parked for partition in self.partitions)

    @property
    def unaccounted(self) -> int | None:
        """Appended events that nothing became of; `None` while entries wait, because what these hold is not known.

        Anything but 0 is a fault: of the server's durability, of someone who trimmed the stream, or of ours.
        """
        if self.waiting != 0:
            return None
        return self.appended - sum(self.events[outcome] for outcome in OUTCOMES)

    def by_metric(self, outcome: str) -> Mapping[str, int]:
        """Return the events of an outcome by metric, with what belongs to no known metric under `""`."""
        sums: Counter[str] = Counter()
        for (metric, _), events in self.by_metric_and_rule(outcome).items():
            sums[metric] += events
        return sums

    def by_metric_and_rule(self, outcome: str) -> Mapping[tuple[str, str], int]:
        """Return the same by metric and rule, the rule `""` where the outcome has none."""
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
        """By metric, the sum of all its counters."""
        sums: Counter[str] = Counter()
        for account in self._accounts():
            if account.outcome == "total" and account.metric is not None:
                sums[account.metric] += account.amount
        return sums

    def summary(self) -> LedgerSummary:
        """Return what is published of it."""
        return LedgerSummary(
            [
                PartitionSummary(
                    partition.stream,
                    partition.position.as_of,
                    partition.position.lag,
                    partition.position.pending,
                    partition.oldest_pending,
                    partition.parked,
                )
                for partition in self.partitions
            ],
            self.waiting,
            self.pending,
            self.parked,
            {name: self.events[name] for name in ("appended", *OUTCOMES)},
            self.unaccounted,
        )

    def _accounts(self) -> Iterator[Account]:
        return (account for partition in self.partitions for account in partition.accounts)


def query_ledger(layout: Layout) -> Query[Ledger]:
    """Ask for the books of all partitions, each of one moment: else an event could be seen twice, or not at all.

    On a single server all of them are of the same moment.
    """
    commands: list[tuple[Any, ...]] = []
    for keys in layout.keys:
        commands += [
            ("TIME",),
            *position_commands(keys),
            ("XLEN", keys.dead),
            ("HGETALL", keys.ledger),
            ("HMGET", keys.topic_ledger, "appended", "plain"),
        ]

    def parse(replies: list[Any]) -> Ledger:
        answers = iter(replies)
        return Ledger([_parse_partition(keys, list(islice(answers, 6))) for keys in layout.keys])

    return Query(commands, parse, atomic=True)


def _parse_partition(keys: PartitionKeys, replies: list[Any]) -> PartitionLedger:
    time, groups, pending, *others = replies
    now: tuple[int, int] = raise_on_error(time)
    parked, ledger, log = map(raise_on_error, others)
    position = parse_position([groups, pending], keys.group)
    oldest = None
    if position.pending and pending["min"] is not None:
        seconds, microseconds = now
        oldest = max(0.0, seconds + microseconds / 1e6 - parse_id(pending["min"].decode())[0] / 1e3)
    accounts = [_parse_account(name.decode(errors="replace"), int(amount)) for name, amount in ledger.items()]
    if keys.ledger != keys.topic_ledger:
        appended, plain = (int(events or 0) for events in log)
        accounts.append(Account("appended", None, None, appended - plain))
    return PartitionLedger(keys.stream, position, oldest, parked, accounts)


def _parse_account(field: str, amount: int) -> Account:
    name, of_metric, metric = field.partition("@")
    outcome, by_rule, rule = name.partition(":")
    return Account(outcome, rule if by_rule else None, metric if of_metric else None, amount)
