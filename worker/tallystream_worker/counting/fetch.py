"""Fetches the entries of one partition, in a fixed order.

1. The worker's own pending entries: after a start, and after an error that leaves open whether they were counted.
2. Idle pending entries of all consumers, also this one: claimed up to 64 at a time, on a jittered timer, with a cursor
   that is kept between calls.
3. New entries.

Each delivery adds 1 to an entry's delivery count, which reveals a poison entry. An outage must not add to it: entries
that are read again because the server was unreachable, full or read-only are read without a delivery.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import ConsumerGroupMissing
from tallystream.storage.scripts import Script
from tallystream_worker.counting.entry import Entry
from tallystream_worker.process import failpoints

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis

    from tallystream.storage.keys import PartitionKeys

MIN_READ: Final = 8
"""The smallest number of entries that one read asks for."""

MAX_READ: Final = 256
"""The largest number of entries that one read asks for."""

COPIES: Final = "move"
"""The name of the consumer that counts the copies of a repartition, before their topic is live."""

_CLAIM_COUNT: Final = 64
_DONE: Final = "0-0"
_ENSURE_GROUP: Final = Script("tallystream_worker.counting", "ensure_group")


def next_read_size(size: int, found: int) -> int:
    """Return how many entries the next read asks for: twice `size` if the last one found at least `size`, else `found`.

    The result is between `MIN_READ` and `MAX_READ` if `size` is. A full read means that there is a backlog, which large
    reads work off in fewer round trips; small reads keep the latency low.
    """
    return min(MAX_READ, size * 2) if found >= size else max(MIN_READ, found)


class Fetch:
    """Reads the stream of one partition as one consumer of the group: call the object for the next entries.

    Call `ensure_group` first, and `recover` after an error. `claim` takes over certain pending entries.

    Args:
        client: A client whose timeout is longer than the longest blocking read.
        keys: The partition's keys.
        consumer: The consumer's name. Two workers with the same name count correctly, but do some work twice.
        claim_idle: Seconds since the last delivery or claim of a pending entry after which this consumer may claim the
            entry, whichever consumer has it.
    """

    def __init__(self, client: redis.Redis, keys: PartitionKeys, consumer: str, *, claim_idle: float = 30.0) -> None:
        self._client = client
        self._keys = keys
        self._consumer = consumer
        self._claim_idle_ms = int(claim_idle * 1000)
        self._claim_every = claim_idle / 3
        self._cursor = _DONE
        self._claim_at = 0.0
        self._recovering = True
        self._recovered = "0-0"
        self._as_delivery = True  # one of these entries may have crashed the previous process
        self.lost = 0
        """Number of pending entries that calls of this object found trimmed before they were counted.

        Those that `claim` finds are not included."""

    def ensure_group(self) -> None:
        """Create the stream and its consumer group, at the beginning of the stream, if they do not exist.

        Raises:
            KeyLost: the partition has lost a key without which entries would be appended or counted twice; or its
                stream was deleted after entries had been appended; or the generation is not the first one, and has not
                begun in this partition.
            ConsumerGroupMissing: entries were counted, but the group, which remembers which ones, is gone. A new group
                would count entries twice (from the beginning of the stream) or never (from its end), so an operator
                has to decide.
            redis.RedisError: the server does not reply, or rejects the command.
        """
        group = self._keys.group
        names = [self._keys.stream, self._keys.ledger, self._keys.topic_ledger]
        answer, *_ = _ENSURE_GROUP(self._client, names, [group])
        if answer == b"missing":
            raise ConsumerGroupMissing(self._keys.stream, group)

    def recover(self, *, as_delivery: bool = False) -> None:
        """Make the next fetches begin with the worker's own pending entries, because the last batch may not be counted.

        Args:
            as_delivery: Whether to add 1 to the delivery count of each of these entries, because one of them may have
                made the batch fail. Once true, as it is at the start, it stays true until a recovery has ended: a later
                call with `False` does not undo it.
        """
        self._recovering = True
        self._recovered = "0-0"
        self._as_delivery = self._as_delivery or as_delivery

    def __call__(self, count: int, block: float) -> list[Entry]:
        """Return own pending entries, or else claimed entries, or else new entries; an empty list if there are none.

        Own pending entries are read only in a recovery, which begins with the object or with `recover`. A search for
        entries to claim begins about three times in `claim_idle`; the calls after a recovery continue it until the end
        of the pending list. Pending entries that were trimmed are not returned; when they are found, they are
        acknowledged and added to `lost`.

        Args:
            count: The largest number of own pending or new entries; a claim returns at most 64.
            block: Seconds to wait for new entries, at least 0.001; 0 does not wait.

        Raises:
            redis.RedisError: the server did not answer or refused a command; `NOGROUP` if the stream or the group is
                gone.
        """
        entries = self._next(count, block)
        if entries:
            failpoints.reach("after-fetch")
        return entries

    def claim(self, ids: Sequence[str]) -> list[Entry]:
        """Take over these pending entries, whichever consumer has them, and return those that still exist.

        This counts as a delivery of each. An ID that is not pending, or whose entry was trimmed, is left out. A trimmed
        entry is not pending after this call; it is not added to `lost`. `Entry.deliveries` may be 1 although it is
        more, if this consumer has other pending entries between the IDs.

        Args:
            ids: Stream IDs in ascending order, at least one.

        Raises:
            redis.RedisError: the server does not reply, or rejects a command; `NOGROUP` if the stream or the group is
                gone.
        """
        claimed = self._client.execute_command("XCLAIM", self._keys.stream, self._keys.group, self._consumer, 0, *ids)
        entries = [Entry(id_.decode(), fields) for id_, fields in claimed if fields]
        return self._with_deliveries(entries) if entries else []

    def _next(self, count: int, block: float) -> list[Entry]:
        if self._recovering:
            if entries := self._own_pending(count):
                return entries
            self._recovering = self._as_delivery = False
        if time.monotonic() >= self._claim_at and (entries := self._stale()):
            return entries
        return self._read(">", count, block)

    def _own_pending(self, count: int) -> list[Entry]:
        """Return the next own pending entries after the last ones returned, oldest first; empty at the end.

        Each is read once in a recovery, so an entry that fails again does not delay the entries after it. Entries that
        were trimmed are left out, acknowledged, and added to `lost`.
        """
        again = self._delivered_again if self._as_delivery else self._still_held
        while found := again(count):
            self._recovered = found[-1].id
            if entries := self._without_lost(found):
                return entries
        return []

    def _delivered_again(self, count: int) -> list[Entry]:
        entries = self._read(self._recovered, count, 0)
        return self._with_deliveries(entries) if entries else []

    def _still_held(self, count: int) -> list[Entry]:
        """Return the next own pending entries without adding to their delivery count, and reset their idle time.

        An entry that was trimmed has no fields.
        """
        rows: list[dict[str, Any]] = self._client.xpending_range(
            self._keys.stream,
            self._keys.group,
            min=f"({self._recovered}",
            max="+",
            count=count,
            consumername=self._consumer,
        )
        if not rows:
            return []
        with self._client.pipeline(transaction=False) as pipeline:
            for row in rows:
                pipeline.xrange(self._keys.stream, row["message_id"], row["message_id"])
            # With JUSTID, XCLAIM resets the idle time and does not count as a delivery.
            held = [row["message_id"] for row in rows]
            pipeline.xclaim(self._keys.stream, self._keys.group, self._consumer, 0, held, justid=True)
            *found, _ = pipeline.execute()
        return [
            Entry(row["message_id"].decode(), dict(each[0][1]) if each else {}, int(row["times_delivered"]))
            for row, each in zip(rows, found, strict=True)
        ]

    def _without_lost(self, entries: list[Entry]) -> list[Entry]:
        """Return the entries that still exist, and acknowledge the ones that were trimmed while they were pending.

        The number of the trimmed ones is added to `lost`.
        """
        lost = [entry.id for entry in entries if not entry.fields]
        if lost:
            self._client.xack(self._keys.stream, self._keys.group, *lost)
            self.lost += len(lost)
        return [entry for entry in entries if entry.fields]

    def _stale(self) -> list[Entry]:
        cursor, claimed, deleted = self._client.execute_command(
            "XAUTOCLAIM", self._keys.stream, self._keys.group, self._consumer, self._claim_idle_ms, self._cursor,
            "COUNT", _CLAIM_COUNT,
        )  # fmt: skip
        if claimed:
            failpoints.reach("mid-claim")
        self._cursor = cursor.decode()
        self.lost += len(deleted)
        if self._cursor == _DONE:
            # Jitter: workers that all scan a long pending list at the same time would overload the server.
            self._claim_at = time.monotonic() + self._claim_every * random.uniform(0.75, 1.25)  # noqa: S311
        entries = [Entry(id_.decode(), fields) for id_, fields in claimed if fields]
        return self._with_deliveries(entries) if entries else []

    def _read(self, start: str, count: int, block: float) -> list[Entry]:
        command: list[Any] = ["XREADGROUP", "GROUP", self._keys.group, self._consumer, "COUNT", count]
        if block > 0:
            command += ["BLOCK", int(block * 1000)]
        reply = self._client.execute_command(*command, "STREAMS", self._keys.stream, start)
        found = reply.get(self._keys.stream.encode(), []) if reply else []
        return [Entry(id_.decode(), fields or {}) for id_, fields in found]

    def _with_deliveries(self, entries: list[Entry]) -> list[Entry]:
        """Return copies of the entries, which are in order, with the delivery counts from this consumer's pending list.

        An entry keeps its count if the reply lacks it, for example because this consumer has other pending entries
        between the first and the last one.
        """
        first, last = entries[0].id, entries[-1].id
        pending: list[dict[str, Any]] = self._client.xpending_range(
            self._keys.stream, self._keys.group, min=first, max=last, count=len(entries), consumername=self._consumer
        )
        times = {row["message_id"].decode(): int(row["times_delivered"]) for row in pending}
        return [Entry(entry.id, entry.fields, times.get(entry.id, entry.deliveries)) for entry in entries]
