"""Notices that a server has forgotten entries that it had confirmed, and goes back to where it is.

A failover, or a restart from an older copy, loses the last entries of a stream together with their sequences. A gap in
the reply to an entry says so; a producer with nothing to send asks now and then.
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
"""Seconds after the last confirmation during which an idle producer makes sure that the server remembers it,"""
_INTERVAL: Final = 5.0
"""and seconds between two checks."""

_log: Final = logging.getLogger("tallystream")


class RollbackWatch:
    """Compares what the server remembers with what it had confirmed. Not safe across threads: the sender owns it.

    Args:
        client: A client that never sends anything twice.
        epoch: The life of the data that the entries belong to; `None` if lives are not told apart.
        on_rename: Told, before anything is sent under it, of a queue's new name: partition, name, and the sequence
            under the old name after which it begins at 1.
    """

    def __init__(
        self, client: redis.Redis, epoch: str | None, on_rename: Callable[[int, str, int], None] | None
    ) -> None:
        self._client = client
        self._epoch = epoch
        self._on_rename = on_rename
        self._suspects: dict[int, int] = {}  # partition -> the last sequence that the server remembers
        self._checked_at = float("-inf")
        self.confirmed_at = float("-inf")
        """Monotonic second at which an entry was last confirmed."""
        self.is_unsure = False
        """Whether a burst was sent whose replies did not come."""
        self.rewound = 0
        """Times that a stream turned out to have lost entries that it had confirmed."""
        self.lost = 0
        """How many of these entries were not held any more."""

    def due(self, now: float) -> float | None:
        """Return the monotonic second of the next check, `None` if there is none to make."""
        if self._suspects:
            return now
        return max(self._checked_at, self.confirmed_at) + _INTERVAL if now - self.confirmed_at < _WATCH else None

    def suspect(self, partition: int, last: int) -> None:
        """Remember that the server has the entries of a partition up to `last` only."""
        self._suspects[partition] = last

    def queue_checks(self, pipeline: Any, layout: Layout, queues: Sequence[PartitionQueue], now: float) -> list[int]:
        """Ask for the sequences of the queues that have nothing to send, if it is time; return their partitions."""
        if not self.is_unsure and now - max(self._checked_at, self.confirmed_at) < _INTERVAL:
            return []
        self._checked_at = now
        checked = [partition for partition, queue in enumerate(queues) if queue.kept and not queue.waiting]
        for partition in checked:
            pipeline.execute_command("HGET", layout.keys[partition].sequences, queues[partition].producer)
        return checked

    def compare(self, queues: Sequence[PartitionQueue], checked: Sequence[int], replies: Sequence[Any]) -> None:
        """Suspect the partitions whose server remembers less than it had confirmed."""
        for partition, reply in zip(checked, replies, strict=True):
            if not isinstance(reply, RedisError):
                last = int(reply.split()[0]) if reply else 0
                if last < queues[partition].confirmed:
                    self.suspect(partition, last)

    def roll_back(self, layout: Layout, queues: Sequence[PartitionQueue]) -> None:
        """Go back where the server did: it remembers less than it had confirmed.

        In another life of the data (the server was flushed, and begun anew) what was confirmed in the old one is no
        part of it: only what was never confirmed is sent there.

        Raises:
            RedisError: it is not known which life this is; nothing has changed.
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
                # A name is given up only upon a gap, which proves that nothing of what waits has been written.
                queue.forget()

    def count(self, rollback: Rollback) -> None:
        """Count a queue that was rolled back elsewhere."""
        self.rewound += 1
        self.lost += rollback.lost

    def reset(self) -> None:
        """Forget what was suspected: the events go on elsewhere."""
        self._suspects.clear()
        self.is_unsure = False

    def _rename(self, partition: int, queue: PartitionQueue) -> None:
        name = new_name()
        if self._on_rename is not None:
            self._on_rename(partition, name, queue.confirmed)
        queue.rename(name)
