"""What entries add up to: the batch for the script, what is parked, and what moves in the ledger."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tallystream.rules.batch import Batch
    from tallystream.wire.codec import Payload


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
    """What several entries add up to, and what else must be said of them.

    Attributes:
        batch: The sums, votes and ids, for the script.
        ids: The entries that are acknowledged when the batch is applied.
        settled: By metric, the events in the batch.
        counted: By metric, those of them that no rule can reject.
        late: By metric, the events that are set aside as too late.
        late_counted: By metric, the events that came late and are counted all the same.
        retracted: By metric, the events that were taken back later, and are passed over.
        parked: The events that are not counted.
        appended: Events that no gate has put into the ledger yet: those of plain entries, and whatever is older than
            the generation that is counted.
        plain: The entries that hold them.
        plain_events: The events of plain entries.
        sample: The events of the first entry that could be read, for whoever wants to know what comes.
    """

    batch: Batch
    ids: list[str] = field(default_factory=list)
    settled: Counter[str] = field(default_factory=Counter)
    counted: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    late_counted: Counter[str] = field(default_factory=Counter)
    retracted: Counter[str] = field(default_factory=Counter)
    parked: list[DeadEntry] = field(default_factory=list)
    appended: int = 0
    plain: int = 0
    plain_events: int = 0
    sample: Payload | None = None

    @property
    def ledger(self) -> dict[str, int]:
        """By ledger field, the events to add: in all, and `outcome@metric` for each metric."""
        moves = Counter({"appended": self.appended, "entries:plain": self.plain, "entries:settled": len(self.ids)})
        moves["plain"] = self.plain_events
        for outcome, by_metric in (("counted", self.counted), ("late", self.late), ("retracted", self.retracted)):
            for metric, events in by_metric.items():
                moves[outcome] += events
                moves[f"{outcome}@{metric}"] += events
        for metric, events in self.late_counted.items():
            moves[f"late-counted@{metric}"] += events
        for parked in self.parked:
            moves["dead"] += parked.events
            if parked.metric:
                moves[f"dead@{parked.metric}"] += parked.events
        return {name: events for name, events in moves.items() if events}

    def encode(self) -> bytes:
        """Return the batch as the script reads it."""
        return self.batch.encode(self.ids, self.ledger)
