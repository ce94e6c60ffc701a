"""Adds up the entries of a restored stream: its ledger, its sequences, and the entries that are still to be counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.storage.keys import FIRST, FIRST_RULES, REAPED, REAPED_SPOOL, UNORDERED
from tallystream.wire.codec import stated_events, was_decided, was_sequenced
from tallystream.wire.stream_id import parse_id
from tallystream_worker.counting.entry import Entry
from tallystream_worker.snapshot.uncounted import decode_uncounted, origin

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tallystream_worker.snapshot.load import TableLoader
    from tallystream_worker.snapshot.point_in_time import SnapshotPosition

_UNCOUNTED: Final = b"0"
"""The generation, in a decided entry, that marks it as not counted yet by any generation."""


def first_later(stream: Iterable[Entry], producers: Mapping[str, str], lost: Iterable[tuple[str, int]]) -> str | None:
    """Return the ID of the first entry that was surely appended after the server lost the end of its log.

    The snapshot contains that end. If the server's clock is slow after the loss, the next entries get earlier IDs
    than the last one of the snapshot, so their IDs do not show that the snapshot lacks them. But an entry is later in
    each of these cases: its sequence is above that of its producer in the snapshot; it is a lost entry that was sent
    again; or the snapshot has no record of its producer, although it would have one. (A record is removed only if the
    producer was silent for long: then the entry's ID is below the horizon of the snapshot.)

    Args:
        stream: The entries of the server's stream, up to the last ID of the snapshot, in order.
        producers: The records of producers in the snapshot, and its horizons: the records of producers without a later
            entry may be removed. See `TableLoader`.
        lost: The producers and sequences of entries that the archive has, and the stream lacks: see `origin`.

    Returns:
        The ID; all entries after it are later, too. `None` if no entry shows the loss: plain and decided entries have
        no producer, and a producer may have sent its lost entries again without an archive that has the first copies.
    """
    sent_before = frozenset(lost)
    return next((entry.id for entry in stream if _is_later(entry, producers, sent_before)), None)


def _is_later(entry: Entry, producers: Mapping[str, str], lost: frozenset[tuple[str, int]]) -> bool:
    if (sent := origin(entry.fields)) is None:
        return False
    if sent in lost:
        return True
    producer, sequence = sent
    if (known := producers.get(producer)) is not None:
        return sequence > int(known.partition(" ")[0])
    # The snapshot would have a record of the producer, unless it was removed because the producer was silent for long.
    horizon = producers.get(REAPED_SPOOL if producer.startswith("spool:") else REAPED, "0-0 ")
    return parse_id(entry.id) >= parse_id(horizon.partition(" ")[0])


class RestoredLog:
    """Works out the ledger and the producers' records of one partition's restored stream; counts and writes nothing.

    It starts from the snapshot and takes into account each entry that is passed to `add`, in order of IDs. `add`
    returns the entry to append to the restored stream, which may differ in one field, or `None` if the entry is left
    out. After the last one, `ledger` returns the ledger, and `producers` has the records.

    Args:
        position: The position of the snapshot.
        generation: The generation of the snapshot's counters.
        load: The loader that has loaded the snapshot, for its ledger and producers.
    """

    def __init__(self, position: SnapshotPosition, generation: int, load: TableLoader) -> None:
        self.position = position
        """The position of the snapshot."""
        self.pending = set(position.pending)
        """The IDs of the entries that were pending at the snapshot's moment."""
        self._generation = generation
        self.producers = dict(load.producers)
        """By producer, `<sequence> <stream ID>` of its last entry, in the snapshot or in the stream.

        Also the horizons of the snapshot, by name: see `HORIZONS`.
        """
        self.queue: list[Entry] = []
        """Entries to append to the restored stream; only the caller fills and clears it."""
        self.entries = 0
        """Number of entries that `add` has returned, and that were pending or undelivered at the snapshot's moment.

        Entries that were appended after that moment are included.
        """
        self.handed = 0
        """Number of entries that `add` has returned, and that were delivered at the snapshot's moment.

        Some were applied then, and some were pending.
        """
        self.early = 0
        """Number of entries that `add` has returned, and that are up to the `floor` of the snapshot's position."""
        self.newest = FIRST
        """The highest number of a generation that decided one of the returned entries; 1 if none did."""
        self.last = ""
        """The ID of the last added entry, even if `add` left it out; `""` before it."""
        self._floor = parse_id(position.floor)
        self._delivered, self._generated = parse_id(position.delivered), parse_id(position.generated)
        self._ledger = {
            name: value
            for name, value in load.ledger.items()
            if not name.startswith("entries:") or name.startswith((UNORDERED, FIRST_RULES))
        }
        self._uncounted = decode_uncounted(position.uncounted)
        self._gated = self._settled = self._settled_plain = self._plain = 0
        self._settled_before = load.ledger.get("entries:settled", 0)
        self.missing = self._ledger.get("appended", 0) - sum(
            value for name, value in self._ledger.items() if _is_outcome(name)
        )
        """Number of events appended and without an outcome at the snapshot's moment, less those in added entries."""

    def add(self, entry: Entry) -> Entry | None:
        """Add an entry, in order of IDs; return the entry to append to the restored stream, or `None` to leave it out.

        If the server had lost entries, producers sent some of them again. An entry after the snapshot whose sequence is
        not above that of its producer is such a copy, and is left out: the snapshot or an earlier entry has its events.
        But if the snapshot lacks the events, and no earlier entry has them, the copy takes the place of the lost entry.

        The returned entry differs only if its event was decided (counted in the call that appended it). Its field `d`,
        the generation that counted it, becomes 1 if that is the generation of the snapshot, and the snapshot contains
        its effect. Otherwise `d` becomes 0: the event is counted when the entry is delivered, like other events. If the
        entry was acknowledged at the snapshot's moment, the event was counted so already.
        """
        id_, events = parse_id(entry.id), stated_events(entry.fields)
        gated = was_sequenced(entry.fields)
        self.last = entry.id
        sent = origin(entry.fields)
        is_copy = id_ > self._generated and self._is_copy(sent)
        if is_copy and sent not in self._uncounted:
            return None
        if sent is not None:
            self._uncounted.discard(sent)
        counted = was_decided(entry.fields, self._generation) and id_ <= self._generated
        applied = id_ <= self._delivered and entry.id not in self.pending
        self.handed += id_ <= self._delivered
        self.early += id_ <= self._floor
        fields = dict(entry.fields)
        if was_decided(fields):
            self.newest = max(self.newest, int(fields[b"d"]))
            # The snapshot contains its effect, or it is to be counted like other entries; both are in `appended`.
            fields[b"d"] = b"%d" % FIRST if counted else _UNCOUNTED
        if is_copy and sent is not None:
            self.missing -= events  # they are in `appended`, by the lost entry
            if self.producers[sent[0]].partition(" ")[0] == str(sent[1]):
                self.producers[sent[0]] = f"{sent[1]} {entry.id}"
        elif id_ > self._generated and gated:
            self._ledger["appended"] = self._ledger.get("appended", 0) + events
            if b"q" in fields:
                producer = fields[b"p"].decode(errors="replace")
                self.producers[producer] = f"{fields[b'q'].decode(errors='replace')} {entry.id}"
        elif not applied and gated and not counted:
            self.missing -= events
        self._gated += gated
        self._settled += applied
        self._settled_plain += applied and not gated
        self._plain += events if applied and not gated else 0
        self.entries += not applied
        return Entry(entry.id, fields)

    def _is_copy(self, sent: tuple[str, int] | None) -> bool:
        if sent is None:
            return False
        known = self.producers.get(sent[0], "0 ")
        return sent[1] <= int(known.partition(" ")[0])

    @property
    def gone(self) -> int:
        """Number of entries that were acknowledged at the snapshot's moment and were not passed to `add`.

        Read it after the last `add`: each such entry that is added makes it smaller.
        """
        return max(0, self._settled_before - self._settled)

    def ledger(self) -> dict[str, int]:
        """Return the ledger of the restored stream, by field; call it after the last `add`.

        It is the ledger of the snapshot; the events that scripts have appended since are added to `appended`. If
        `missing` is above 0, it is added to `trimmed`. Of the snapshot's fields `entries:...`, only `FIRST_RULES` and
        those that begin with `UNORDERED` stay. `entries:gated`, `entries:settled` and `entries:plain` are those of the
        entries that `add` has returned; the last two also contain `gone`. `entries:retired` is `gone`. If the snapshot
        lacks `plain`, it is added.
        """
        account = {**self._ledger, "entries:gated": self._gated, "entries:retired": self.gone}
        account |= {"entries:settled": self._settled + self.gone, "entries:plain": self._settled_plain + self.gone}
        account.setdefault("plain", self._plain)  # the snapshot of a later generation does not have it
        if self.missing > 0:
            account["trimmed"] = account.get("trimmed", 0) + self.missing
        return account


def _is_outcome(name: str) -> bool:
    return name in ("counted", "duplicate", "late", "dead", "trimmed", "retracted") or (
        name.startswith("rejected:") and "@" not in name
    )
