"""Packs the events of a file into chunks: for each partition one entry after another."""

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
    """Checks events and packs them into chunks; skips events that were appended before. Sends nothing.

    The methods `pack...` add events. `pack_and_seal`, `full_chunks` and `remaining_chunks` return the chunks to append.
    The offset of an event is that of its line in bytes of text, or the number of its row.

    Args:
        layout: The layout of the live topic, of which only the number of partitions is used.
        rules: The declared metrics; `None` if no worker has published them yet.
        offsets: By partition, the offset before which all its events of the segment were appended. A segment is a part
            of a file that has its own offsets (see `job.SEGMENT`).
        earlier_offsets: A list like `offsets` for each earlier topic, in any order; it has one offset for each
            partition of that topic. An event that any topic has is skipped.
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
        """The offset up to which all events of a partition were appended before, for each partition."""
        self._begin = list(offsets)
        self._packs = [EntryBuilder() for _ in offsets]
        self._known: dict[str, tuple[str, int]] = {}
        self._metrics: set[str] = set()
        self._needs_check: set[str] = set()  # metrics whose rules reject some events
        self._actors: set[str] = set()
        self._checked_until = 0.0  # seconds since 1970; an earlier time is not in the future
        self.known = 0
        """The number of events that were skipped because they were appended before."""

    def pack_and_seal(self, fields: EventFields, offset: int) -> tuple[int, Chunk] | None:
        """Pack the event at an offset; if its partition's chunk is full now, return the partition and the chunk.

        A chunk is full as in `full_chunks`; it then ends at `offset` + 1. Returns `None` if the chunk is not full, or
        if the event was appended before and is skipped. An event without a time gets the present. Skipped events are
        added to `known`.

        Raises:
            EventError: the event breaks a rule; it was not packed.
        """
        partition = self.pack(fields, offset)
        if partition is not None and self._is_full(partition):
            return partition, self._seal(partition, offset + 1)
        return None

    def pack(self, fields: EventFields, offset: int) -> int | None:
        """Pack the event at an offset; return its partition, or `None` if it was appended before and is skipped.

        An event without a time gets the present. Skipped events are added to `known`.

        Raises:
            EventError: the event breaks a rule; it was not packed.
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
        """Pack several events of one metric, subject and minute, without actors and ids, by their sum.

        Args:
            metric: Their metric.
            subject: Their subject.
            minute: Whole minutes since 1970, not negative.
            amounts: The sum, the smallest and the largest of their amounts. `check_rules` must accept every amount.
            events: The number of events.
            offset: An offset of theirs: either all of them were appended before, or none. If all, they are skipped and
                added to `known`.

        Raises:
            EventError: the subject or the metric is not valid, the metric is not declared, or the minute is too far in
                the future; no event was packed.
        """
        subject, partition = self.route(subject)
        if metric not in self._metrics:
            self._admit_metric(metric)
        self._check_minute(minute)
        total, least, most = amounts
        if self.is_known(subject, partition, offset):
            self.known += events
            return
        self._packs[partition].add_sum(metric, subject, minute, total, events, unit=least == most == 1)

    def pack_units(
        self, metric: str, partition: int | None, minute: int, subjects: list[str], events: list[int]
    ) -> None:
        """Pack events of amount 1 of one metric and minute, by their number for each subject.

        Args:
            metric: Their metric, for which `is_summable` is true.
            partition: The partition that counts the subjects; `None` if the events were appended before: then they are
                only added to `known`.
            minute: Whole minutes since 1970, not negative.
            subjects: The subjects, as `route` returns them.
            events: The number of events of each subject.

        Raises:
            EventError: the minute is too far in the future; no event was packed.
        """
        self._check_minute(minute)
        if partition is None:
            self.known += sum(events)
        else:
            self._packs[partition].add_units(metric, minute, subjects, events)

    def splits(self, begin: int, end: int) -> bool:
        """Return whether, of some partition, events from offset `begin` to before `end` may be appended in part.

        If not, of each partition either all these events were appended before, or none: see `is_known`. Which of the
        two is true may differ between partitions.
        """
        return any(begin < offset < end for offset in self.offsets) or any(
            begin < max(marks) and min(marks) < end for marks in self._earlier_offsets
        )

    def is_known(self, subject: str, partition: int, offset: int) -> bool:
        """Return whether an event was appended before, in this topic or an earlier one.

        Args:
            subject: The event's subject, as `route` returns it.
            partition: The subject's partition in this topic.
            offset: The event's offset.
        """
        return offset < self.offsets[partition] or any(
            offset < marks[partition_of(subject, len(marks))] for marks in self._earlier_offsets
        )

    @property
    def boundaries(self) -> set[int]:
        """All offsets up to which a partition of this topic or an earlier one was appended before."""
        return set(self.offsets).union(*self._earlier_offsets)

    def is_summable(self, metric: str) -> bool:
        """Return whether the rules of a metric accept every valid event: it is exact, without `once` and `limit`.

        True for every metric with a valid name if `rules` is `None`. The rules of other metrics reject some amounts or
        events without an actor: see `check_rules`.

        Raises:
            EventError: the metric is not valid, or the rules do not declare it.
        """
        if metric not in self._metrics:
            self._admit_metric(metric)
        return metric not in self._needs_check

    def check_rules(self, metric: str, amount: int) -> None:
        """Check an event without an actor by the rules of its metric, for which `is_summable` was called before.

        Whether the amount is in the range of all amounts is not checked.

        Raises:
            EventError: the rules reject the event.
        """
        if metric in self._needs_check and self._rules is not None:
            self._rules.refuse(metric, amount, None)

    def pack_block(self, metric: str, found: BlockEvents, end: int) -> None:
        """Add the events that `BlockReader` found in a block of lines to the packs of their partitions.

        `full_chunks` then yields the full packs. Events that were appended before are skipped, and added to `known`.
        The doubtful lines of the block are left to the caller.

        Args:
            metric: The metric of the events, for which `is_summable` is true.
            found: The events of a block for which `splits` is false: all of a partition are packed, or all skipped.
            end: The offset of the end of the block.
        """
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
        """Yield each partition that has at least 2,000 packed events or about 64 KiB, and its chunk.

        The chunk ends at `end`, an offset in the file: bytes of (decompressed) text, or rows. It is no longer in this
        object: the partition's next chunk begins, without events, at `end`.
        """
        for partition in range(self._partitions):
            if self._is_full(partition):
                yield partition, self._seal(partition, end)

    def route(self, subject: str) -> tuple[str, int]:
        """Return a subject in normal form (Unicode NFC), and the partition that counts it.

        Raises:
            EventError: the subject is not valid.
        """
        return self._known.get(subject) or self._admit(subject)

    def check_actor(self, actor: str) -> str:
        """Return an actor in normal form (Unicode NFC).

        Raises:
            EventError: the actor is not valid.
        """
        return actor if actor in self._actors else self._admit_actor(actor)

    def remaining_chunks(self, end: int) -> Iterator[tuple[int, Chunk]]:
        """Yield each partition that has packed events left, and its chunk, which ends at `end`.

        `end` is an offset in the file: bytes of (decompressed) text, or rows. As with `full_chunks`, the chunk is no
        longer in this object.
        """
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
