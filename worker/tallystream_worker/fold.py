"""Folds entries into a batch: how much to add to what. Pure: no Redis, no clock.

The hot path sums whole groups at the speed of C and looks at each distinct subject once. Whatever turns out to
be at fault (a subject that breaks a rule, a total that would overflow) is handled by folding the same entries
again with it *excluded*: its events go to the parked side of the batch, everything beside it counts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tallystream.codec import (
    MINUTE,
    VERSION,
    Group,
    Payload,
    Single,
    decode,
    encode,
    event_of,
    stated_events,
    went_through_the_gate,
)
from tallystream.errors import CodecError, EventError
from tallystream.event import MAX_AHEAD, MAX_AMOUNT, MAX_SUBJECT_BYTES, check_text
from tallystream.keys import partition_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tallystream.keys import Layout
    from tallystream.rules import Rules

_REMEMBERED: Final = 200_000
"""Subjects remembered as checked; beyond it the memory is begun anew."""

_REASON_BYTES: Final = 300

Fault = tuple[str, str | None]
"""A metric and a subject of it; `None` stands for all its subjects."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One stream entry as fetched; `deliveries` is how often it has been handed to a worker."""

    id: str
    fields: Mapping[bytes, bytes]
    deliveries: int = 1

    @property
    def received(self) -> int:
        """The millisecond at which the server took the entry: its clock, and it never changes."""
        return int(self.id.partition("-")[0])


@dataclass(frozen=True, slots=True)
class Parked:
    """Events that cannot be counted, as an entry that could be appended again."""

    source: str
    reason: str
    events: int
    deliveries: int
    fields: Mapping[bytes, bytes]
    metric: str = ""


@dataclass(slots=True)
class Batch:
    """What several entries add up to.

    Attributes:
        ids: The entries that are acknowledged when the batch is applied.
        totals: By metric, by subject, the sum of the amounts.
        counted: By metric, the events behind these sums.
        parked: The events that are not counted.
        appended: Events that no gate has put into the ledger yet: those of plain entries.
    """

    ids: list[str] = field(default_factory=list)
    totals: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    counted: Counter[str] = field(default_factory=Counter)
    parked: list[Parked] = field(default_factory=list)
    appended: int = 0

    @property
    def keys(self) -> int:
        """How many counters the batch touches."""
        return sum(map(len, self.totals.values()))

    @property
    def ledger(self) -> dict[str, int]:
        """By ledger field, the events to add: in all, and `outcome@metric` for each metric."""
        moves = Counter(appended=self.appended)
        for metric, events in self.counted.items():
            moves["counted"] += events
            moves[f"counted@{metric}"] += events
        for parked in self.parked:
            moves["dead"] += parked.events
            if parked.metric:
                moves[f"dead@{parked.metric}"] += parked.events
        for metric, sums in self.totals.items():
            moves[f"total@{metric}"] += sum(sums.values())
        return {name: events for name, events in moves.items() if events}


