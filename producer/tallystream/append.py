"""Appends sealed entries to the streams, each exactly once, in order, however often it takes.

An entry's bytes, partition and sequence are frozen before it is first sent. Whatever happens to the reply, the
same call is made again from the first unconfirmed entry on, and the gate in `append.lua` lets it through once.
"""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError, RedisError

from tallystream.codec import VERSION
from tallystream.script import Script

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis

    from tallystream.keys import Layout

_APPEND: Final = Script("tallystream", "append")

_BURST: Final = 32
"""The most entries per partition in one pipeline: bounds what a cut connection makes us send again."""


@dataclass(slots=True, eq=False)
class Entry:
    """A sealed entry on its way.

    `cycle` numbers the seal that froze it: what was emitted earlier has a lower or equal one.
    """

    cycle: int
    events: int
    size: int
    payload: bytes


class Appender:
    """The unconfirmed entries of every partition, and the gate's counterpart on this side.

    Not safe across threads: the flusher owns it.
    """

    def __init__(self, client: redis.Redis, layout: Layout) -> None:
        self._client = client
        self.layout = layout
        self._lanes = [_Lane() for _ in layout.keys]
        self._script_is_loaded = False
        self.last_ids: list[str | None] = [None] * layout.partitions
        """Per partition, the stream ID of the last entry of ours that was confirmed."""
        self.resent = 0
        """Entries that the gate had already let through when they came again."""
        self.rewound = 0
        """Times that a stream turned out to have lost entries that it had confirmed."""

    def push(self, partition: int, entry: Entry) -> None:
        """Queue an entry; its sequence is its place in the queue."""
        self._lanes[partition].waiting.append(entry)

    @property
    def oldest_cycle(self) -> int | None:
        """The lowest cycle among the unconfirmed entries, `None` where there are none."""
        return min((lane.waiting[0].cycle for lane in self._lanes if lane.waiting), default=None)

    def send(self) -> tuple[list[Entry], RedisError | None]:
        """Send a burst of unconfirmed entries.

        Returns:
            The entries now confirmed, and the first error that a server answered with (memory full, read-only,
            loading, no right); entries that it concerns stay queued.

        Raises:
            RedisError: the connection broke; nothing is known of the burst, all of it stays queued.
        """
        sent: list[tuple[int, Entry]] = []
        with self._client.pipeline(transaction=False) as pipeline:
            for partition, lane in enumerate(self._lanes):
                keys = self.layout.keys[partition]
                names = [keys.stream, keys.sequences, keys.ledger]
                for sequence, entry in enumerate(islice(lane.waiting, _BURST), start=lane.confirmed + 1):
                    _APPEND.queue(pipeline, names, [VERSION, lane.producer, sequence, entry.events, entry.payload])
                    sent.append((partition, entry))
            if not sent:
                return [], None
            if not self._script_is_loaded:
                _APPEND.load(self._client)
                self._script_is_loaded = True
            replies = pipeline.execute(raise_on_error=False)
        return self._settle(sent, replies)

    def _settle(
        self, sent: Sequence[tuple[int, Entry]], replies: Sequence[Any]
    ) -> tuple[list[Entry], RedisError | None]:
        confirmed: list[Entry] = []
        first_error: RedisError | None = None
        stopped: set[int] = set()
        for (partition, entry), reply in zip(sent, replies, strict=True):
            if partition in stopped:
                continue  # behind an entry that failed, the gate answers "gap": expected, and no news
            if isinstance(reply, RedisError):
                stopped.add(partition)
                if isinstance(reply, NoScriptError):
                    self._script_is_loaded = False  # a restart, a failover, SCRIPT FLUSH: the next burst begins with it
                else:
                    first_error = first_error or reply
                continue
            lane = self._lanes[partition]
            answer, detail = reply[0], reply[1].decode()
            if answer == b"gap":
                # The server remembers less than it confirmed: it was rewound. Under a new name we begin at 1
                # again with everything that is still held.
                stopped.add(partition)
                self.rewound += 1
                lane.rename()
                continue
            self.resent += answer == b"already"
            lane.waiting.popleft()
            lane.confirmed += 1
            self.last_ids[partition] = detail or self.last_ids[partition]
            confirmed.append(entry)
        return confirmed, first_error


class _Lane:
    """One partition's queue: `waiting[0]` has the sequence `confirmed + 1`."""

    __slots__ = ("confirmed", "producer", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Entry] = deque()
        self.rename()

    def rename(self) -> None:
        self.producer = uuid.uuid4().hex[:16]
        self.confirmed = 0
