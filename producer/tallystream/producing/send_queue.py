"""An send_queue: a buffer and the appender that empties it, one step at a time, and from one log into the next."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Final

from tallystream.errors import SpoolError
from tallystream.producing.appender import KEEP_BYTES, Appender
from tallystream.producing.partition_queue import PartitionQueue, SealedEntry
from tallystream.producing.spool.buffer import Spool
from tallystream.storage.keys import partition_of
from tallystream.wire.codec import decode_packed, encode, split

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis
    from redis.exceptions import RedisError

    from tallystream.client.durability import DurabilityCheck
    from tallystream.deployment import Deployment
    from tallystream.producing.buffer import Buffer
    from tallystream.storage.keys import Layout

_log: Final = logging.getLogger("tallystream")


class SendQueue:
    """Sends what a buffer holds. Not safe across threads: the sender owns it.

    Args:
        client: A client that never sends anything twice.
        deployment: What is stored there.
        buffer: What is to be sent.
        durability: What counts as sent.

    Raises:
        SpoolError: what is spooled cannot be delivered here.
    """

    def __init__(
        self, client: redis.Redis, deployment: Deployment, buffer: Buffer, durability: DurabilityCheck
    ) -> None:
        self.buffer = buffer
        layout = _sealed_for(buffer, deployment)
        buffer.open(layout)
        queues, on_rename = None, None
        if isinstance(buffer, Spool):
            queues, on_rename = _queues(buffer, layout), buffer.rename
        self.appender = Appender(client, layout, deployment.epoch, durability, queues, on_rename)
        self._cycle = 0

    def step(self) -> tuple[bool, RedisError | None]:
        """Seal what has gathered, send a burst.

        Returns:
            Whether that led on, and the first error that the server answered with.

        Raises:
            SpoolError: the spool cannot be written; nothing was sent.
            redis.RedisError: the connection broke.
        """
        appender = self.appender
        self._cycle, sealed = self.buffer.seal()
        for partition, pack in sealed:
            appender.push(partition, SealedEntry(self._cycle, pack.events, pack.size, pack.build()))
        confirmed, error = appender.send()
        oldest = appender.oldest_cycle
        self._settle(confirmed)
        return bool(confirmed) or oldest is None or appender.due != 0, error

    def move(self, layout: Layout) -> None:
        """Go on in another log, the present one being closed: what that has not taken is sealed for other partitions.

        What it has taken follows from its gates alone, whatever became of any reply. Until that is known nothing is
        changed here, and until it is written down nothing is sent: this may fail at any point, and be done again.

        Raises:
            SpoolError: the spool cannot be written.
            redis.RedisError: it is not known what the closed log has taken.
        """
        appender, buffer = self.appender, self.buffer
        lasts = appender.lasts()
        self._settle(appender.settle(lasts))
        if isinstance(buffer, Spool):
            held = [each for each in appender.waiting if not buffer.covers(each.cycle)]
            parts = [part for each in held for part in _parts(each, layout)]
            counts = Counter(partition for partition, _ in parts)
            buffer.move(layout, lasts, [counts[partition] for partition in range(layout.partitions)])
            appender.move(layout, _queues(buffer, layout, counts))
        else:
            self._cycle, packs = buffer.reopen(layout)
            rest = [SealedEntry(self._cycle, pack.events, pack.size, pack.build()) for _, pack in packs]
            parts = [part for each in (*appender.waiting, *rest) for part in _parts(each, layout)]
            appender.move(layout)
        for partition, entry in parts:
            appender.push(partition, entry)
        _log.info("topic.switched topic=%d partitions=%d", layout.topic, layout.partitions)

    def _settle(self, confirmed: list[SealedEntry]) -> None:
        oldest = self.appender.oldest_cycle
        self.buffer.settle(confirmed, self._cycle if oldest is None else oldest - 1)


def _sealed_for(buffer: Buffer, deployment: Deployment) -> Layout:
    """Return the partitions that what a buffer holds is sealed for: those of a closed log are asked first.

    Raises:
        SpoolError: nobody knows what that log has taken.
    """
    topic = buffer.topic if isinstance(buffer, Spool) else None
    if topic is None or topic == deployment.layout.topic:
        return deployment.layout
    layout = deployment.layout_of(topic)
    if layout is None:
        raise SpoolError(
            f"what is spooled was sealed for log {topic} of {deployment.layout.namespace}, of which nothing is known "
            "here: deliver it where it belongs"
        )
    return layout


def _queues(spool: Spool, layout: Layout, sent_first: Counter[int] | None = None) -> list[PartitionQueue]:
    keep = KEEP_BYTES // layout.partitions
    begun = zip(spool.names, spool.confirmed_sequences, strict=True)
    first = sent_first or Counter()
    return [PartitionQueue(keep, name, confirmed - first[n]) for n, (name, confirmed) in enumerate(begun)]


def _parts(entry: SealedEntry, layout: Layout) -> Iterator[tuple[int, SealedEntry]]:
    """Yield what an entry holds for each partition; its size in the buffer stays what it is in all."""
    size = entry.size
    parts = split(decode_packed(entry.payload), lambda _, subject, __: partition_of(subject, layout.partitions))
    for partition, payload in parts.items():
        yield partition, SealedEntry(entry.cycle, payload.events, size, encode(payload), entry.was_confirmed)
        size = 0
