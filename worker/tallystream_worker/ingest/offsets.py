"""Appends chunks of a file, each once, through the offset gate in `ingest.lua`."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError, RedisError

from tallystream.client.replies import is_refusal
from tallystream.errors import TallyError
from tallystream.storage.scripts import Script
from tallystream.wire.codec import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable

    import redis

    from tallystream.storage.keys import Layout

SOURCE: Final = "file:"
"""How the names of sources begin, among the producers'."""

_AT: Final = "@"
"""What stands between a source and the partition of an earlier log, where its offset there is kept."""

_INGEST: Final = Script("tallystream_worker.ingest", "ingest")


@dataclass(frozen=True, slots=True)
class Chunk:
    """The events of one partition that lie in [begin, end) of a file; `end` is where the next chunk begins."""

    begin: int
    end: int
    events: int
    payload: bytes


class SourceMoved(TallyError):
    """The source stands elsewhere than was thought: another run counts it, or the server was rewound. Read it anew."""


class OffsetGate:
    """The chunks of one source on their way.

    Args:
        client: A client that never sends anything twice.
        layout: Where the streams are.
        source: The source's name; it stands among the producers, and is never forgotten.
    """

    def __init__(self, client: redis.Redis, layout: Layout, source: str) -> None:
        self._client = client
        self._layout = layout
        self._source = source
        self._waiting: list[deque[Chunk]] = [deque() for _ in layout.keys]
        self.last_ids: list[str | None] = [None] * layout.partitions
        """Per partition, the stream ID of the last entry that was appended here."""

    def earlier_offsets(self, earlier: Iterable[Layout]) -> list[list[int]]:
        """Return the offsets in each log before this one, as it was noted when they were closed; see `keep_offsets`."""
        found = []
        for layout in earlier:
            names = [_earlier(self._source, layout, partition) for partition in range(layout.partitions)]
            marks: Any = self._client.hmget(self._layout.keys[0].sequences, names)
            found.append([_offset(mark) for mark in marks])
        return found

    def offsets(self) -> list[int]:
        """Return how far the source is appended, for each partition."""
        with self._client.pipeline(transaction=False) as pipeline:
            for keys in self._layout.keys:
                pipeline.hget(keys.sequences, self._source)
            return [_offset(mark) for mark in pipeline.execute()]

    def push(self, partition: int, chunk: Chunk) -> None:
        """Queue a chunk that adjoins the one before it."""
        self._waiting[partition].append(chunk)

    @property
    def waiting(self) -> int:
        """Bytes of payload that are not appended yet."""
        return sum(len(chunk.payload) for queue in self._waiting for chunk in queue)

    def send(self) -> tuple[int, str | None]:
        """Send what is queued; what could not be appended stays queued, and may be sent again.

        Returns:
            The events appended, and in words why some were not: the backlog is full, or the server refuses writes.

        Raises:
            SourceMoved: the source stands elsewhere.
            RedisError: the connection broke; nothing is known, everything stays queued. Or we lack a right.
        """
        sent = [(partition, chunk) for partition, queue in enumerate(self._waiting) for chunk in queue]
        if not sent:
            return 0, None
        with self._client.pipeline(transaction=False) as pipeline:
            for partition, chunk in sent:
                keys = self._layout.keys[partition]
                about = [VERSION, self._source, chunk.begin, chunk.end, chunk.events, chunk.payload]
                _INGEST.queue(pipeline, [keys.stream, keys.sequences, keys.topic_ledger], about)
            replies = pipeline.execute(raise_on_error=False)
        return self._settle(sent, replies)

    def _settle(self, sent: list[tuple[int, Chunk]], replies: list[Any]) -> tuple[int, str | None]:
        events, problem = 0, None
        stopped: set[int] = set()
        for (partition, chunk), reply in zip(sent, replies, strict=True):
            if partition in stopped:
                continue  # behind one that failed, the gate refuses the others
            if isinstance(reply, NoScriptError):
                _INGEST.load(self._client)
            elif isinstance(reply, RedisError):
                if is_refusal(reply):
                    raise reply
                problem = f"the server answers {reply}"
            elif reply[0] == b"closed":
                raise SourceMoved(
                    f"{self._layout.keys[partition].stream} is closed: the events go on to other partitions"
                )
            elif reply[0] == b"full":
                limit = int(reply[1])
                problem = f"the backlog is at its limit of {limit:,} entries a stream: the workers must catch up"
            else:
                # Where a reply was lost before, the source stands behind this chunk, or behind one that follows it.
                if reply[0] == b"at" and int(reply[1]) not in {each.end for each in self._waiting[partition]}:
                    raise SourceMoved(f"{self._source} stands at {int(reply[1]):,}, not at {chunk.begin:,}")
                if reply[0] == b"appended":
                    self.last_ids[partition] = reply[1].decode()
                self._waiting[partition].popleft()
                events += chunk.events
                continue
            stopped.add(partition)
        return events, problem


def keep_offsets(client: redis.Redis, old: Layout, new: Layout) -> None:
    """Note in a log how far files were appended in the one before, which is closed, and in those before that."""
    for partition, keys in enumerate(old.keys):
        kept: dict[str, bytes] = {}
        for name, mark in client.hscan_iter(keys.sequences, match=f"{SOURCE}*", count=1000):
            source = name.decode()
            kept[source if _AT in source else _earlier(source, old, partition)] = mark
        if kept:
            client.hset(new.keys[0].sequences, items=[part for pair in kept.items() for part in pair])


def _earlier(source: str, layout: Layout, partition: int) -> str:
    return f"{source}{_AT}{layout.topic}.{partition}"


def _offset(mark: bytes | None) -> int:
    return int(mark.split()[0]) if mark else 0
