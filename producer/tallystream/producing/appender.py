"""Appends sealed entries to the streams in order, each exactly once, however many attempts that takes.

An entry's bytes, partition and sequence are fixed before it is first sent. If a reply is missing, the same call is made
again from the first unconfirmed entry on, and the sequence gate in `append.lua` lets each entry through once.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError, RedisError

from tallystream.client.durability import DurabilityCheck
from tallystream.producing.partition_queue import PartitionQueue, SealedEntry
from tallystream.producing.rollback_watch import RollbackWatch
from tallystream.storage.scripts import Script
from tallystream.wire.codec import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import redis

    from tallystream.storage.keys import Layout

_APPEND: Final = Script("tallystream.storage", "append")

_BURST: Final = 32
"""Most entries per partition in one pipeline: bounds what is sent again after a broken connection."""

KEEP_BYTES: Final = 8 * 2**20
"""About how many bytes of confirmed entries are kept in all partitions together, in case a server loses them."""

_PAUSE: Final = 0.1
"""Seconds until the next attempt at a stream that is full or closed."""


class Appender:
    """Sends the queued entries of every partition, numbered for the sequence gate, until each is confirmed.

    Not safe across threads: only the sender thread uses it.

    Args:
        client: Client that never sends a command twice.
        layout: Layout of the live topic.
        epoch: Epoch of the deployment that the entries belong to; `None` to ignore epochs.
        durability: Durability that an entry needs to count as confirmed; `None`: the memory of the server is enough.
        queues: One queue for each partition; `None` for new, empty queues.
        on_rename: Called before anything is sent under a queue's new name, with the partition, the new name, and the
            last sequence confirmed under the old name. Under the new name, sequences begin at 1 again.

    Attributes:
        layout: Layout of the topic that is appended to.
        queues: The queue of each partition.
    """

    def __init__(
        self,
        client: redis.Redis,
        layout: Layout,
        epoch: str | None = None,
        durability: DurabilityCheck | None = None,
        queues: Sequence[PartitionQueue] | None = None,
        on_rename: Callable[[int, str, int], None] | None = None,
    ) -> None:
        self.layout = layout
        self._client = client
        self._durability = durability or DurabilityCheck()
        self.queues = list(queues or new_queues(layout))
        self._script_is_loaded = False
        self._rollbacks = RollbackWatch(client, epoch, on_rename)
        self.last_ids: list[str | None] = [None] * layout.partitions
        """By partition, the stream ID of the last confirmed entry of this appender."""
        self.resent = 0
        """Entries that were sent again after the sequence gate had already let them through."""
        self.backlogged = 0
        """Number of times that a stream refused entries because the stream had reached its limit."""
        self.unconfirmed = 0
        """Number of `send` calls whose entries were written, but whose durability was not confirmed in time."""
        self.is_closed = False
        """Whether a stream is closed because another topic becomes live: call `lasts`, `settle`, then `move`."""

    def push(self, partition: int, entry: SealedEntry) -> None:
        """Add an entry to the end of its partition's queue; its place in the queue determines its sequence."""
        self.queues[partition].waiting.append(entry)

    @property
    def rewound(self) -> int:
        """Number of times that any of the streams had lost confirmed entries."""
        return self._rollbacks.rewound

    @property
    def lost(self) -> int:
        """Confirmed entries that a stream had lost and that were no longer kept here, so could not be sent again."""
        return self._rollbacks.lost

    @property
    def oldest_cycle(self) -> int | None:
        """The lowest cycle (number of a seal) among the unconfirmed entries; `None` if every entry is confirmed."""
        return min((queue.waiting[0].cycle for queue in self.queues if queue.waiting), default=None)

    @property
    def due(self) -> float | None:
        """Seconds until the next send or check: 0 for now, `None` if nothing is due before the next `push`."""
        now = time.monotonic()
        moments = [queue.resume_at for queue in self.queues if queue.waiting]
        if (check_at := self._rollbacks.due(now)) is not None:
            moments.append(check_at)
        return max(0.0, min(moments) - now) if moments else None

    def send(self) -> tuple[list[SealedEntry], RedisError | None]:
        """Send the first 32 unconfirmed entries of each partition in one pipeline, and wait for the replies.

        A stream that was full or closed less than 0.1 seconds ago is left out. Before that, confirmed entries that a
        server is known to have lost are queued again.

        Returns:
            The entries that are confirmed for the first time, and the first error reply of a server (memory full,
            read-only, loading, missing permission), or `None`. Every unconfirmed entry stays queued. A missing script
            is no error: the next call loads it.

        Raises:
            RedisError: the connection broke; it is not known which entries were written, so all of them stay queued.
        """
        rollbacks = self._rollbacks
        rollbacks.roll_back(self.layout, self.queues)
        now = time.monotonic()
        sent: list[tuple[int, SealedEntry]] = []
        with self._client.pipeline(transaction=False) as pipeline:
            for partition, queue in enumerate(self.queues):
                if queue.waiting and queue.resume_at <= now:
                    for sequence, entry in enumerate(islice(queue.waiting, _BURST), start=queue.confirmed + 1):
                        self._queue(pipeline, partition, sequence, entry)
                        sent.append((partition, entry))
            checked = rollbacks.queue_checks(pipeline, self.layout, self.queues, now)
            if not sent and not checked:
                return [], None
            if sent:
                self._durability.queue(pipeline)
            if sent and not self._script_is_loaded:
                _APPEND.load(self._client)
                self._script_is_loaded = True
            rollbacks.is_unsure = True  # until the replies have arrived
            replies = pipeline.execute(raise_on_error=False)
            rollbacks.is_unsure = False
        rollbacks.compare(self.queues, checked, replies[len(sent) : len(sent) + len(checked)])
        return self._settle(sent, replies)

    def _queue(self, pipeline: Any, partition: int, sequence: int, entry: SealedEntry) -> None:
        keys = self.layout.keys[partition]
        arguments = [VERSION, self.queues[partition].producer, sequence, entry.events, entry.payload]
        if self._durability.is_needed:
            arguments.append(1)
        _APPEND.queue(pipeline, [keys.stream, keys.sequences, keys.topic_ledger], arguments)

    def _settle(
        self, sent: Sequence[tuple[int, SealedEntry]], replies: Sequence[Any]
    ) -> tuple[list[SealedEntry], RedisError | None]:
        first_error: RedisError | None = None
        if is_written_only := bool(sent) and self._durability.is_needed:
            if isinstance(replies[-1], RedisError):
                first_error = replies[-1]
            elif is_enough := self._durability.is_enough(replies[-1]):
                is_written_only = not is_enough
            self.unconfirmed += is_written_only
        confirmed: list[SealedEntry] = []
        stopped: set[int] = set()
        for (partition, _), reply in zip(sent, replies, strict=False):  # replies to checks and durability follow
            if partition in stopped:
                continue  # after a failed entry, the gate replies "gap" to the partition's later ones: ignore that
            if isinstance(reply, RedisError):
                stopped.add(partition)
                if isinstance(reply, NoScriptError):
                    self._script_is_loaded = False  # restart, failover or SCRIPT FLUSH: load it before the next burst
                else:
                    first_error = first_error or reply
                continue
            queue = self.queues[partition]
            answer, detail = reply[0], reply[1].decode()
            if answer == b"gap":
                stopped.add(partition)
                self._rollbacks.suspect(partition, int(detail))
            elif answer == b"closed":
                stopped.add(partition)
                self.is_closed = True
                queue.resume_at = time.monotonic() + _PAUSE
            elif answer == b"full":
                stopped.add(partition)
                self.backlogged += 1
                queue.resume_at = time.monotonic() + _PAUSE
            elif not is_written_only:
                self.resent += answer == b"already"
                self.last_ids[partition] = detail or self.last_ids[partition]
                self._confirm(queue, confirmed)
        return confirmed, first_error

    def _confirm(self, queue: PartitionQueue, confirmed: list[SealedEntry]) -> None:
        entry = queue.confirm()
        self._rollbacks.confirmed_at = time.monotonic()
        if not entry.was_confirmed:
            entry.was_confirmed = True
            confirmed.append(entry)

    # -- moving to another topic ------------------------------------------------------------------------

    def lasts(self) -> list[int]:
        """Return, by partition, the last sequence of each queue that the server has (0: none); final in a closed topic.

        Raises:
            RedisError: the server did not answer; the sequences are not known.
        """
        with self._client.pipeline(transaction=False) as pipeline:
            for keys, queue in zip(self.layout.keys, self.queues, strict=True):
                pipeline.execute_command("HGET", keys.sequences, queue.producer)
            return [int(reply.split()[0]) if reply else 0 for reply in pipeline.execute()]

    def settle(self, lasts: Sequence[int]) -> list[SealedEntry]:
        """Confirm the entries that a closed topic has; the others are in `waiting`, also confirmed ones that it lost.

        Args:
            lasts: By partition, the last sequence that the topic has.

        Returns:
            The entries that are confirmed for the first time.
        """
        confirmed: list[SealedEntry] = []
        for queue, last in zip(self.queues, lasts, strict=True):
            if last < queue.confirmed:
                self._rollbacks.count(queue.roll_back(last))
            while queue.waiting and queue.confirmed < last:
                self._confirm(queue, confirmed)
        return confirmed

    @property
    def waiting(self) -> list[SealedEntry]:
        """The unconfirmed entries of all partitions, in the order in which they were sealed."""
        return sorted((entry for queue in self.queues for entry in queue.waiting), key=lambda entry: entry.cycle)

    def move(self, layout: Layout, queues: Sequence[PartitionQueue] | None = None) -> None:
        """Append to another topic from now on; the statistics stay, and `last_ids` begins again without IDs.

        Args:
            layout: Layout of the other topic.
            queues: One queue for each partition of the other topic; `None` for new, empty queues. The entries in the
                present queues are dropped: read `waiting` before, and `push` them again.
        """
        self.last_ids = [None] * layout.partitions  # before the layout: `wait_until_counted` reads both
        self.layout = layout
        self.queues = list(queues or new_queues(layout))
        self._rollbacks.reset()
        self.is_closed = False


def new_queues(layout: Layout) -> list[PartitionQueue]:
    """Return a new, empty queue for each partition of a layout."""
    return [PartitionQueue(KEEP_BYTES // layout.partitions) for _ in layout.keys]
