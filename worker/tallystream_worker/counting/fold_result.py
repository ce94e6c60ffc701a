"""The result of folding several entries: a batch for the script, dead letters, and the changes of the ledger."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tallystream.rules.batch import Batch
    from tallystream.wire.codec import Payload
    from tallystream_worker.counting.dropped import DroppedLetter
    from tallystream_worker.counting.entry import Entry

FoldFault = tuple[str, str | None]
"""A metric and a subject whose events cannot be counted in this batch; with the subject `None`, all of the metric."""

OVERFLOW: Final = "the total would exceed +-(2^53 - 1), or the value of its key is not a whole number"
"""The reason in the dead letters of events whose total cannot take its delta."""


def parse_faults(fields: Sequence[bytes]) -> dict[FoldFault, str]:
    """Return what a script has rejected: by metric and subject (`None` for all of the metric), the reason.

    Args:
        fields: The fields of its reply after the status, three for each counter: see `rejection.lua`. An empty reason
            stands for `OVERFLOW`.

    Raises:
        ValueError: the number of fields is not a multiple of three, or a field is not UTF-8.
    """
    texts = [field.decode() for field in fields]
    rejected = zip(texts[::3], texts[1::3], texts[2::3], strict=True)
    return {(metric, subject or None): reason or OVERFLOW for metric, subject, reason in rejected}


@dataclass(frozen=True, slots=True)
class DeadEntry:
    """A dead letter that a batch adds: events that cannot be counted, encoded as an entry.

    Attributes:
        source: The stream ID of the entry that the events come from.
        reason: Why the events cannot be counted.
        events: The number of events.
        deliveries: How often the entry was delivered to a worker, plus how often a retry has tried to count the events.
        fields: The fields of an entry with these events.
        metric: The declared metric of the events; `""` if it is not known.
    """

    source: str
    reason: str
    events: int
    deliveries: int
    fields: Mapping[bytes, bytes]
    metric: str = ""


@dataclass(slots=True)
class FoldResult:
    """The sum of several entries: a batch, its dead letters, and the events by outcome.

    Attributes:
        batch: The deltas for the script: sums, votes, ids and the actors of unique counts.
        excluded: By metric and subject (`None` for all), the reason why their events become dead letters in this batch.
        entries: The entries that the script acknowledges when it applies the batch.
        settled: By metric, the number of events whose deltas are in `batch`. The events of `dead`, `late` and
            `retracted` are not in it.
        counted: By metric, the number of events of `settled` that the script counts in any case: no rule can reject
            them, and they have no id that could be a duplicate.
        late: By metric, the number of late events that are not counted.
        late_counted: By metric, the number of late events whose deltas are in `batch`; they are also in `settled`.
        retracted: By metric, the number of retracted events; they are not counted.
        dead: The dead letters: events that cannot be counted.
        dropped: The dead letters that were dropped for good before; their events are not counted.
        may_be_outdated: Whether newer rules might count an event that is a dead letter by the rules of this fold: its
            metric is not declared, or its subject belongs to another partition.
        revision: The number of the rules that the entries were folded by; 0 if they have none. `RefreshingFold` sets
            it: `Fold` leaves it 0.
        conflicts: How often a batch with these entries was stale before, because some of its entries had been applied;
            0 again after a failed batch was bisected.
        appended: The number of events that the batch adds to `appended` in the ledger: those of plain entries, and of
            entries that are older than the generation. For other entries, the script that appended them has done this.
        plain: The number of entries whose events are in `appended`: plain entries, and entries that are older than the
            generation.
        plain_events: The number of events in plain entries.
        sample: The payload of one decoded entry, without dropped and retracted events; `None` if there is none. Entries
            that were dropped as a whole, or counted when they were appended, are passed over.
    """

    batch: Batch
    excluded: Mapping[FoldFault, str] = field(default_factory=dict)
    entries: Sequence[Entry] = ()
    settled: Counter[str] = field(default_factory=Counter)
    counted: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    late_counted: Counter[str] = field(default_factory=Counter)
    retracted: Counter[str] = field(default_factory=Counter)
    dead: list[DeadEntry] = field(default_factory=list)
    dropped: list[DroppedLetter] = field(default_factory=list)
    may_be_outdated: bool = False
    revision: int = 0
    conflicts: int = 0
    appended: int = 0
    plain: int = 0
    plain_events: int = 0
    sample: Payload | None = None

    @property
    def ids(self) -> list[str]:
        """The stream IDs of the entries that the batch acknowledges."""
        return [entry.id for entry in self.entries]

    @property
    def ledger(self) -> dict[str, int]:
        """By ledger field, the number to add; a field that would get 0 is missing.

        `counted`, `late`, `retracted` and `dead` are events of all metrics, and with `@metric` of one metric. `counted`
        has only the events that the script counts in any case (see the attribute `counted`); the script adds the events
        that it decides about, such as those with a limit, a vote or an id. `late` has the late events that are not
        counted. `late-counted@metric` has the late events that are handed to the script; their outcome is added like
        that of other events. `dropped` (events) is also part of `dead`.

        A plain entry was not appended by a script of tallystream. `plain` has the events of plain entries. `appended`
        has the events, and `entries:plain` the number, of plain entries and of entries older than the generation; the
        script that appended the other entries has added their events to `appended` already. `entries:settled` is the
        number of entries that the batch acknowledges.
        """
        moves = Counter({"appended": self.appended, "entries:plain": self.plain, "entries:settled": len(self.entries)})
        moves["plain"] = self.plain_events
        for outcome, by_metric in (("counted", self.counted), ("late", self.late), ("retracted", self.retracted)):
            for metric, events in by_metric.items():
                moves[outcome] += events
                moves[f"{outcome}@{metric}"] += events
        for metric, events in self.late_counted.items():
            moves[f"late-counted@{metric}"] += events
        uncounted: list[DeadEntry | DroppedLetter] = [*self.dead, *self.dropped]
        for dead in uncounted:
            moves["dead"] += dead.events
            if dead.metric:
                moves[f"dead@{dead.metric}"] += dead.events
        moves["dropped"] = sum(letter.events for letter in self.dropped)
        return {name: events for name, events in moves.items() if events}

    def excluding(self, faults: Mapping[FoldFault, str]) -> Mapping[FoldFault, str]:
        """Return a copy of `excluded`, with `faults` and their reasons added, for the next fold of the same entries."""
        return {**self.excluded, **faults}

    def why_excluded(self, metric: str, subject: str) -> str | None:
        """Return the reason why the events of a subject become dead letters in this batch; `None` if they do not."""
        return self.excluded.get((metric, subject)) or self.excluded.get((metric, None))

    def encode(self) -> bytes:
        """Return the batch, `ids` and `ledger` in the msgpack form that `apply.lua` reads; fill `batch.closes`."""
        return self.batch.encode(self.ids, self.ledger)
