"""Detects that a server has lost entries that it had confirmed, and rolls the queues back to send them again.

A failover, or a restart from an older copy, loses the last entries of a stream together with their sequences. The reply
`gap` to an entry shows that; a producer with nothing to send checks it every few seconds.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from tallystream.producing.partition_queue import new_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import redis

    from tallystream.producing.partition_queue import PartitionQueue, Rollback
    from tallystream.storage.keys import Layout

_WATCH: Final = 60.0
"""Seconds after the last confirmation during which an idle producer checks that the server still has its entries."""

_INTERVAL: Final = 5.0
"""Seconds between two such checks."""

_log: Final = logging.getLogger("tallystream")


class RollbackWatch:
    """Compares the sequences that the server has with those that it had confirmed, and rolls queues back.

    Not safe across threads: only the sender thread uses it.

    Args:
        client: Client that never sends a command twice.
        epoch: Epoch of the deployment that the entries belong to; `None` to ignore epochs.
        on_rename: Called before anything is sent under a queue's new name, with the partition, the new name, and the
            last sequence confirmed under the old name; the new name begins at 1 after it.
    """

    def __init__(
        self, client: redis.Redis, epoch: str | None, on_rename: Callable[[int, str, int], None] | None
    ) -> None:
        self._client = client
        self._epoch = epoch
        self._on_rename = on_rename
        self._suspects: dict[int, int] = {}  # partition -> the last sequence that the server has
        self._checked_at = float("-inf")
        self.confirmed_at = float("-inf")
        """Monotonic second at which an entry was last confirmed."""
        self.is_unsure = False
        """Whether entries or checks were sent in a pipeline whose replies have not arrived."""
        self.rewound = 0
        """Number of times that any of the streams had lost confirmed entries."""
        self.lost = 0
        """Confirmed entries that a stream had lost and that were no longer kept here, so could not be sent again."""

    def due(self, now: float) -> float | None:
        """Return the monotonic second of the next check or rollback; `None` if none is planned."""
        if self._suspects:
            return now
        return max(self._checked_at, self.confirmed_at) + _INTERVAL if now - self.confirmed_at < _WATCH else None

    def suspect(self, partition: int, last: int) -> None:
        """Record that the server has a partition's entries only up to the sequence `last`: the next send rolls back."""
        self._suspects[partition] = last

    def queue_checks(self, pipeline: Any, layout: Layout, queues: Sequence[PartitionQueue], now: float) -> list[int]:
        """Queue a read of the server's last sequence for each queue that has kept entries and nothing to send.

        Do nothing if the last check or confirmation is less than 5 seconds ago, unless replies are missing.

        Returns:
            The partitions whose sequences are read.
        """
        if not self.is_unsure and now - max(self._checked_at, self.confirmed_at) < _INTERVAL:
            return []
        self._checked_at = now
        checked = [partition for partition, queue in enumerate(queues) if queue.kept and not queue.waiting]
        for partition in checked:
            pipeline.execute_command("HGET", layout.keys[partition].sequences, queues[partition].producer)
        return checked

    def compare(self, queues: Sequence[PartitionQueue], checked: Sequence[int], replies: Sequence[Any]) -> None:
        """Suspect each checked partition if the sequence in its reply is lower than its last confirmed one."""
        for partition, reply in zip(checked, replies, strict=True):
            if not isinstance(reply, RedisError):
                last = int(reply.split()[0]) if reply else 0
                if last < queues[partition].confirmed:
                    self.suspect(partition, last)

    def roll_back(self, layout: Layout, queues: Sequence[PartitionQueue]) -> None:
        """Roll the queue of each suspected partition back to the last sequence that the server has.

        If entries that the server lost are no longer kept, the queue begins again under a new name. If the epoch is
        another one (the server was emptied, and counting began again), only entries that were never confirmed are sent.

        Raises:
            RedisError: the epoch could not be read; nothing has changed.
        """
        if not self._suspects:
            return
        found = self._client.hget(layout.root, "epoch") if self._epoch is not None else None
        epoch = found.decode() if isinstance(found, bytes) else ""
        is_another_life = self._epoch is not None and epoch != self._epoch
        for partition, last in list(self._suspects.items()):
            queue, stream = queues[partition], layout.keys[partition].stream
            if is_another_life:
                self._rename(partition, queue)
                _log.warning("stream.reset stream=%s: entries confirmed by the old stream are not sent again", stream)
                continue
            rollback = queue.roll_back(last)
            if rollback.lost:
                self._rename(partition, queue)
            self.lost += rollback.lost
            _log.warning(
                "stream.rolled_back stream=%s resent=%d lost=%d: the server lost confirmed entries",
                stream, rollback.again, rollback.lost,
            )  # fmt: skip
        self.rewound += len(self._suspects)
        self._suspects.clear()
        if is_another_life:
            self._epoch = epoch
            for queue in queues:
                # Other queues keep their names: only a gap proves that none of the waiting entries was written.
                queue.forget()

    def count(self, rollback: Rollback) -> None:
        """Add a rollback that was made elsewhere to the statistics."""
        self.rewound += 1
        self.lost += rollback.lost

    def reset(self) -> None:
        """Forget the suspected partitions and the missing replies, because the entries move to another topic."""
        self._suspects.clear()
        self.is_unsure = False

    def _rename(self, partition: int, queue: PartitionQueue) -> None:
        name = new_name()
        if self._on_rename is not None:
            self._on_rename(partition, name, queue.confirmed)
        queue.rename(name)
