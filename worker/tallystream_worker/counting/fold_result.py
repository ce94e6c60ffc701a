"""The result of folding several entries: a batch for the script, dead letters, and the changes of the ledger."""

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
"""A metric and a subject whose events cannot be counted in this batch."""

OVERFLOW: Final = "the total would exceed +-(2^53 - 1), or the value of its key is not a whole number"
"""The reason in the dead letters of a total that cannot take its delta."""


@dataclass(frozen=True, slots=True)
class DeadEntry:
    """A dead letter that a batch adds: events that cannot be counted, encoded as an entry.

    Attributes:
        source: The stream ID of the entry that the events come from.
        reason: Why they cannot be counted.
        events: The number of events.
        deliveries: How often the entry was delivered.
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
        batch: The sums, votes and ids, for the script.
        excluded: The metrics and subjects whose events become dead letters in this batch, each with the reason.
        entries: The entries that are acknowledged when the batch is applied.
        settled: By metric, the events in the batch.
        counted: By metric, the events of `settled` that no rule can reject.
        late: By metric, the late events that are not counted.
        late_counted: By metric, the late events that are counted.
        retracted: By metric, the events that were retracted and are not counted.
        dead: The dead letters: events that cannot be counted.
        has_misrouted: Whether a subject belongs to another partition, by the rules of this fold.
        conflicts: How often the batch was stale before: another worker had applied some of its entries.
        appended: The events that the ledger's `appended` does not include yet: those of plain entries, and of entries
            that are older than the generation.
        plain: The number of entries that contain the events of `appended`.
        plain_events: The events of plain entries.
        sample: The payload of the first entry that could be decoded.
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
        """The stream IDs of the entries that the batch acknowledges."""
        return [entry.id for entry in self.entries]

    @property
    def ledger(self) -> dict[str, int]:
        """By ledger field, the number to add: `outcome` in all, and `outcome@metric` by metric; zeros are left out."""
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
        """Return the exclusions for the next fold of these entries: the present ones, and the totals as overflows."""
        return {**self.excluded, **dict.fromkeys(totals, OVERFLOW)}

    def encode(self) -> bytes:
        """Return the batch, the entry IDs and the ledger changes in the msgpack form that `apply.lua` reads."""
        return self.batch.encode(self.ids, self.ledger)
