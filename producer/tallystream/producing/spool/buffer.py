"""The spool: a buffer on disk. What was emitted survives the death of its process, and is delivered once.

Events are written as they come, unrouted. What is to be sent is *cut*: the events between two positions become one
entry for each partition, with the next sequences. A cut is written before anything of it is sent, and the same events
give the same entries, so whoever takes over a dead process's spool sends the same entries under the same names, and
the gate lets through those that are missing.

When the log goes on in another one, with other partitions, it is written down how far each queue had come in the closed
log. From that follows which events of which cuts are not in it: these are cut anew, for the new partitions.
"""

from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from tallystream.errors import ConfigurationError, SpoolError
from tallystream.producing.buffer import Buffer, BufferSettings, partition_for
from tallystream.producing.partition_queue import new_name
from tallystream.producing.spool import records
from tallystream.producing.spool.segments import MAX_BODY, SegmentedLog
from tallystream.storage.keys import FIRST_LOG, MAX_PARTITIONS
from tallystream.wire.packer import EntryBuilder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    import msgspec

    from tallystream.producing.partition_queue import SealedEntry
    from tallystream.storage.keys import Layout

Sync = Literal["os", "disk"]

_IN_FLIGHT: Final = 8
"""Cuts that are on their way at once: bounds what is held in memory."""


