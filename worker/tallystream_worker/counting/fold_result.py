"""What the fold makes of several entries: a batch for the script, dead letters, and the changes of the ledger."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tallystream.rules.batch import Batch
    from tallystream.wire.codec import Payload
    from tallystream_worker.counting.entry import Entry

FoldFault = tuple[str, str]
"""A metric and a subject of it, of which no event can be counted in this batch."""

OVERFLOW: Final = "the total would leave +-(2^53 - 1), or its key holds something else than a whole number"
"""The reason why events of a rejected total become dead letters."""


@dataclass(frozen=True, slots=True)
class DeadEntry:
    """Events that cannot be counted, as an entry that could be appended again."""

    source: str
    reason: str
    events: int
    deliveries: int
    fields: Mapping[bytes, bytes]
    metric: str = ""


@dataclass(slots=True)
class FoldResult:
    """What several entries add up to.

    Attributes:
        batch: The sums, votes and ids, for the script.
        excluded: The reason for each metric and subject whose events become dead letters in this batch.
        entries: The entries that are acknowledged when the batch is applied.
        settled: By metric, the events in the batch.
        counted: By metric, those of them that no rule can reject.
        late: By metric, the events that are set aside as too late.
        late_counted: By metric, the events that came late and are counted all the same.
        retracted: By metric, the events that were retracted, and are not counted.
        dead: The events that cannot be counted.
        has_misrouted: Whether a subject belongs to another partition, by these rules.
        conflicts: How often the batch was stale before: another worker had applied some of its entries.
        appended: Events that are not in the ledger's `appended` yet: those of plain entries, and of entries that are
            older than the generation.
        plain: The number of entries that hold them.
        plain_events: The events of plain entries.
        sample: The events of the first entry that could be decoded.
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
    has_misrouted: bool = False
    conflicts: int = 0
    appended: int = 0
    plain: int = 0
    plain_events: int = 0
    sample: Payload | None = None

    @property
    def ids(self) -> list[str]:
        """The stream IDs of the entries."""
        return [entry.id for entry in self.entries]

    @property
    def ledger(self) -> dict[str, int]:
        """By ledger field, the events to add: in all, and `outcome@metric` for each metric."""
        moves = Counter({"appended": self.appended, "entries:plain": self.plain, "entries:settled": len(self.entries)})
        moves["plain"] = self.plain_events
        for outcome, by_metric in (("counted", self.counted), ("late", self.late), ("retracted", self.retracted)):
            for metric, events in by_metric.items():
                moves[outcome] += events
                moves[f"{outcome}@{metric}"] += events
        for metric, events in self.late_counted.items():
            moves[f"late-counted@{metric}"] += events
        for dead in self.dead:
            moves["dead"] += dead.events
            if dead.metric:
                moves[f"dead@{dead.metric}"] += dead.events
        return {name: events for name, events in moves.items() if events}

    def excluding(self, totals: Iterable[FoldFault]) -> Mapping[FoldFault, str]:
        """Return what to exclude from the next fold of these entries, after the server rejected some totals."""
        return {**self.excluded, **dict.fromkeys(totals, OVERFLOW)}

    def encode(self) -> bytes:
        """Return the batch as the script reads it."""
        return self.batch.encode(self.ids, self.ledger)
