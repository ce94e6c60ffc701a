"""Appends sealed entries to the streams, each exactly once, in order, however often it takes.

An entry's bytes, partition and sequence are frozen before it is first sent. Whatever happens to the reply, the
same call is made again from the first unconfirmed entry on, and the gate in `append.lua` lets it through once.
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
"""The most entries per partition in one pipeline: bounds what a cut connection makes us send again."""

KEEP_BYTES: Final = 8 * 2**20
"""About how many bytes of confirmed entries are kept in all, for a server that turns out to have forgotten them."""

_PAUSE: Final = 0.1
"""Seconds for which a stream that is full, or closed, is left alone."""


class Appender:
    """The unconfirmed entries of every partition, and the gate's counterpart on this side.

    Not safe across threads: the sender owns it.

    Args:
        client: A client that never sends anything twice.
        layout: The partitions.
        epoch: The life of the data that the entries belong to; `None` where that is not to be told apart.
        durability: What counts as confirmed.
        queues: The queues, where they are not new ones.
        on_rename: Told, before anything is sent under it, of a queue's new name: partition, name, and the sequence
            under the old name after which it begins at 1.
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
        """Per partition, the stream ID of the last entry of ours that was confirmed."""
        self.resent = 0
        """Entries that the gate had already let through when they came again."""
        self.backlogged = 0
        """Times that a stream was found to have as many entries as it may."""
        self.unconfirmed = 0
        """Bursts that were written, and not confirmed in time."""
        self.is_closed = False
        """Whether a stream takes nothing more, because the log goes on in another one: `settle`, then `move`."""

    def push(self, partition: int, entry: SealedEntry) -> None:
        """Queue an entry; its sequence is its place in the queue."""
        self.queues[partition].waiting.append(entry)

    @property
    def rewound(self) -> int:
        """Times that a stream turned out to have lost entries that it had confirmed."""
        return self._rollbacks.rewound

    @property
    def lost(self) -> int:
        """How many of these entries were not held any more."""
        return self._rollbacks.lost

    @property
    def oldest_cycle(self) -> int | None:
        """The lowest cycle among the unconfirmed entries, `None` where there are none."""
        return min((queue.waiting[0].cycle for queue in self.queues if queue.waiting), default=None)

    @property
    def due(self) -> float | None:
        """Seconds until there is something to send or to look at; 0 now, `None` not until more is pushed."""
        now = time.monotonic()
        moments = [queue.resume_at for queue in self.queues if queue.waiting]
        if (check_at := self._rollbacks.due(now)) is not None:
            moments.append(check_at)
        return max(0.0, min(moments) - now) if moments else None

    def send(self) -> tuple[list[SealedEntry], RedisError | None]:
        """Send a burst of unconfirmed entries.

        Returns:
            The entries that are confirmed for the first time, and the first error that a server answered with (memory
            full, read-only, loading, no right); entries that it concerns stay queued.

        Raises:
            RedisError: the connection broke; nothing is known of the burst, all of it stays queued.
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
            rollbacks.is_unsure = True  # until the replies are here
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
        for (partition, _), reply in zip(sent, replies, strict=False):  # others follow: checks, and a durability
            if partition in stopped:
                continue  # behind an entry that failed, the gate answers "gap": expected, and no news
            if isinstance(reply, RedisError):
                stopped.add(partition)
                if isinstance(reply, NoScriptError):
                    self._script_is_loaded = False  # a restart, a failover, SCRIPT FLUSH: the next burst begins with it
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

    # -- to another log ---------------------------------------------------------------------------------

    def lasts(self) -> list[int]:
        """Ask how far each queue came: final in a log that is closed, whatever was still on its way.

        Raises:
            RedisError: it is not known.
        """
        with self._client.pipeline(transaction=False) as pipeline:
            for keys, queue in zip(self.layout.keys, self.queues, strict=True):
                pipeline.execute_command("HGET", keys.sequences, queue.producer)
            return [int(reply.split()[0]) if reply else 0 for reply in pipeline.execute()]

    def settle(self, lasts: Sequence[int]) -> list[SealedEntry]:
        """Confirm what a closed log has taken; return what is confirmed for the first time. The rest stays waiting."""
        confirmed: list[SealedEntry] = []
        for queue, last in zip(self.queues, lasts, strict=True):
            if last < queue.confirmed:
                self._rollbacks.count(queue.roll_back(last))
            while queue.waiting and queue.confirmed < last:
                self._confirm(queue, confirmed)
        return confirmed

    @property
    def waiting(self) -> list[SealedEntry]:
        """What is not confirmed, in the order in which it was sealed."""
        return sorted((entry for queue in self.queues for entry in queue.waiting), key=lambda entry: entry.cycle)

    def move(self, layout: Layout, queues: Sequence[PartitionQueue] | None = None) -> None:
        """Go on in another log, with nothing waiting; what became of entries so far is still counted."""
        self.last_ids = [None] * layout.partitions  # before the layout: who waits for one of them looks at both
        self.layout = layout
        self.queues = list(queues or new_queues(layout))
        self._rollbacks.reset()
        self.is_closed = False


def new_queues(layout: Layout) -> list[PartitionQueue]:
    """Return a new queue for each partition."""
    return [PartitionQueue(KEEP_BYTES // layout.partitions) for _ in layout.keys]
