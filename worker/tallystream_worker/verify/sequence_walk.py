"""Checks that the entries of each producer follow each other without a gap or a repeat. Pure: no Redis, no files.

A producer numbers its entries 1, 2, 3, ...; a source of an ingest numbers each by the offset at which it ends, so its
numbers only ascend. Memory: about 200 bytes for each producer, whose names are kept as hashes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tallystream.wire.codec import COPIED, stated_events, was_sequenced
from tallystream.wire.stream_id import StreamID, id_text, parse_id

if TYPE_CHECKING:
    from tallystream_worker.counting.entry import Entry

SOURCE: Final = b"file:"
"""The beginning of the name of a source of an ingest."""


@dataclass(frozen=True, slots=True)
class Link:
    """One entry, without its events.

    Attributes:
        id: Its stream ID.
        events: The number of events that it states.
        producer: The name of its producer; `None` if it has none: it was decided, copied, or added by another client.
        sequence: Its number; 0 without a producer.
        is_gated: Whether one of our scripts appended it, which also added its events to the ledger.
        content: The entry with its events, an `Entry` or `ArchivedRows`; `None` if they were not read. Two links are
            equal whatever it is.
    """

    id: StreamID
    events: int
    producer: bytes | None = None
    sequence: int = 0
    is_gated: bool = False
    content: Any = field(default=None, compare=False, repr=False)


def link_of(entry: Entry) -> Link:
    """Return the link of an entry of a stream."""
    fields = entry.fields
    producer, sequence = fields.get(b"p"), fields.get(b"q", b"")
    if producer in (None, COPIED) or not sequence.isdigit() or b"v" not in fields:
        producer, sequence = None, b"0"
    return Link(parse_id(entry.id), stated_events(fields), producer, int(sequence), was_sequenced(fields), entry)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault in the numbers of a producer: an entry whose number does not follow that of its entry before.

    Attributes:
        is_repeat: Whether the entry, or a later one, came before; else entries are missing before it.
        text: Which entry, and what was expected.
    """

    is_repeat: bool
    text: str


class SequenceWalk:
    """Checks the numbers of each producer's entries in one partition, which are added in the order of their IDs.

    Call `add` for each entry. It also counts the entries and their events. At the end, `take` and `left` return the
    last entries of the producers.

    Args:
        is_whole: Whether the first entry that is added is the first that was ever appended. If not, the first entry of
            a producer may have any number.
    """

    def __init__(self, *, is_whole: bool) -> None:
        self._is_whole = is_whole
        self._last: dict[int, tuple[int, StreamID]] = {}  # by hash of a name, the last number and its entry
        self.first: StreamID | None = None
        """The ID of the first entry since the walk began or was interrupted; `None` before it."""
        self.last: StreamID = (0, 0)
        """The ID of the last entry that was added; `(0, 0)` before the first."""
        self.entries = self.events = 0
        """The numbers of all entries that were added, and of the events in them; `interrupt` does not reset them."""
        self.gated_entries = self.gated_events = 0
        """The same, of entries that scripts appended."""

    @property
    def is_whole(self) -> bool:
        """Whether the walk began with the first entry that was ever appended, and `interrupt` was not called.

        It is the argument of the constructor until then. A gap that `add` finds does not change it.
        """
        return self._is_whole

    @property
    def begins(self) -> StreamID:
        """The ID from which every entry was added, up to the last.

        `(0, 0)` if the walk is whole. If it is not, the ID of the first entry since it began or was interrupted;
        `(2**64, 0)`, which is after every ID, before there is one.
        """
        return (0, 0) if self._is_whole else self.first or (2**64, 0)

    def interrupt(self) -> None:
        """Note that entries may be missing before the next one, and forget the last entry of each producer."""
        self._is_whole = False
        self._last.clear()
        self.first = None

    def add(self, link: Link) -> Fault | None:
        """Add the next entry; return what is wrong with its number, `None` if nothing is or it has no producer.

        A repeat is wrong: a number that is not above that of the producer's entry before. A gap in the numbers is
        wrong, unless the producer is an ingested file. If `is_whole`, a first number other than 1 is a gap too.
        """
        self.first = self.first or link.id
        self.last = link.id
        self.entries += 1
        self.events += link.events
        self.gated_entries += link.is_gated
        self.gated_events += link.events if link.is_gated else 0
        if link.producer is None:
            return None
        name = hash(link.producer)
        before = self._last.get(name)
        if before is None:
            self._last[name] = (link.sequence, link.id)
            if not self._is_whole or link.sequence == 1 or link.producer.startswith(SOURCE):
                return None
            return Fault(is_repeat=False, text=f"{_entry(link)} is the first of its producer")
        if link.sequence <= before[0]:
            return Fault(
                is_repeat=True, text=f"{_entry(link)} comes after number {before[0]:,} at {id_text(before[1])}"
            )
        self._last[name] = (link.sequence, link.id)
        if link.sequence == before[0] + 1 or link.producer.startswith(SOURCE):
            return None
        return Fault(is_repeat=False, text=f"{_entry(link)} follows on number {before[0]:,} at {id_text(before[1])}")

    def take(self, producer: bytes) -> tuple[int, StreamID] | None:
        """Return the number and the ID of a producer's last entry that is no repeat, and forget the producer.

        So a second call returns `None`, and `add` takes the next entry of the producer for its first. `None` also if
        the producer has no entry since the walk began or was interrupted.
        """
        return self._last.pop(hash(producer), None)

    def left(self) -> list[StreamID]:
        """Return the ID of each producer's last entry that is no repeat.

        Producers that `take` was called for are left out. A producer that had an entry after `take` is included again.
        Only entries since the walk began or was interrupted are known.
        """
        return [last for _, last in self._last.values()]


def _entry(link: Link) -> str:
    return f"entry {id_text(link.id)}, number {link.sequence:,} of {(link.producer or b'').decode(errors='replace')},"
