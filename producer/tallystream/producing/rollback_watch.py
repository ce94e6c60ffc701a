"""Detects that a server has lost entries that it had confirmed, and rolls the queues back to send them again.

A failover, or a restart from an older copy, loses the last entries of a stream together with their sequences. The reply
`gap` to an entry shows that; a producer with nothing to send checks it every few seconds.

After a long silence the reply is `forgotten`: the server removed the record of the queue, and still has its entries.
The queue then begins again under a new name, and sends only entries that the stream cannot have.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from tallystream.errors import DeploymentChanged
from tallystream.producing.gate import GateRecord, parse_record, queue_read
from tallystream.producing.partition_queue import another_name
from tallystream.storage.deployment_hash import RESTORING
from tallystream.storage.sentinels import has_lost_sequences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import redis

    from tallystream.producing.partition_queue import PartitionQueue, Rollback, SealedEntry
    from tallystream.storage.keys import Layout

_WATCH: Final = 60.0
"""Seconds after the last confirmation during which an idle producer checks that the server still has its entries."""

_INTERVAL: Final = 5.0
"""Seconds between two such checks."""

_log: Final = logging.getLogger("tallystream")


class RollbackWatch:
    """Compares the sequences that the server has with those that it had confirmed, and rolls queues back.

    `suspect` and `compare` only note the partitions that differ; `roll_back` then changes their queues.

    Not safe across threads: only the sender thread uses it.

    Args:
        client: Client that never sends a command twice.
        epoch: Epoch (the random ID that a deployment gets when it is created) of the deployment that the entries belong
            to; `None` to ignore epochs.
        on_rename: Called before anything is sent under a queue's new name, with the partition, the new name, the last
            sequence that is not sent again under it (the new name begins at 1 after that), and a stream ID that no
            entry of the new name precedes.
    """

    def __init__(
        self, client: redis.Redis, epoch: str | None, on_rename: Callable[[int, str, int, str], None] | None
    ) -> None:
        self._client = client
        self.epoch = epoch
        """The epoch of the deployment that the queued entries belong to; `None` to ignore epochs."""
        self._on_rename = on_rename
        self._suspects: set[int] = set()  # partitions whose record at the gate does not match the queue
        self._given_up: list[SealedEntry] = []  # not returned by `roll_back` yet
        self._checked_at = float("-inf")
        self.confirmed_at = float("-inf")
        """Monotonic second at which an entry was last confirmed or given up; minus infinity before the first."""
        self.damaged: set[int] = set()
        """The partitions that the last `roll_back` left unchanged: their sequences or the deployment are lost."""
        self.is_unsure = False
        """Whether the next `queue_checks` must check: the last pipeline got no replies, or `check_soon` was called.

        The caller resets it when the replies have arrived.
        """
        self.rewound = 0
        """Number of times that any of the streams had lost confirmed entries."""
        self.lost = 0
        """Confirmed entries that a stream had lost, and that are not sent again.

        They were no longer kept here, or the server was emptied and has another epoch.
        """
        self.unknown = 0
        """Entries given up: before a reply arrived, the server may have removed the record of their queue.

        They are not sent again.
        """

    def due(self, now: float) -> float | None:
        """Return the monotonic second of the next check or rollback; `None` if none is planned.

        `now` is the present monotonic second. Checks end 60 seconds after the last confirmation. A check that
        `check_soon` demands is not included.
        """
        if self._suspects:
            return now
        return max(self._checked_at, self.confirmed_at) + _INTERVAL if now - self.confirmed_at < _WATCH else None

    def suspect(self, partition: int) -> None:
        """Note that the gate's record of a partition may differ from its queue: the next `roll_back` reads it."""
        self._suspects.add(partition)

    def check_soon(self) -> None:
        """Make the next `queue_checks` check its queues, however recent the last check is.

        These are the queues that have kept entries and nothing to send.
        """
        self.is_unsure = True

    @property
    def has_suspects(self) -> bool:
        """Whether the next `roll_back` has something to do."""
        return bool(self._suspects)

    def queue_checks(self, pipeline: Any, layout: Layout, queues: Sequence[PartitionQueue], now: float) -> list[int]:
        """Queue a read of the server's last sequence for each queue that has kept entries and nothing to send.

        Do nothing if the last check or confirmation is less than 5 seconds before `now`, unless `is_unsure` is set.

        Args:
            pipeline: The pipeline to add to; the caller executes it, and passes the replies to `compare`.
            layout: The keys of the partitions.
            queues: The queue of each partition, by partition number.
            now: The present monotonic second.

        Returns:
            The partitions whose sequences are read, in the order of the replies.
        """
        if not self.is_unsure and now - max(self._checked_at, self.confirmed_at) < _INTERVAL:
            return []
        self._checked_at = now
        checked = [partition for partition, queue in enumerate(queues) if queue.kept and not queue.waiting]
        for partition in checked:
            pipeline.execute_command("HGET", layout.keys[partition].sequences, queues[partition].producer)
        return checked

    def compare(self, queues: Sequence[PartitionQueue], checked: Sequence[int], replies: Sequence[Any]) -> None:
        """Suspect each checked partition if the sequence in its reply is lower than its last confirmed one.

        A missing record is the sequence 0; an error reply is ignored. A partition is not suspected because of entries
        that are known to be lost for good (`PartitionQueue.hole`). If the sequence is that of the last confirmed entry,
        `since` becomes the ID in the reply.
        """
        for partition, reply in zip(checked, replies, strict=True):
            if not isinstance(reply, RedisError):
                last, queue = int(reply.split()[0]) if reply else 0, queues[partition]
                if last < queue.confirmed and last != queue.skip:
                    self.suspect(partition)
                elif last == queue.confirmed:
                    queue.since = reply.split()[1].decode()  # other data may have the entry with another ID

    def roll_back(self, layout: Layout, queues: Sequence[PartitionQueue]) -> list[SealedEntry]:
        """Roll the queue of each suspected partition back to the last entry that the stream has.

        If no partition is suspected, read nothing and change no queue, whatever epoch is stored. Otherwise, if another
        epoch is stored, first do the same as `follow`, for all queues. A queue whose record matches it does not change.
        If the record was removed, so that the next entry cannot follow under the same name, the queue begins again
        under a new name. If a partition has lost its sequences, or no deployment is stored (and `epoch` is not `None`),
        its queue does not change. The attribute `damaged` is set to these partitions. No partition is suspected
        afterwards.

        Returns:
            The waiting entries that are not sent again, because a removed record may have covered them; also those of
            earlier calls that raised an error.

        Raises:
            RedisError: the server does not answer, or refuses a command; no queue has changed, except by `follow`.
            DeploymentChanged: a restore has not finished; no queue has changed, except by `follow`.

        Any error of `on_rename` is raised too; queues that were rolled back before it stay so, and the others stay
        suspected.
        """
        self.damaged = set()
        if self._suspects:
            self._roll_back_suspects(layout, queues)
        given_up, self._given_up = self._given_up, []
        return given_up

    def _roll_back_suspects(self, layout: Layout, queues: Sequence[PartitionQueue]) -> None:
        """Do the work of `roll_back`; add the entries that are not sent again to `_given_up`."""
        # Look before and after: a restore may bring the sequences back between the two.
        damaged = self._damaged(layout)
        epoch, records = self._read(layout, queues, self._suspects)
        if epoch and self.epoch not in (None, epoch):
            self._adopt(epoch, layout, queues)
            if self._suspects:
                self._roll_back_suspects(layout, queues)
            return
        self.damaged = damaged | self._damaged(layout)
        if not epoch and self.epoch is not None:
            self.damaged = set(self._suspects)  # the server was emptied: wait for the same data, or for another epoch
        for partition, record in records.items():
            queue, stream = queues[partition], layout.keys[partition].stream
            if partition in self.damaged:
                pass
            elif queue.is_forgotten(record):
                self._begin_again(partition, queue, record, stream)
            elif record.last < queue.confirmed and record.last != queue.skip:
                self._roll_back(partition, queue, record, stream)
            self._suspects.discard(partition)

    def follow(self, layout: Layout, queues: Sequence[PartitionQueue]) -> None:
        """If the stored epoch is another one, continue with the data that the server has now.

        Another epoch means that the server has other data, such as after it was emptied. Entries that the old data
        confirmed are not sent again: for each queue with confirmed entries, `rewound` grows by 1, and `lost` by the
        number of those that were not counted as lost before. The queue begins again under a new name. But if entries
        were sent without a reply, it keeps its name and sequences: the old data may have these entries, and does not
        get them a second time if it is restored. If the new data has a record of a queue, it confirmed the entries
        itself, so the queue does not change. Then `epoch` becomes the stored one. If no deployment is stored, nothing
        changes: the old data may be restored. If `epoch` is `None`, nothing changes either.

        Raises:
            RedisError: the server does not answer, or refuses a command; no queue has changed.
            DeploymentChanged: a restore has not finished; no queue has changed.

        Any error of `on_rename` is raised too; then call this again.
        """
        epoch, _ = self._read(layout, queues, ())
        if epoch and self.epoch not in (None, epoch):
            self._adopt(epoch, layout, queues)

    def _adopt(self, epoch: str, layout: Layout, queues: Sequence[PartitionQueue]) -> None:
        """Make `epoch`, which is stored now, the epoch of the entries.

        Take the confirmed entries of a queue for lost if the gate has no record of it; see `follow`, also for the
        errors.
        """
        _, records = self._read(layout, queues, range(len(queues)))
        for partition, record in records.items():
            queue, stream = queues[partition], layout.keys[partition].stream
            # Without a record, the gate lets only the first entry through. So if there are confirmed entries, no
            # waiting entry is in the new data, even if replies are missing.
            if record.last == 0 and queue.confirmed > 0:
                lost = self._lose(partition, queue, record)
                self._suspects.discard(partition)
                _log.warning(
                    "stream.reset stream=%s lost=%d: the server was emptied, and has other data now; entries that the "
                    "old stream had confirmed are not sent again", stream, lost,
                )  # fmt: skip
        self.epoch = epoch

    def _lose(self, partition: int, queue: PartitionQueue, record: GateRecord) -> int:
        """Take all confirmed entries of a queue for lost, and do not send them again; return their number.

        See `follow`, also for the errors. Those that were taken for lost before are not in the number.
        """
        is_unsure, last = queue.sent > queue.confirmed, queue.confirmed
        if not is_unsure:
            name = self._new_name(partition, queue, record, last)
        queue.since = record.newest
        queue.forget()
        rollback = queue.roll_back(record.last)
        self.count(rollback)
        if is_unsure:
            queue.sent = last
        else:
            queue.rename(name, record.newest)
        return rollback.lost

    def _damaged(self, layout: Layout) -> set[int]:
        return {partition for partition in self._suspects if has_lost_sequences(self._client, layout.keys[partition])}

    def _read(
        self, layout: Layout, queues: Sequence[PartitionQueue], partitions: Iterable[int]
    ) -> tuple[str, dict[int, GateRecord]]:
        """Return the stored epoch (`""` if no deployment is stored), and the gate's records of `partitions`.

        Raises:
            RedisError: the server does not answer, or refuses a command.
            DeploymentChanged: a restore has not finished.
        """
        partitions = sorted(partitions)
        with self._client.pipeline(transaction=False) as pipeline:
            pipeline.hmget(layout.root, ["epoch", RESTORING])
            for partition in partitions:
                queue_read(pipeline, layout.keys[partition], queues[partition].producer)
            (found, restoring), *replies = pipeline.execute()
        if restoring is not None:  # the epoch is missing, and the records may be those of before the restore
            raise DeploymentChanged(f"{layout.root}: a restore is replacing the counters, and has not finished")
        records = {partition: parse_record(reply) for partition, reply in zip(partitions, replies, strict=True)}
        return found.decode() if isinstance(found, bytes) else "", records

    def _roll_back(self, partition: int, queue: PartitionQueue, record: GateRecord, stream: str) -> None:
        until = queue.since  # the ID of the last confirmed entry
        last = queue.last_of(record)
        if last > record.last:  # the server removed the record: the gate would refuse the next entry
            name = self._new_name(partition, queue, record, queue.confirmed_after(last))
            rollback = queue.roll_back(last)
            queue.rename(name, record.newest)
        else:
            rollback = queue.roll_back(last)
            queue.since = record.last_id if record.last else record.newest
            queue.sent = queue.confirmed
        self.count(rollback)
        _log.warning(
            "stream.rolled_back stream=%s after=%s until=%s resent=%d lost=%d: the server lost confirmed entries",
            stream, record.last_id, until, rollback.again, rollback.lost,
        )  # fmt: skip

    def _begin_again(self, partition: int, queue: PartitionQueue, record: GateRecord, stream: str) -> None:
        """Begin a queue again whose record the server has removed; give up the entries that were sent without a reply.

        The queue gets a new name, under which the later entries get the sequences 1, 2, ... `unknown` grows by the
        number of entries given up. Those of them that wait here are returned by `roll_back`; those that only a dead
        process has sent are not. If nothing was ever sent under the name, the name stays. In both cases `since` of the
        queue becomes `newest` of `record`.

        Args:
            partition: The number of the partition.
            queue: The queue, whose record the server has removed.
            record: What the server replied for the name of the queue: no sequence, and an ID `newest` of the stream.
            stream: The name of the stream, for the log.

        An error of `on_rename` is raised; then nothing has changed.
        """
        last = queue.last_of(record)
        if last == 0:
            queue.since = record.newest  # nothing was ever sent under this name
            return
        unknown = last - queue.confirmed
        self._given_up += self._rename(partition, queue, record, last)
        self.unknown += unknown
        if unknown:
            _log.warning(
                "producer.forgotten stream=%s unknown=%d: the server removed the record of this producer after a long "
                "silence; the replies to these entries never arrived, so they are not sent again",
                stream, unknown,
            )  # fmt: skip

    def count(self, rollback: Rollback) -> None:
        """Count the rollback of a queue whose stream had lost confirmed entries.

        Add 1 to `rewound`, and the number of lost entries that cannot be sent again to `lost`.
        """
        self.rewound += 1
        self.lost += rollback.lost

    def reset(self) -> None:
        """Forget the suspected partitions and the missing replies, because the entries move to another topic.

        The counts (`rewound`, `lost`, `unknown`) and the epoch stay.
        """
        self._suspects.clear()
        self.is_unsure = False

    def _rename(self, partition: int, queue: PartitionQueue, record: GateRecord, last: int) -> list[SealedEntry]:
        """Call `on_rename`, then give a queue a new name; remove and return its waiting entries up to `last`.

        These are not sent again. The waiting entries after them stay, and get the sequences 1, 2, ... All confirmed
        entries that are kept for a rollback are dropped. If `on_rename` raises an error, the queue has not changed.

        Args:
            partition: The number of the partition.
            queue: The queue.
            record: What the server replied for the present name; its `newest` becomes `since` of the queue.
            last: The last sequence that the stream may have; at least the last confirmed one.
        """
        name = self._new_name(partition, queue, record, last)
        given_up = queue.confirm_to(last)
        queue.rename(name, record.newest)
        return given_up

    def _new_name(self, partition: int, queue: PartitionQueue, record: GateRecord, last: int) -> str:
        """Call `on_rename` with a new name for a queue, and return the name; the caller must then rename the queue."""
        name = another_name(queue.producer)
        if self._on_rename is not None:
            self._on_rename(partition, name, last, record.newest)
        return name