@dataclass(frozen=True)
class SpoolSettings:
    """Where events are spooled, how much, and how surely; see `Producer`."""

    folder: Path
    most_bytes: int
    sync: Sync
    namespace: str

    def __post_init__(self) -> None:
        if self.most_bytes < 2**20:
            raise ConfigurationError(f"spool_bytes must be at least 1,048,576, not {self.most_bytes}")
        if self.sync not in ("os", "disk"):
            raise ConfigurationError(f"spool_sync must be os or disk, not {self.sync!r}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".{new_name()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigurationError(
                f"spool {self.folder} cannot be written ({error.strerror}): name a folder that can"
            ) from None


class Spool(Buffer):
    """A buffer in a journal; safe across threads.

    Args:
        settings: As of any buffer; the limits on memory do not apply.
        spool: Where, and how much.
        journal: The journal of a dead process, to be delivered; a new one is begun where none is given.

    Raises:
        SpoolError: what the journal holds is of another deployment.
    """

    def __init__(self, settings: BufferSettings, spool: SpoolSettings, journal: SegmentedLog | None = None) -> None:
        super().__init__(replace(settings, buffer_events=2**62, buffer_bytes=2**62))
        self._spool = spool
        self._journal = journal
        self._cut_at = self._confirmed_at = 0
        self._flight: deque[tuple[int, int]] = deque()  # cycle and end of each cut that is on its way
        self._planned: deque[records.EntryPlan] = (
            deque()
        )  # what a dead process had cut, or must be cut anew for another log
        self._sealed: deque[records.EntryPlan] = deque()  # what is on its way, as in `_flight`
        self._uncut = 0
        self._cuts = random.randrange(MAX_PARTITIONS)  # noqa: S311  # so that producers do not go round in step
        self._log = FIRST_LOG
        self.names: list[str] = []
        """The queues' names, by partition."""
        self._sequences: list[int] = []
        if journal is not None:
            self._recover(journal)

    @property
    def size(self) -> int:
        """Bytes in the spool."""
        return 0 if self._journal is None else self._journal.size

    @property
    def is_delivered(self) -> bool:
        """Whether everything that is in it is confirmed."""
        with self._lock:
            return self._is_delivered()

    @property
    def log(self) -> int | None:
        """The log whose partitions the queues are for; `None` before there are any."""
        return self._log if self.names else None

    def covers(self, cycle: int) -> bool:
        """Tell whether what was sealed in a cycle is cut anew when the log moves."""
        return any(cycle == each for each, _ in self._flight)

    @property
    def confirmed_sequences(self) -> list[int]:
        """By partition, the sequence before the first that is to be sent."""
        first = list(self._sequences)
        for cut in reversed(self._planned):
            for partition, sequence, _ in cut.entries:
                if sequence > 0:
                    first[partition] = sequence - 1
        return first

    def put(
        self, route: int, metric: str, subject: str, amount: int, at: float, actor: str | None, id_: str | None
    ) -> bool:
        """Write one valid event; see `Buffer.take`. `route` is not looked at: events are routed when they are cut.

        Raises:
            SpoolError: it could not be written, and was not taken.
        """
        del route
        body = records.encode((metric, subject, amount, at, actor, id_))
        with self._lock:
            if (self.is_closing or self._failure or not self._has_room()) and not self._make_room():
                return False
            journal = self._open_journal()
            if journal.is_due:
                self._rotate(journal)
            journal.write(records.EVENT, body)
            self.emitted += 1
            self._uncut += 1
            if self._uncut >= self._entry_events:
                self.hurry.set()
        return True

    def open(self, layout: Layout) -> None:
        """Learn the partitions: those of the log that entries were cut for, where some were.

        Raises:
            SpoolError: entries were cut for another number of partitions.
        """
        with self._lock:
            if self.names and (len(self.names), self._log) != (layout.partitions, layout.log):
                raise SpoolError(
                    f"{self._spool.folder}: what is spooled was sealed for {len(self.names)} partitions, "
                    f"and there are {layout.partitions}: deliver it where it belongs"
                )
            if not self.names:
                self.names = [new_name() for _ in layout.keys]
                self._sequences = [0] * layout.partitions
                self._log = layout.log
                if self._journal is not None:
                    self._write(self._journal, records.STATE, self._state())

    def move(self, layout: Layout, lasts: Sequence[int], sequences: Sequence[int]) -> None:
        """Cut anew, for another log's partitions, what the closed log has not taken.

        Args:
            layout: The log that is written to from here on.
            lasts: By partition of the closed one, the last sequence that it has.
            sequences: By partition of the new one, the entries that are sent there from elsewhere first.

        Raises:
            SpoolError: that could not be written down; nothing has changed.
        """
        with self._lock:
            moved = records.TopicSwitch(layout.log, [new_name() for _ in layout.keys], list(sequences), list(lasts))
            if self._journal is not None:
                self._write(self._journal, records.MOVE, moved)
            self._planned.extendleft(reversed(self._sealed))
            self._flight.clear()
            self._sealed.clear()
            self._move(moved)

    def rename(self, partition: int, name: str, base: int) -> None:
        """Remember that a queue begins again, before anything is sent under its new name."""
        with self._lock:
            journal = self._open_journal()
            rename = records.QueueRename(partition, name, base)
            self._write(journal, records.RENAME, rename)
            self._begin_again(rename)

    def seal(self) -> tuple[int, list[tuple[int, EntryBuilder]]]:
        """Cut the next events, and return them packed by partition; nothing while enough is on its way.

        Raises:
            SpoolError: the cut could not be written; nothing of it may be sent.
        """
        with self._lock:
            cycle = self._cycle
            journal = self._journal
            if journal is None or len(self._flight) >= _IN_FLIGHT:
                return cycle - 1, []
            planned = self._planned[0] if self._planned else None
            cut = planned or records.EntryPlan(self._cut_at, journal.end, [])
            if not cut.entries:
                cut.turn, cut.spread = self._cuts % len(self.names), sorted(self.spread)
        packs, at, events = self._pack(journal, cut, bounded=planned is None)
        with self._lock:
            if at == cut.start:
                return cycle - 1, []
            cut.end = at
            if not cut.entries:
                cut.entries = [(p, self._sequences[p] + 1, pack.events) for p, pack in sorted(packs.items())]
                if cut.entries:
                    self._write(journal, records.CUT, cut)
                    self._cuts += 1
                for partition, sequence, _ in cut.entries:
                    self._sequences[partition] = sequence
            if planned is not None:
                self._planned.popleft()
            self._uncut = max(0, self._uncut - events)
            self._cut_at = max(self._cut_at, at)
            self._cycle += 1
            self._sealed_at = time.monotonic()
            self._flight.append((cycle, at))
            self._sealed.append(cut)
            if self._planned or self._cut_at < journal.end:
                self.wake.set()
            return cycle, [(p, packs[p]) for p, sequence, _ in cut.entries if sequence > 0 and p in packs]

    def settle(self, confirmed: Sequence[SealedEntry], cycle: int) -> None:
        """Let go of confirmed entries, and of the files that hold nothing else."""
        with self._changed:
            self.appended += sum(entry.events for entry in confirmed)
            before = self._confirmed_at
            while self._flight and self._flight[0][0] <= cycle:
                self._confirmed_at = self._flight.popleft()[1]
                self._sealed.popleft()
            if not self._flight and not self._planned:
                self._confirmed_at = self._cut_at
            if self._confirmed_at != before and self._journal is not None:
                self._journal.drop(self._confirmed_at)
            if confirmed or self._confirmed_at != before:
                self._changed.notify_all()

    def release(self) -> None:
        """Let go of the files, once nobody writes any more; remove them where everything is confirmed."""
        with self._lock:
            if self._journal is not None:
                self._journal.close(remove=self._is_delivered())
                self._journal = None

    def abandon(self) -> None:
        """Close what a fork has copied: the files, and the lock on them, are the parent's."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    # -- with the lock held -----------------------------------------------------------------------------

    def _has_room(self) -> bool:
        return self._journal is None or self._journal.size < self._spool.most_bytes

    def _full_text(self) -> str:
        return f"the spool holds {self.size:,} bytes, its limit is {self._spool.most_bytes:,}"

    def _holds_unsealed(self) -> bool:
        """Whether events, and not only what is known of them, lie behind the last cut."""
        journal = self._journal
        return journal is not None and any(
            kind == records.EVENT for kind, _, _ in journal.read(self._cut_at, journal.end)
        )

    def _is_delivered(self) -> bool:
        return not self._flight and not self._planned and not self._holds_unsealed()

    def _target(self) -> int:
        return self._journal.end if self._holds_unsealed() and self._journal else self._cut_at

    def _reached(self, target: int) -> bool:
        return self._confirmed_at >= target or self._is_delivered()

    def _open_journal(self) -> SegmentedLog:
        if self._journal is None:
            self._journal = SegmentedLog.create(self._spool.folder, in_sync=self._spool.sync == "disk")
        return self._journal

    def _rotate(self, journal: SegmentedLog) -> None:
        journal.rotate()
        self._force(journal, records.STATE, records.encode(self._state()))

    def _write(self, journal: SegmentedLog, kind: int, what: msgspec.Struct) -> None:
        if journal.is_due:
            self._rotate(journal)
        self._force(journal, kind, records.encode(what))

    def _force(self, journal: SegmentedLog, kind: int, body: bytes) -> None:
        """Write what is needed to deliver what is there, on a full disk as well."""
        try:
            journal.write(kind, body)
        except SpoolError:
            if not journal.make_room():
                raise
            journal.write(kind, body)

    def _state(self) -> records.QueueState:
        return records.QueueState(self._spool.namespace, self._cut_at, self.names, self._sequences, self._log)

    # -- reading back -----------------------------------------------------------------------------------

    def _pack(
        self, journal: SegmentedLog, cut: records.EntryPlan, *, bounded: bool
    ) -> tuple[dict[int, EntryBuilder], int, int]:
        """Pack events by partition; return the packs, how far that came, and how many events there were."""
        packs: dict[int, EntryBuilder] = {}
        at, events = cut.start, 0
        for kind, body, after in journal.read(cut.start, cut.end):
            at = after
            if kind != records.EVENT:
                continue
            event = records.read_event(body)
            if any(partition_for(event, of, spread, turn) not in left for of, left, turn, spread in cut.left):
                continue
            partition = partition_for(event, len(self.names), cut.spread, cut.turn)
            pack = packs.get(partition)
            if pack is None:
                pack = packs[partition] = EntryBuilder()
            pack.add(*event)
            events += 1
            if bounded and (pack.events >= self._entry_events or pack.size >= self._entry_bytes):
                break
        return packs, at, events

    def _recover(self, journal: SegmentedLog) -> None:
        """Read what a dead process has left: its queues, its cuts, and where its last whole record ends."""
        at = cut_at = end = journal.start
        for kind, body, after in journal.read(journal.start, journal.end):
            at = after
            if kind == records.STATE:
                state = records.read_state(body)
                if state.namespace != self._spool.namespace:
                    raise SpoolError(f"{journal.folder} holds events of {state.namespace}, not {self._spool.namespace}")
                if not self.names:
                    self.names, self._sequences, self._log = state.names, state.sequences, state.log
            elif kind == records.CUT:
                cut = records.read_cut(body)
                for partition, sequence, _ in cut.entries:
                    self._sequences[partition] = sequence
                end = max(end, cut.end)
                anew = next((each for each in self._planned if not each.entries and each.start == cut.start), None)
                if anew is not None:
                    anew.entries, anew.turn, anew.spread = cut.entries, cut.turn, cut.spread
                elif cut.start >= journal.start:
                    self._planned.append(cut)
                else:  # its first events are gone: they were removed because all of it was confirmed
                    cut_at = max(cut_at, cut.end)
            elif kind == records.RENAME:
                self._begin_again(records.read_rename(body))
            elif kind == records.MOVE:
                self._move(records.read_move(body))
        if journal.end - at > MAX_BODY:
            raise SpoolError(f"{journal.folder} is damaged at position {at:,}: look at it before it is delivered")
        journal.end_at(at)
        self._cut_at, self._confirmed_at = max(cut_at, end), cut_at
        self.emitted = sum(kind == records.EVENT for kind, _, _ in journal.read(cut_at, at))

    def _move(self, moved: records.TopicSwitch) -> None:
        """Leave of each cut what the closed log has not taken, to be cut anew."""
        of = len(self.names)
        self._log, self.names, self._sequences = moved.log, moved.names, moved.sequences
        planned, self._planned = self._planned, deque()
        for cut in planned:
            if not cut.entries:  # it came from yet another log, and nothing of it was sent to this one
                self._planned.append(cut)
            elif left := [partition for partition, sequence, _ in cut.entries if sequence > moved.lasts[partition]]:
                self._planned.append(
                    records.EntryPlan(cut.start, cut.end, [], [*cut.left, (of, left, cut.turn, cut.spread)])
                )

    def _begin_again(self, rename: records.QueueRename) -> None:
        self.names[rename.partition] = rename.name
        self._sequences[rename.partition] -= rename.base
        for cut in (*self._sealed, *self._planned):
            cut.entries = [(p, s - rename.base if p == rename.partition else s, n) for p, s, n in cut.entries]


def orphaned_segments(spool: Path, known: Collection[str] = ()) -> Iterator[SegmentedLog]:
    """Take over, one by one, the journals whose owners have died; not those whose folders' names are `known`."""
    for folder in sorted(spool.iterdir()) if spool.is_dir() else ():
        if folder.name not in known and folder.is_dir() and (journal := SegmentedLog.claim(folder)) is not None:
            yield journal
