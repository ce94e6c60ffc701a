"""Fetches entries for one partition, in a fixed order.

1. our own pending ones: after a start, and after any error, when it is not known what became of them;
2. stale ones of other consumers, a few at a time, on a jittered timer and a cursor that is kept across calls;
3. new ones.

Each delivery adds to an entry's count, by which a poison entry is found. An outage must not: what is read again
because the server was away, full or read-only is not delivered again.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from tallystream.client.replies import is_group_there, is_key_missing
from tallystream.errors import ConsumerGroupMissing
from tallystream_worker.counting.entry import Entry
from tallystream_worker.process import failpoints

if TYPE_CHECKING:
    import redis

    from tallystream.storage.keys import PartitionKeys

MIN_READ: Final = 8
MAX_READ: Final = 256
"""Entries that one read asks for, at least and at most."""

_CLAIM_COUNT: Final = 64
_DONE: Final = "0-0"
_OF_THE_TOPIC: Final = frozenset({b"appended", b"entries:gated", b"entries:retired"})
"""What the ledger says of entries that nobody need have settled."""


def next_read_size(size: int, found: int) -> int:
    """Return how many entries to ask for after a read of `size` has found some.

    A full read means that there is a backlog, and larger reads need fewer round trips; small reads mean low latency.
    """
    return min(MAX_READ, size * 2) if found >= size else max(MIN_READ, found)


class Fetch:
    """Reads the stream of one partition as one consumer of the group.

    Args:
        client: A client whose time limit allows for blocking reads.
        keys: The partition's keys.
        consumer: The consumer's name; two workers with one name are harmless, though they do work twice.
        claim_idle: Seconds without a sign of life after which another consumer's entry is taken over.
        bytes_per_read: About how many bytes one read may bring.
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
        self._as_delivery = True  # whoever held them last may have died of one of them
        self.lost = 0
        """Entries that were trimmed away before they were counted."""

    def ensure_group(self) -> None:
        """Create the group at the beginning of the stream, where nothing has been counted yet.

        Raises:
            ConsumerGroupMissing: entries were counted, but the group that remembers which is gone. To create it
                anew, at either end, would count entries twice or never: that is an operator's decision.
        """
        ledger: list[bytes] = self._client.execute_command("HKEYS", self._keys.ledger)
        settled = sorted(name.decode() for name in ledger if name not in _OF_THE_TOPIC)
        if settled and not self._group_exists():
            group = self._keys.group
            raise ConsumerGroupMissing(
                f"{self._keys.stream}: consumer group {group!r} is missing, but the ledger shows that entries "
                f"were settled through it ({', '.join(settled[:3])}). Nothing is counted here until the counters are "
                "made anew from the log: tallystream rebuild"
            )
        try:
            self._client.xgroup_create(self._keys.stream, self._keys.group, id="0", mkstream=True)
        except ResponseError as error:
            if not is_group_there(error):
                raise

    def recover(self, *, as_delivery: bool = False) -> None:
        """Begin the next fetch with our own pending entries: it is not known what became of the last batch.

        Args:
            as_delivery: Count it against the entries, because one of them may be what the batch failed of.
        """
        self._recovering = True
        self._recovered = "0-0"
        self._as_delivery = self._as_delivery or as_delivery

    def __call__(self, count: int, block: float) -> list[Entry]:
        """Return the next entries, at most `count`; wait up to `block` seconds for new ones (0: do not wait).

        Raises:
            redis.ResponseError: `NOGROUP` if the stream or the group is gone.
        """
        entries = self._next(count, block)
        if entries:
            failpoints.reach("after-fetch")
        return entries

    def _next(self, count: int, block: float) -> list[Entry]:
        if self._recovering:
            if entries := self._own_pending(count):
                return entries
            self._recovering = self._as_delivery = False
        if time.monotonic() >= self._claim_at and (entries := self._stale()):
            return entries
        return self._read(">", count, block)

    def _own_pending(self, count: int) -> list[Entry]:
        """Read our own pending entries once, oldest first: an entry that fails again does not hold up the rest."""
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
        """Read what we hold without adding to its count, and stay its holder."""
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
            # JUSTID: says that we are alive, and is no delivery.
            held = [row["message_id"] for row in rows]
            pipeline.xclaim(self._keys.stream, self._keys.group, self._consumer, 0, held, justid=True)
            *found, _ = pipeline.execute()
        return [
            Entry(row["message_id"].decode(), dict(each[0][1]) if each else {}, int(row["times_delivered"]))
            for row, each in zip(rows, found, strict=True)
        ]

    def _without_lost(self, entries: list[Entry]) -> list[Entry]:
        """Acknowledge what was trimmed away while it was held: it can never be counted; the books say what it was."""
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
            # Jitter: a fleet that scans a long list in step is a burden on the server.
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
        """Look up how often entries that were handed out before have been handed out by now."""
        first, last = entries[0].id, entries[-1].id
        pending: list[dict[str, Any]] = self._client.xpending_range(
            self._keys.stream, self._keys.group, min=first, max=last, count=len(entries), consumername=self._consumer
        )
        times = {row["message_id"].decode(): int(row["times_delivered"]) for row in pending}
        return [Entry(entry.id, entry.fields, times.get(entry.id, entry.deliveries)) for entry in entries]

    def _group_exists(self) -> bool:
        try:
            return any(
                group["name"] == self._keys.group.encode() for group in self._client.xinfo_groups(self._keys.stream)
            )
        except ResponseError as error:
            if is_key_missing(error):
                return False
            raise
