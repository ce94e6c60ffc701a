"""The spool: a buffer on disk. Emitted events survive the death of their process, and are delivered once.

Events are written as they are emitted, without a partition. To be sent, they are *planned*: the events between two
positions become one entry for each partition, with the next sequences. A plan is written before any of its entries is
sent, and the same events always make the same entries. So a process that takes over the spool of a dead process sends
the same entries under the same names, and `append.lua` lets those through that are missing.

When another topic becomes live, the last sequence of each queue in the closed topic is written to the spool. These
sequences determine which events of which plans the closed topic does not have; they are planned again for the
partitions of the new topic.
"""

from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import msgspec

from tallystream.errors import SpoolError
from tallystream.producing.buffer import Buffer, BufferSettings
from tallystream.producing.gate import SPOOL, START
from tallystream.producing.partition_queue import new_name
from tallystream.producing.spool import records
from tallystream.producing.spool.packing import pack
from tallystream.producing.spool.queues import SpoolQueues, new_state
from tallystream.producing.spool.recovery import recover
from tallystream.producing.spool.segments import SegmentedLog
from tallystream.storage.keys import MAX_PARTITIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tallystream.producing.partition_queue import SealedEntry
    from tallystream.producing.spool.settings import SpoolSettings
    from tallystream.storage.keys import Layout
    from tallystream.wire.packer import EntryBuilder

_MAX_IN_FLIGHT: Final = 8
"""Most plans whose entries are unconfirmed at once: bounds the memory that they take."""


