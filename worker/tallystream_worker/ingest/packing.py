"""Packs the events of a file into stretches, one lane for each partition."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tallystream import event as rule
from tallystream.codec import Pack
from tallystream.keys import partition_of
from tallystream.windows import MINUTE
from tallystream_worker.ingest.gate import Stretch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream.keys import Layout
    from tallystream.rules import Rules
    from tallystream_worker.ingest.lines import EventFields

_ENTRY_EVENTS: Final = 2000
_ENTRY_BYTES: Final = 64 * 1024
_KNOWN: Final = 200_000


class Packing:
    """Checks events and packs them; what is appended already is passed over.

    Args:
        layout: How many partitions there are.
        rules: The declared metrics, `None` where no worker has published them yet.
        done: How far the file is appended, for each partition.
    """

    def __init__(self, layout: Layout, rules: Rules | None, done: list[int]) -> None:
        self._partitions = layout.partitions
        self._rules = rules
        self.done = done
        """How far the file was appended before, for each partition."""
        self._begin = list(done)
        self._packs = [Pack() for _ in done]
        self._known: dict[str, tuple[str, int]] = {}
        self._metrics: set[str] = set()
        self._picky: set[str] = set()  # metrics whose rules have no place for some events
        self._actors: set[str] = set()
        self._sound_until = 0.0  # seconds; a time before it has been checked against the clock
        self.known = 0
        """Events that were appended before, and are passed over."""

    def add(self, fields: EventFields, offset: int) -> tuple[int, Stretch] | None:
        """Take the event that lies at an offset; return the stretch that is full with it, with its partition.

        Raises:
            EventError: the event breaks a rule; it was not taken.
        """
        metric, subject, amount, actor, at, id_ = fields
        subject, partition = self._known.get(subject) or self._admit(subject)
        if metric not in self._metrics:
            self._admit_metric(metric)
        if amount != 1:
            rule.check_amount(amount)
        if at is None:
            at = time.time()
        elif not 0 < at < self._sound_until:
            rule.check_at(at, time.time())
            self._sound_until = time.time()
        if actor is not None and actor not in self._actors:
            actor = self._admit_actor(actor)
        if id_ is not None:
            id_ = rule.check_text("id", id_, rule.MAX_ID_BYTES)
        if metric in self._picky and self._rules is not None:
            self._rules.refuse(metric, amount, actor)
        if offset < self.done[partition]:
            self.known += 1
            return None
        pack = self._packs[partition]
        pack.add(metric, subject, amount, at, actor, id_)
        if pack.events >= _ENTRY_EVENTS or pack.size >= _ENTRY_BYTES:
            return partition, self._seal(partition, offset + 1)
        return None

    def add_sum(self, metric: str, subject: str, minute: int, amounts: tuple[int, int, int], events: int) -> None:
        """Take several events of one minute that are not appended yet, without actors and ids.

        Args:
            metric: Of all of them.
            subject: Of all of them.
            minute: Whole minutes since 1970.
            amounts: Their sum, the least and the largest of them.
            events: How many they are.

        Raises:
            EventError: they break a rule; none was taken.
        """
        subject, partition = self._known.get(subject) or self._admit(subject)
        if metric not in self._metrics:
            self._admit_metric(metric)
        if not minute * MINUTE < self._sound_until:
            rule.check_at(minute * MINUTE, time.time())
            self._sound_until = time.time()
        total, least, most = amounts
        if metric in self._picky and self._rules is not None:
            for amount in {least, most}:
                self._rules.refuse(metric, amount, None)
        self._packs[partition].add_sum(metric, subject, minute, total, events, unit=least == most == 1)

    def partition(self, subject: str) -> int:
        """Return where a subject is counted.

        Raises:
            EventError: it is none.
        """
        return (self._known.get(subject) or self._admit(subject))[1]

    def rest(self, end: int) -> Iterator[tuple[int, Stretch]]:
        """Yield a stretch up to `end` for each partition that has events left."""
        for partition, pack in enumerate(self._packs):
            if pack.events:
                yield partition, self._seal(partition, end)

    def _seal(self, partition: int, end: int) -> Stretch:
        pack, self._packs[partition] = self._packs[partition], Pack()
        begin, self._begin[partition] = self._begin[partition], end
        return Stretch(begin, end, pack.events, pack.seal())

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
                self._picky.add(metric)
        self._metrics.add(metric)

    def _admit_actor(self, actor: str) -> str:
        normal = rule.check_text("actor", actor, rule.MAX_ACTOR_BYTES)
        if len(self._actors) >= _KNOWN:
            self._actors.clear()
        self._actors.add(normal)
        return normal