class Fold:
    """Folds the entries of one partition.

    Args:
        layout: How many partitions there are.
        partition: The one whose entries come.
        rules: The declared metrics.
        max_keys: A batch is closed once it touches this many counters: what bounds the time for which one
            script call holds the server.
        max_deliveries: An entry handed out more often than this, without success, is parked unread.
    """

    def __init__(
        self, layout: Layout, partition: int, rules: Rules, *, max_keys: int = 3000, max_deliveries: int = 10
    ) -> None:
        self._layout = layout
        self._partition = partition
        self._rules = rules
        self._max_keys = max_keys
        self._max_deliveries = max_deliveries
        self._known: set[str] = set()

    def __call__(
        self, entries: Sequence[Entry], excluded: Mapping[Fault, str] | None = None
    ) -> tuple[Batch, Sequence[Entry]]:
        """Fold entries from the first on.

        Args:
            entries: In any order.
            excluded: What must not be counted, with the reason.

        Returns:
            The batch, and the entries that it has no room for.
        """
        excluded = dict(excluded or {})
        # The gate asks whether an entry is pending, and it is as often as it is asked within one call.
        entries = list({entry.id: entry for entry in entries}.values())
        while True:
            batch, rest = self._pass(entries, excluded)
            faults = self._faults(batch)
            if not faults:
                return batch, rest
            excluded |= faults

    def _pass(self, entries: Sequence[Entry], excluded: Mapping[Fault, str]) -> tuple[Batch, Sequence[Entry]]:
        batch = Batch()
        for index, entry in enumerate(entries):
            self._add(batch, entry, excluded)
            if batch.keys >= self._max_keys:
                return batch, entries[index + 1 :]
        return batch, []

    def _add(self, batch: Batch, entry: Entry, excluded: Mapping[Fault, str]) -> None:
        batch.ids.append(entry.id)
        stated = stated_events(entry.fields)
        if entry.deliveries > self._max_deliveries:
            reason = f"delivered {entry.deliveries - 1} times without success"
            payload = None
        else:
            try:
                payload = decode(entry.fields, entry.received)
            except (CodecError, EventError) as error:
                payload, reason = None, str(error)
        events = stated if payload is None else payload.events
        if not went_through_the_gate(entry.fields):
            batch.appended += events
        if payload is None:
            batch.parked.append(Parked(entry.id, reason[:_REASON_BYTES], events, entry.deliveries, entry.fields))
            return
        latest = entry.received + MAX_AHEAD * 1000
        for group in payload.groups:
            self._add_group(batch, entry, group, latest, excluded)
        for single in payload.singles:
            self._add_single(batch, entry, single, latest, excluded)

    def _add_group(self, batch: Batch, entry: Entry, group: Group, latest: int, excluded: Mapping[Fault, str]) -> None:
        if group.minute * MINUTE * 1000 > latest:
            self._park(batch, entry, Payload([group], []), _AHEAD)
            return
        if excluded:
            group = self._sift(batch, entry, group, excluded)
        if not (group.ones or group.counts or group.sums):
            return
        sums = batch.totals[group.metric]
        sums.update(group.ones)
        get = sums.get  # a Counter's own answer for what is missing is a slow one
        for subject, events in group.counts.items():
            sums[subject] = get(subject, 0) + events
        for subject, (amount, _) in group.sums.items():
            sums[subject] = get(subject, 0) + amount
        batch.counted[group.metric] += group.events

    def _add_single(
        self, batch: Batch, entry: Entry, single: Single, latest: int, excluded: Mapping[Fault, str]
    ) -> None:
        reason = excluded.get((single.metric, single.subject)) or excluded.get((single.metric, None))
        if single.at > latest:
            reason = _AHEAD
        elif reason is None:
            try:
                event_of(single)
            except EventError as error:
                reason = str(error)
        if reason is not None:
            self._park(batch, entry, Payload([], [single]), reason)
            return
        batch.totals[single.metric][single.subject] += single.amount
        batch.counted[single.metric] += 1

    def _sift(self, batch: Batch, entry: Entry, group: Group, excluded: Mapping[Fault, str]) -> Group:
        """Park what is excluded of a group and return what is left."""
        whole = excluded.get((group.metric, None))
        faulty: dict[str, list[str]] = defaultdict(list)  # by reason
        for subject in {*group.ones, *group.counts, *group.sums}:
            reason = whole or excluded.get((group.metric, subject))
            if reason is not None:
                faulty[reason].append(subject)
        for reason, subjects in faulty.items():
            self._park(batch, entry, Payload([_part(group, set(subjects), keep=True)], []), reason)
        return _part(group, {s for subjects in faulty.values() for s in subjects}, keep=False)

    def _park(self, batch: Batch, entry: Entry, payload: Payload, reason: str) -> None:
        events = payload.events
        fields = {b"v": VERSION, b"n": str(events).encode(), b"b": encode(payload)}
        metric = payload.groups[0].metric if payload.groups else payload.singles[0].metric
        if metric not in self._rules.metric:
            metric = ""
        batch.parked.append(Parked(entry.id, reason[:_REASON_BYTES], events, entry.deliveries, fields, metric))

    def _faults(self, batch: Batch) -> dict[Fault, str]:
        """Look at each distinct counter of the batch once; return what must not be counted, with the reason."""
        faults: dict[Fault, str] = {}
        for metric, sums in batch.totals.items():
            try:
                self._rules.refuse_undeclared(metric)
            except EventError as error:
                faults[metric, None] = str(error)
                continue
            for subject in sums.keys() - self._known:
                try:
                    self._admit(subject)
                except EventError as error:
                    faults[metric, subject] = str(error)
            if max(sums.values()) > MAX_AMOUNT or min(sums.values()) < -MAX_AMOUNT:
                faults |= {(metric, subject): OVERFLOW for subject, total in sums.items() if abs(total) > MAX_AMOUNT}
        return faults

    def _admit(self, subject: str) -> None:
        if check_text("subject", subject, MAX_SUBJECT_BYTES) != subject:
            raise EventError("subject", "is not in Unicode normal form C")
        home = partition_of(subject, self._layout.partitions)
        if home != self._partition:
            raise EventError("subject", f"belongs to another partition: append it to {self._layout.keys[home].stream}")
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known.add(subject)


OVERFLOW: Final = "the total would leave +-(2^53 - 1), or its key holds something else than a whole number"
_AHEAD: Final = f"at: lies more than {MAX_AHEAD:,} seconds after the server took the entry"


def _part(group: Group, subjects: set[str], *, keep: bool) -> Group:
    """Return the group with only these subjects, or (`keep=False`) without them."""
    return Group(
        group.metric,
        group.minute,
        [subject for subject in group.ones if (subject in subjects) is keep],
        {subject: n for subject, n in group.counts.items() if (subject in subjects) is keep},
        {subject: pair for subject, pair in group.sums.items() if (subject in subjects) is keep},
    )