class Spool(Buffer):
    """A buffer whose events are in segments (files of records) on disk; safe across threads.

    Used like a `Buffer`, but for another topic call `move` instead of `reopen`, and at the end `release`. Only the
    sending thread calls `seal`, `settle`, `open`, `move` and `rename`. Call `open` before `seal`.

    Args:
        settings: Settings of a buffer, of which `buffer_events` and `buffer_bytes` do not apply.
        spool: Settings of the spool.
        segments: Segments of a dead process, whose events are to be delivered; `None` to create new ones at the first
            `put` or `rename`. `release` closes them; if the constructor raises an error, the caller must.

    Raises:
        SpoolError: the segments belong to another namespace, or are damaged.
        OSError: the segments cannot be read.
    """

    def __init__(self, settings: BufferSettings, spool: SpoolSettings, segments: SegmentedLog | None = None) -> None:
        super().__init__(replace(settings, buffer_events=2**62, buffer_bytes=2**62))
        self._spool = spool
        self._segments = segments
        self._queues = SpoolQueues()
        self._planned_to = self._confirmed_to = 0
        self._events_to = 0  # the position after the last event
        self._in_flight: deque[tuple[int, records.EntryPlan]] = deque()  # the cycle and the plan of each seal
        self._unplanned = 0
        self.is_released = False
        """Whether `release` was called: nothing more is written to files, and no event may be added."""
        self._plans = random.randrange(MAX_PARTITIONS)  # noqa: S311  # producers begin at different partitions
        if segments is not None:
            found = recover(segments, spool.namespace)
            self._queues, self.emitted = found.queues, found.events
            self._planned_to, self._confirmed_to = found.planned_to, found.confirmed_to
            self._events_to = found.events_to

    @property
    def size(self) -> int:
        """Bytes of this buffer's records in files; a confirmed event counts until its whole file is removed.

        0 while there are no files yet, and after `release`.
        """
        return 0 if self._segments is None else self._segments.size

    @property
    def is_delivered(self) -> bool:
        """Whether all events of this buffer are confirmed."""
        with self._lock:
            return self._is_delivered()

    @property
    def topic(self) -> int | None:
        """The topic that the queues belong to; `None` before there are queues."""
        return self._queues.topic if self.names else None

    def covers(self, cycle: int) -> bool:
        """Return whether the plan of a seal is not confirmed yet, so that `move` plans its events again.

        `cycle` is the number that `seal` returned, as in `SealedEntry.cycle`. The caller of `move` must itself send the
        unconfirmed entries of all other seals, before the planned ones.
        """
        return any(cycle == each for each, _ in self._in_flight)

    @property
    def names(self) -> list[str]:
        """The name of each partition's queue; empty before the partitions are known."""
        return self._queues.names

    @property
    def sequences_before_plans(self) -> list[int]:
        """By partition, the sequence before that of the first entry that `seal` must pack by a plan of a dead process.

        A partition without such an entry has its value of `planned_sequences`. Entries in flight, and the entries that
        are sent before the planned ones after a `move`, have this sequence or a lower one. Empty before the partitions
        are known.
        """
        return self._queues.sequences_before_plans

    @property
    def planned_sequences(self) -> list[int]:
        """By partition, the last sequence given to an entry, or 0; a dead process may have sent entries up to it.

        Empty before the partitions are known.
        """
        return list(self._queues.sequences)

    @property
    def since(self) -> list[str]:
        """By partition, a stream ID that no entry of its queue precedes; empty before the partitions are known."""
        return self._queues.since

    def put(
        self, route: int, metric: str, subject: str, amount: int, at: float, actor: str | None, id_: str | None
    ) -> bool:
        """Write one valid event to the spool; return `False` if the spool is full and `when_full` is `drop`.

        It is full if its files have `spool_bytes` or more; then wait or raise an error as `Buffer.put` does. After
        `True`, the caller must set `wake`. `route` is not used: an event gets its partition when it is planned.

        Raises:
            BufferFull, ConfigurationError, TallyError: see `Buffer.put`.
            SpoolError: the event could not be written, and was not added.
        """
        del route
        body = records.encode((metric, subject, amount, at, actor, id_))
        with self._lock:
            if (self.is_closing or self._failure or not self._has_room()) and not self._make_room():
                return False
            try:
                segments = self._open_segments()
                if segments.is_due:
                    self._rotate(segments)
                segments.write(records.EVENT, body)
            except SpoolError as error:
                raise SpoolError(f"the event was not added: {error}") from None
            self._events_to = segments.end
            self.emitted += 1
            self._unplanned += 1
            if self._unplanned >= self._entry_events:
                self.hurry.set()
        return True

    def open(self, layout: Layout, since: Sequence[str] = ()) -> None:
        """Begin a queue for each partition of a layout, unless the spool already has its queues.

        If the spool has files, write the new queues to them.

        Args:
            layout: The layout.
            since: A recent stream ID of each partition, from `newest_ids`; empty if they were not read.

        Raises:
            SpoolError: the spool has queues for another number of partitions or another topic; or it cannot be
                written, and has no queues yet.
        """
        with self._lock:
            if self.names and (len(self.names), self._queues.topic) != (layout.partitions, layout.topic):
                raise SpoolError(
                    f"{self._spool.folder}: the spooled events were sealed for {len(self.names)} partitions, "
                    f"but there are {layout.partitions}: deliver them to the deployment that they were emitted to"
                )
            if not self.names:
                state = new_state(self._spool.namespace, self._planned_to, layout, since)
                if self._segments is not None:
                    self._write(self._segments, records.STATE, state)
                self._queues.restore(state)

    def move(self, layout: Layout, lasts: Sequence[int], sequences: Sequence[int], since: Sequence[str] = ()) -> None:
        """Keep, of each unconfirmed plan, the events that the closed topic lacks, for the partitions of another topic.

        `seal` packs these events again. A plan states which spooled events become which entries (`records.EntryPlan`).

        Args:
            layout: Layout of the topic that is appended to from now on.
            lasts: By partition of the closed topic, the last sequence that it has.
            sequences: By partition of the new topic, how many entries the caller sends there before the planned ones.
                These are entries of confirmed plans that the closed topic has lost.
            since: A recent stream ID of each partition of the new topic; empty if they were not read.

        Raises:
            SpoolError: the move could not be written to the spool; nothing has changed.
        """
        with self._lock:
            names = [new_name(SPOOL) for _ in layout.keys]
            switch = records.TopicSwitch(layout.topic, names, list(sequences), list(lasts), list(since))
            if self._segments is not None:
                self._write(self._segments, records.SWITCH, switch)
            self._queues.planned.extendleft(plan for _, plan in reversed(self._in_flight))
            self._in_flight.clear()
            self._queues.switch(switch)

    def rename(self, partition: int, name: str, base: int, since: str = START) -> None:
        """Record, before anything is sent under it, the new name of a queue: sequence `base + 1` becomes 1.

        No entry of the new name has a stream ID before `since`. After `release`, nothing is written to files.

        Raises:
            SpoolError: the name could not be written to the spool; nothing has changed.
        """
        with self._lock:
            rename = records.QueueRename(partition, name, base, since)
            if not self.is_released:  # else all events are confirmed, and no other process can continue the queue
                self._write(self._open_segments(), records.RENAME, rename)
            self._queues.rename(rename, [plan for _, plan in self._in_flight])

    def seal(self) -> tuple[int, list[tuple[int, EntryBuilder]]]:
        """Pack the events of the next plan; return the number of this seal, and pairs of partition and pack.

        Plans of a dead process or an earlier topic come first; after them, new events are planned, without waiting for
        `linger`, up to the first full entry. A new plan is first written to the spool. If plans or records follow it,
        set `wake`. Return the number of the previous seal, and no packs, if no record follows the last plan or while 8
        plans are unconfirmed. A plan without events, or whose events the closed topics have, makes no packs. An entry
        whose sequence is 0 or lower after a `rename` makes none either.

        Raises:
            SpoolError: the plan could not be written, or its events are damaged; none of its entries may be sent.
            OSError: the events cannot be read from the files.
        """
        queues = self._queues
        with self._lock:
            cycle = self._cycle
            segments = self._segments
            if segments is None or len(self._in_flight) >= _MAX_IN_FLIGHT:
                return cycle - 1, []
            planned = queues.planned[0] if queues.planned else None
            plan = planned or records.EntryPlan(self._planned_to, segments.end, [])
            is_new = not plan.entries
            if is_new:  # a copy: `planned` changes only when the record of the plan is written
                turn = self._plans % len(queues.names)
                plan = msgspec.structs.replace(plan, turn=turn, spread=sorted(self.spread))
        limits = (self._entry_events, self._entry_bytes) if planned is None else None
        packs, at, events = pack(segments, plan, len(queues.names), limits)
        with self._lock:
            if at == plan.start:
                return cycle - 1, []
            plan.end = at
            if is_new:
                plan.entries = [(p, queues.sequences[p] + 1, entry.events) for p, entry in sorted(packs.items())]
                if plan.entries:
                    self._write(segments, records.PLAN, plan)
                    self._plans += 1
                queues.give_out(plan)
            if planned is not None:
                queues.planned.popleft()
            self._unplanned = max(0, self._unplanned - events)
            self._planned_to = max(self._planned_to, at)
            self._cycle += 1
            self._sealed_at = time.monotonic()
            self._in_flight.append((cycle, plan))
            if queues.planned or self._planned_to < segments.end:
                self.wake.set()
            return cycle, [(p, packs[p]) for p, sequence, _ in plan.entries if sequence > 0 and p in packs]

    def settle(self, confirmed: Sequence[SealedEntry], cycle: int) -> None:
        """Count the events of confirmed entries as appended, and remove the files whose events are all confirmed.

        The last file stays. Wake the callers that wait. Pass each entry once, when it is first confirmed or given up.
        `cycle` is the number of the last seal up to which all entries are confirmed.
        """
        with self._changed:
            self.appended += sum(entry.events for entry in confirmed)
            before = self._confirmed_to
            while self._in_flight and self._in_flight[0][0] <= cycle:
                self._confirmed_to = self._in_flight.popleft()[1].end
            if not self._in_flight and not self._queues.planned:
                self._confirmed_to = self._planned_to
            if self._confirmed_to != before and self._segments is not None:
                self._segments.drop(self._confirmed_to)
            if confirmed or self._confirmed_to != before:
                self._changed.notify_all()

    def release(self) -> None:
        """Close the files; if all events are confirmed, remove them, as far as possible.

        Set `is_released`: nothing is written to files after this. If there are no files, or they are closed already,
        do nothing more.
        """
        with self._lock:
            self.is_released = True
            segments, self._segments = self._segments, None
            if segments is not None:
                segments.close(remove=self._is_delivered())

    def abandon(self) -> None:
        """Close the copied file descriptors in the child after a fork: the files and their lock are the parent's."""
        segments, self._segments = self._segments, None
        if segments is not None:
            segments.close()

    # -- called with the lock ---------------------------------------------------------------------------

    def _has_room(self) -> bool:
        return self._segments is None or self._segments.size < self._spool.most_bytes

    def _full_text(self) -> str:
        return f"the spool has {self.size:,} bytes, its limit is {self._spool.most_bytes:,}"

    def _holds_unsealed(self) -> bool:
        """Return whether any events, and not only records of other kinds, follow the last plan."""
        return self._events_to > self._planned_to

    def _is_delivered(self) -> bool:
        return not self._in_flight and not self._queues.planned and not self._holds_unsealed()

    def _target(self) -> int:
        return max(self._events_to, self._planned_to)

    def _reached(self, target: int) -> bool:
        return self._confirmed_to >= target or self._is_delivered()

    def _open_segments(self) -> SegmentedLog:
        if self._segments is None:
            self._segments = SegmentedLog.create(self._spool.folder, in_sync=self._spool.sync == "disk")
        return self._segments

    def _rotate(self, segments: SegmentedLog) -> None:
        """Begin a new file with the state of the queues, so that it can be read without the files before it.

        Raises:
            SpoolError: the file could not be begun.
        """
        state = self._queues.state(self._spool.namespace, self._planned_to)
        segments.rotate(records.STATE, records.encode(state))

    def _write(self, segments: SegmentedLog, kind: int, what: msgspec.Struct) -> None:
        """Write a record that the delivery needs; if that fails, delete the reserve file, and try once more.

        The state that the record describes is not changed here: the caller must change it, after this call.

        Args:
            segments: The files of the spool.
            kind: The kind of the record, as `records` names it.
            what: The content of the record.

        Raises:
            SpoolError: there is no reserve file that can be deleted, or the second attempt failed.
        """
        body = records.encode(what)
        while True:
            try:
                if segments.is_due:
                    self._rotate(segments)
                segments.write(kind, body)
            except SpoolError as error:
                if not segments.make_room():
                    raise SpoolError(f"the spooled events are kept, but cannot be sent: {error}") from None
            else:
                return
