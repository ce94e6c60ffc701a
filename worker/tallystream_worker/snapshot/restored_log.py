"""What the log adds to a snapshot, entry by entry: books, sequences, and which entries are to be counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.storage.keys import FIRST
from tallystream.wire.codec import stated_events, was_decided, was_sequenced
from tallystream.wire.stream_id import parse_id
from tallystream_worker.counting.entry import Entry

if TYPE_CHECKING:
    from tallystream_worker.snapshot.load import TableLoader
    from tallystream_worker.snapshot.point_in_time import SnapshotPosition

_UNCOUNTED: Final = b"0"
"""The mark of a decided entry that no generation has counted yet."""


class RestoredLog:
    """Adds up the entries of one partition's log, in order.

    Args:
        position: The moment of the snapshot.
        generation: Of its counters.
        load: What was loaded of it.
    """

    def __init__(self, position: SnapshotPosition, generation: int, load: TableLoader) -> None:
        self.position = position
        self.pending = set(position.pending)
        self._generation = generation
        self.producers = dict(load.producers)
        self.queue: list[Entry] = []
        self.entries = 0
        self.handed = 0
        """Entries that had been handed out at the snapshot's moment: some applied, some pending."""
        self.last = ""
        self._delivered, self._generated = parse_id(position.delivered), parse_id(position.generated)
        self._ledger = {name: value for name, value in load.ledger.items() if not name.startswith("entries:")}
        self._gated = self._settled = self._settled_plain = 0
        self._settled_before = load.ledger.get("entries:settled", 0)
        self.missing = self._ledger.get("appended", 0) - sum(
            value for name, value in self._ledger.items() if _is_outcome(name)
        )

    def add(self, entry: Entry) -> Entry:
        """Note an entry; return it as it is to be appended."""
        id_, events = parse_id(entry.id), stated_events(entry.fields)
        gated = was_sequenced(entry.fields)
        counted = was_decided(entry.fields, self._generation) and id_ <= self._generated
        applied = id_ <= self._delivered and entry.id not in self.pending
        self.handed += id_ <= self._delivered
        self.last = entry.id
        fields = dict(entry.fields)
        if was_decided(fields):
            # Its effect is in the snapshot, or it is to be counted like any other; `appended` has it in both cases.
            fields[b"d"] = b"%d" % FIRST if counted else _UNCOUNTED
        if id_ > self._generated and gated:
            self._ledger["appended"] = self._ledger.get("appended", 0) + events
            if b"q" in fields:
                producer = fields[b"p"].decode(errors="replace")
                self.producers[producer] = f"{fields[b'q'].decode(errors='replace')} {entry.id}"
        elif not applied and gated and not counted:
            self.missing -= events
        self._gated += gated
        self._settled += applied
        self._settled_plain += applied and not gated
        self.entries += not applied
        return Entry(entry.id, fields)

    @property
    def gone(self) -> int:
        """Entries that are in the snapshot's counters, and that the log was not found to hold."""
        return max(0, self._settled_before - self._settled)

    def ledger(self) -> dict[str, int]:
        """Return the books: those of the snapshot, what was appended since, and what is missing as trimmed."""
        books = {**self._ledger, "entries:gated": self._gated, "entries:retired": self.gone}
        books |= {"entries:settled": self._settled + self.gone, "entries:plain": self._settled_plain + self.gone}
        if self.missing > 0:
            books["trimmed"] = books.get("trimmed", 0) + self.missing
        return books


def _is_outcome(name: str) -> bool:
    return name in ("counted", "duplicate", "late", "dead", "trimmed", "retracted") or (
        name.startswith("rejected:") and "@" not in name
    )
