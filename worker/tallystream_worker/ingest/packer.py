"""Packs the events of a file into chunks, one entry at a time for each partition."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tallystream.storage.keys import partition_of
from tallystream.wire import event as rule
from tallystream.wire.packer import EntryBuilder
from tallystream.wire.window import MINUTE
from tallystream_worker.ingest.offsets import Chunk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout
    from tallystream_worker.ingest.lines import BlockEvents, EventFields

_ENTRY_EVENTS: Final = 2000
_ENTRY_BYTES: Final = 64 * 1024
_KNOWN: Final = 200_000


class EventPacker:
    """Checks events and packs them; what is appended already is skipped.

    Args:
        layout: How many partitions there are.
        rules: The declared metrics, `None` where no worker has published them yet.
        offsets: How far the file is appended, for each partition.
        earlier_offsets: The same for each log before this one, whatever its partitions.
    """

    def __init__(
        self,
        layout: Layout,
        rules: Rules | None,
        offsets: list[int],
        earlier_offsets: Sequence[Sequence[int]] = (),
    ) -> None:
        self._partitions = layout.partitions
        self._rules = rules
        self._earlier_offsets = [marks for marks in earlier_offsets if any(marks)]
        floor = max((min(marks) for marks in self._earlier_offsets), default=0)
        self.offsets = [max(mark, floor) for mark in offsets]
        """How far the file was appended before, for each partition."""
        self._begin = list(offsets)
        self._packs = [EntryBuilder() for _ in offsets]
        self._known: dict[str, tuple[str, int]] = {}
        self._metrics: set[str] = set()
        self._needs_check: set[str] = set()  # metrics whose rules have no place for some events
        self._actors: set[str] = set()
        self._checked_until = 0.0  # seconds; a time before it has been checked against the clock
        self.known = 0
        """Events that were appended before, and are skipped."""

    def pack_and_seal(self, fields: EventFields, offset: int) -> tuple[int, Chunk] | None:
        """Take the event that lies at an offset; return the chunk that is full with it, with its partition.

        Raises:
            EventError: the event breaks a rule; it was not taken.
        """
        partition = self.pack(fields, offset)
        if partition is not None and self._is_full(partition):
            return partition, self._seal(partition, offset + 1)
        return None

    def pack(self, fields: EventFields, offset: int) -> int | None:
        """Take the event that lies at an offset; return its partition, `None` where it was appended before.

        Raises:
            EventError: the event breaks a rule; it was not taken.
        """
        metric, subject, amount, actor, at, id_ = fields
        subject, partition = self.route(subject)
        if metric not in self._metrics:
            self._admit_metric(metric)
        if amount != 1:
            rule.check_amount(amount)
        if at is None:
            at = time.time()
        elif not 0 < at < self._checked_until:
            rule.check_at(at, time.time())
            self._checked_until = time.time()
        if actor is not None:
            actor = self.check_actor(actor)
        if id_ is not None:
            id_ = rule.check_text("id", id_, rule.MAX_ID_BYTES)
        if metric in self._needs_check and self._rules is not None:
            self._rules.refuse(metric, amount, actor)
        if self.is_known(subject, partition, offset):
            self.known += 1
            return None
        self._packs[partition].add(metric, subject, amount, at, actor, id_)
        return partition

    def pack_sum(
        self, metric: str, subject: str, minute: int, amounts: tuple[int, int, int], events: int, offset: int
    ) -> None:
        """Take several events of one minute, without actors and ids.

        Args:
            metric: Of all of them.
            subject: Of all of them.
            minute: Whole minutes since 1970.
            amounts: Their sum, the least and the largest of them.
            events: How many they are.
            offset: Where they lie: all of them are appended already, or none is.

        Raises:
            EventError: they break a rule; none was taken.
        """
        subject, partition = self.route(subject)
        if metric not in self._metrics:
            self._admit_metric(metric)
        self._check_minute(minute)
        total, least, most = amounts
        if metric in self._needs_check and self._rules is not None:
            for amount in {least, most}:
                self._rules.refuse(metric, amount, None)
        if self.is_known(subject, partition, offset):
            self.known += events
            return
        self._packs[partition].add_sum(metric, subject, minute, total, events, unit=least == most == 1)

    def pack_units(
        self, metric: str, partition: int | None, minute: int, subjects: list[str], events: list[int]
    ) -> None:
        """Take numbers of events of amount 1 of one minute, by subject, of a metric that `is_summable`.

        Args:
            metric: Of all of them.
            partition: The one that counts the subjects; `None` where they are appended already.
            minute: Whole minutes since 1970.
            subjects: As `route` returns them.
            events: How many of each.

        Raises:
            EventError: they lie too far ahead; none was taken.
        """
        self._check_minute(minute)
        if partition is None:
            self.known += sum(events)
        else:
            self._packs[partition].add_units(metric, minute, subjects, events)

    def splits(self, begin: int, end: int) -> bool:
        """Tell whether only a part of what lies in [begin, end) may be appended already."""
        return any(begin < offset < end for offset in self.offsets) or any(
            begin < max(marks) and min(marks) < end for marks in self._earlier_offsets
        )

    def is_known(self, subject: str, partition: int, offset: int) -> bool:
        """Tell whether an event was appended before: to this partition, or to that of its subject in an earlier log."""
        return offset < self.offsets[partition] or any(
            offset < marks[partition_of(subject, len(marks))] for marks in self._earlier_offsets
        )

    @property
    def boundaries(self) -> set[int]:
        """Offsets at which something ends that was appended before."""
        return set(self.offsets).union(*self._earlier_offsets)

    def is_summable(self, metric: str) -> bool:
        """Tell whether the rules of a metric have a place for every event of amount 1, whoever did it.

        Raises:
            EventError: the metric is not declared.
        """
        if metric not in self._metrics:
            self._admit_metric(metric)
        return metric not in self._needs_check

    def pack_block(self, metric: str, found: BlockEvents, end: int) -> None:
        """Take what a block of lines says that lies before `end`, and does not split (see `splits`)."""
        for (partition, minute), (subjects, actors, moments) in found.visits.items():
            events = len(subjects)
            if end <= self.offsets[partition]:
                self.known += events
            elif events:
                pack = self._packs[partition]
                columns = pack.columns(metric, minute)
                columns[0].extend(subjects)
                columns[1].extend(actors)
                columns[2].extend(moments)
                pack.events += events
                pack.size += sum(map(len, subjects)) + sum(map(len, actors)) + 5 * events
        for (partition, minute), counts in found.units.items():
            if end <= self.offsets[partition]:
                self.known += counts.total()
            else:
                self._packs[partition].add_units(metric, minute, list(counts), list(counts.values()))

    def full_chunks(self, end: int) -> Iterator[tuple[int, Chunk]]:
        """Yield a chunk up to `end` for each partition that has enough for one."""
        for partition in range(self._partitions):
            if self._is_full(partition):
                yield partition, self._seal(partition, end)

    def route(self, subject: str) -> tuple[str, int]:
        """Return a subject in normal form, and the partition that counts it.

        Raises:
            EventError: it is none.
        """
        return self._known.get(subject) or self._admit(subject)

    def check_actor(self, actor: str) -> str:
        """Return an actor in normal form.

        Raises:
            EventError: it is none.
        """
        return actor if actor in self._actors else self._admit_actor(actor)

    def remaining_chunks(self, end: int) -> Iterator[tuple[int, Chunk]]:
        """Yield a chunk up to `end` for each partition that has events left."""
        for partition, pack in enumerate(self._packs):
            if pack.events:
                yield partition, self._seal(partition, end)

    def _is_full(self, partition: int) -> bool:
        pack = self._packs[partition]
        return pack.events >= _ENTRY_EVENTS or pack.size >= _ENTRY_BYTES

    def _seal(self, partition: int, end: int) -> Chunk:
        pack, self._packs[partition] = self._packs[partition], EntryBuilder()
        begin, self._begin[partition] = self._begin[partition], end
        return Chunk(begin, end, pack.events, pack.build())

    def _check_minute(self, minute: int) -> None:
        if not minute * MINUTE < self._checked_until:
            rule.check_at(minute * MINUTE, time.time())
            self._checked_until = time.time()

    def _admit(self, subject: str) -> tuple[str, int]:
        normal = rule.check_text("subject", subject, rule.MAX_SUBJECT_BYTES)
        if len(self._known) >= _KNOWN:
            self._known.clear()
        known = self._known[subject] = (normal, partition_of(normal, self._partitions))
        return known

    def _admit_metric(self, metric: str) -> None:
        rule.check_metric(metric)
        if self._rules is not None:
            self._rules.refuse_undeclared(metric)
            declared = self._rules.metric[metric]
            if declared.once is not None or declared.limit is not None or not declared.exact:
                self._needs_check.add(metric)
        self._metrics.add(metric)

    def _admit_actor(self, actor: str) -> str:
        normal = rule.check_text("actor", actor, rule.MAX_ACTOR_BYTES)
        if len(self._actors) >= _KNOWN:
            self._actors.clear()
        self._actors.add(normal)
        return normal
