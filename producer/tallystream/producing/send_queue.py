"""A send queue: a buffer and the appender that empties it step by step, also when the topic changes."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Final

from tallystream.errors import SpoolError
from tallystream.producing.appender import KEEP_BYTES, Appender, new_queues
from tallystream.producing.gate import newest_ids
from tallystream.producing.partition_queue import PartitionQueue, SealedEntry
from tallystream.producing.spool.buffer import Spool
from tallystream.storage.keys import partition_of
from tallystream.wire.codec import decode_packed, encode, split

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import redis
    from redis.exceptions import RedisError

    from tallystream.client.durability import DurabilityCheck
    from tallystream.deployment import Deployment
    from tallystream.errors import KeyLost
    from tallystream.producing.buffer import Buffer
    from tallystream.storage.keys import Layout

_log: Final = logging.getLogger("tallystream")


class SendQueue:
    """Sends the events of one buffer. Not safe across threads: only the sender thread uses it.

    Call `step` again and again, and `move` when another topic is live. The constructor opens the buffer for the
    partitions of the live topic, or for those of the topic of its spooled events. It reads from the server, unless a
    spool already has its queues.

    Args:
        client: Client that never sends a command twice.
        deployment: Deployment that the events are sent to.
        buffer: Buffer with the events.
        durability: Durability that an entry needs to count as confirmed.

    Attributes:
        buffer: Buffer with the events.
        appender: Appender of the entries made from them.

    Raises:
        SpoolError: the spooled events belong to another deployment, or the spool cannot be written.
        redis.RedisError: the server does not answer, or refuses the command.
    """

    def __init__(
        self, client: redis.Redis, deployment: Deployment, buffer: Buffer, durability: DurabilityCheck
    ) -> None:
        self.buffer = buffer
        self._client = client
        layout = _sealed_for(buffer, deployment)
        on_rename = None
        if isinstance(buffer, Spool):
            buffer.open(layout, () if buffer.names else newest_ids(client, layout, spool=True))
            queues, on_rename = _queues(buffer, layout, sent=buffer.planned_sequences), buffer.rename
        else:
            queues = new_queues(layout, newest_ids(client, layout, spool=False))
            buffer.open(layout)
        self.appender = Appender(client, layout, deployment.epoch, durability, queues, on_rename)
        self._cycle = 0

    def step(self) -> tuple[bool, RedisError | KeyLost | None]:
        """Seal buffered events into entries, and send up to 32 unconfirmed entries of each partition (`Appender.send`).

        The events of entries that are confirmed, or given up, are counted as appended in the buffer.

        Returns:
            `False` if the sender must back off because no entry was confirmed or given up and more are due, else
            `True`; and the error that `Appender.send` returned (an error reply of the server, or `KeyLost`), or `None`.
            An entry that is sent again after a rollback is confirmed again.

        Raises:
            SpoolError: the spool cannot be written, or events in it are damaged; nothing was sent.
            OSError: the files of the spool cannot be read; nothing was sent.
            DeploymentChanged: the server may lack entries that were confirmed, and a restore has not finished; nothing
                was sent.
            redis.RedisError: the connection broke, or a server refused a command before the entries; the entries stay
                queued.
        """
        appender = self.appender
        self._cycle, sealed = self.buffer.seal()
        for partition, pack in sealed:
            appender.push(partition, SealedEntry(self._cycle, pack.events, pack.size, pack.build()))
        before = appender.answered
        confirmed, error = appender.send()
        oldest = appender.oldest_cycle
        self._settle(confirmed)
        return appender.answered > before or oldest is None or appender.due != 0, error

    def move(self, deployment: Deployment) -> None:
        """Move to the live topic of a deployment: seal again the entries that the closed topic does not have.

        The sequences at the gates of the closed topic alone decide which entries it has: their events are counted as
        appended in the buffer. `step` sends the others. A spool first records these sequences. After an error, call
        this again: the queue still belongs to the closed topic.

        Raises:
            KeyLost: the closed topic has lost its sequences.
            Unconfirmed: what the closed topic has is not confirmed.
            SpoolError: the spool cannot be written.
            redis.RedisError: the server does not answer, or refuses a command.
        """
        appender, buffer, layout = self.appender, self.buffer, deployment.layout
        newest = newest_ids(self._client, layout, spool=isinstance(buffer, Spool))
        lasts = appender.lasts(deployment)
        self._settle(appender.settle(lasts))
        if isinstance(buffer, Spool):
            held = [each for each in appender.waiting if not buffer.covers(each.cycle)]
            parts = [part for each in held for part in _parts(each, layout)]
            counts = Counter(partition for partition, _ in parts)
            buffer.move(layout, lasts, [counts[partition] for partition in range(layout.partitions)], newest)
            appender.move(layout, _queues(buffer, layout, counts))
        else:
            self._cycle, packs = buffer.reopen(layout)
            rest = [SealedEntry(self._cycle, pack.events, pack.size, pack.build()) for _, pack in packs]
            parts = [part for each in (*appender.waiting, *rest) for part in _parts(each, layout)]
            appender.move(layout, new_queues(layout, newest))
        for partition, entry in parts:
            appender.push(partition, entry)
        _log.info("topic.switched topic=%d partitions=%d", layout.topic, layout.partitions)

    def _settle(self, confirmed: list[SealedEntry]) -> None:
        oldest = self.appender.oldest_cycle
        self.buffer.settle(confirmed, self._cycle if oldest is None else oldest - 1)


def _sealed_for(buffer: Buffer, deployment: Deployment) -> Layout:
    """Return the layout that a buffer's entries are sealed for: that of the live topic, or of its queues in a spool.

    The queues in a spool may belong to an earlier topic.

    Raises:
        SpoolError: the deployment has no such topic, so it is not known which entries that topic has.
    """
    topic = buffer.topic if isinstance(buffer, Spool) else None
    if topic is None or topic == deployment.layout.topic:
        return deployment.layout
    layout = deployment.layout_of(topic)
    if layout is None:
        raise SpoolError(
            f"the spooled events were sealed for topic {topic} of {deployment.layout.namespace}, which is not known "
            "here: deliver them to the deployment that they were emitted to"
        )
    return layout


def _queues(
    spool: Spool, layout: Layout, sent_first: Counter[int] | None = None, sent: Sequence[int] = ()
) -> list[PartitionQueue]:
    """Return a queue without entries for each partition, with the name and the stream ID that the spool has for it.

    The last confirmed sequence of each is the one before the entries that `seal` packs by plans of a dead process (see
    `Spool.sequences_before_plans`), less `sent_first`.

    Args:
        spool: The spool.
        layout: Layout of the topic.
        sent_first: By partition, how many entries outside the plans the caller pushes first; `None` for none.
        sent: By partition, the last sequence that a dead process may have sent; empty if it sent nothing.
    """
    keep = KEEP_BYTES // layout.partitions
    first = sent_first or Counter()
    return [
        PartitionQueue(keep, name, confirmed - first[n], since, sent[n] if sent else 0)
        for n, (name, confirmed, since) in enumerate(
            zip(spool.names, spool.sequences_before_plans, spool.since, strict=True)
        )
    ]


def _parts(entry: SealedEntry, layout: Layout) -> Iterator[tuple[int, SealedEntry]]:
    """Split an entry by the partitions of its subjects in a layout: yield each partition and its part, a new entry.

    Spread events are split by subject, too. Each part has the cycle and `was_confirmed` of the entry. The first part
    has the whole size of the entry in the buffer, the others 0, so that the sum stays the same.
    """
    size = entry.size
    parts = split(decode_packed(entry.payload), lambda _, subject, __: partition_of(subject, layout.partitions))
    for partition, payload in parts.items():
        yield partition, SealedEntry(entry.cycle, payload.events, size, encode(payload), entry.was_confirmed)
        size = 0
