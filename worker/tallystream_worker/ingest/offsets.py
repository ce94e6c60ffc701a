"""Appends chunks of a file, each once, through the offset gate in `ingest.lua`.

A source is one segment of a file, read with one format and mapping. The gate accepts a chunk only if it begins at the
offset that is stored for its source and partition.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError, RedisError

from tallystream.client.replies import is_refusal
from tallystream.errors import KeyLost, TallyError
from tallystream.storage.scripts import Script
from tallystream.wire.codec import VERSION
from tallystream_worker.process.unless_lost import write_unless_lost

if TYPE_CHECKING:
    from collections.abc import Iterable

    import redis

    from tallystream.storage.keys import Layout

SOURCE: Final = "file:"
"""The prefix of the names of sources, which are stored with the names of producers."""

_AT: Final = "@"
"""The separator between a source and a partition of an earlier topic, in the name of its offset there."""

_PAGE: Final = 1000
"""Offsets that one command writes at most."""

_INGEST: Final = Script("tallystream_worker.ingest", "ingest")


@dataclass(frozen=True, slots=True)
class Chunk:
    """The events of one partition from offset `begin` to before `end` of a source, which become one entry.

    Offsets are bytes of text, or rows of Parquet.

    Attributes:
        begin: The `end` of the chunk before it in the same partition, which an earlier run may have appended; else 0.
        end: The `begin` of the next chunk in the same partition.
        events: The number of events.
        payload: The encoded events.
    """

    begin: int
    end: int
    events: int
    payload: bytes


class SourceMoved(TallyError):
    """Raised if the stored offset of a source is not the expected one, or the topic was closed.

    The caller must read the source again.

    The offset differs if another run appends the same source, or if the server was rewound.
    """


class OffsetGate:
    """Appends the chunks of one source, each once.

    `offsets` returns what is appended already; `push` queues the chunks after that, and `send` appends them.

    Args:
        client: A client that never sends a command twice.
        layout: The keys of the streams.
        source: The name of the source, with the prefix `SOURCE`. Its offsets are stored with the sequences of
            producers, but are not removed when it is silent.
    """

    def __init__(self, client: redis.Redis, layout: Layout, source: str) -> None:
        self._client = client
        self._layout = layout
        self._source = source
        self._waiting: list[deque[Chunk]] = [deque() for _ in layout.keys]
        self.topic = layout.topic
        """The topic that the chunks are appended to."""
        self.last_ids: list[str | None] = [None] * layout.partitions
        """By partition, the stream ID of the last entry of this gate whose reply arrived; `None` if there is none."""
        self.ends: list[int] = [0] * layout.partitions
        """By partition, the offset up to which the source is appended, as the server last replied."""

    def earlier_offsets(self, earlier: Iterable[Layout]) -> list[list[int]]:
        """Read and return the source's offset for each partition of each earlier topic, as `keep_offsets` stored it.

        Args:
            earlier: The layouts of the earlier topics.

        Returns:
            For each layout, a list by partition, in the unit of `offsets`; 0 if nothing was appended.

        Raises:
            RedisError: the offsets cannot be read.
        """
        found = []
        for layout in earlier:
            names = [earlier_name(self._source, layout.topic, partition) for partition in range(layout.partitions)]
            marks: Any = self._client.hmget(self._layout.keys[0].sequences, names)
            found.append([offset_of(mark) for mark in marks])
        return found

    def offsets(self) -> list[int]:
        """Read and return the offset up to which the source is appended, for each partition; 0 if it is not.

        An offset is a number of bytes of (decompressed) text or, of Parquet, of rows, from the beginning of the file.
        The result is also stored in `ends`.

        Raises:
            RedisError: the offsets cannot be read.
        """
        with self._client.pipeline(transaction=False) as pipeline:
            for keys in self._layout.keys:
                pipeline.hget(keys.sequences, self._source)
            self.ends = [offset_of(mark) for mark in pipeline.execute()]
        return list(self.ends)

    def push(self, partition: int, chunk: Chunk) -> None:
        """Queue a chunk of a partition, without sending it; it must begin at the end of the partition's last chunk."""
        self._waiting[partition].append(chunk)

    @property
    def waiting(self) -> int:
        """The bytes of payload in the queue, which are not known to be appended."""
        return sum(len(chunk.payload) for queue in self._waiting for chunk in queue)

    def send(self) -> tuple[int, str | None]:
        """Append the queued chunks, in one pipeline; a chunk that could not be appended stays queued.

        Returns:
            The number of events that are appended, also by an earlier call whose reply was lost; and why some are not:
            a stream is full, a reset holds appends back for a moment, or the server rejects writes. `None` if all are,
            or if another call can append them at once; see `waiting`.

        Raises:
            KeyLost: a partition has lost a key; nothing more was appended to it.
            SourceMoved: the stored offset is not the expected one, or the topic is closed.
            RedisError: the connection broke, or the server will reject the write again (no permission, wrong key type).

        After an error, chunks that are not known to be appended stay queued, although some of them may be appended.
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
                continue  # the gate rejects the chunks after one that failed
            if isinstance(reply, NoScriptError):
                _INGEST.load(self._client)
            elif isinstance(reply, RedisError):
                if is_refusal(reply):
                    raise reply
                problem = f"the server replies {reply}"
            elif reply[0] == b"damaged":
                raise KeyLost(reply[1].decode())
            elif reply[0] == b"closed":
                raise SourceMoved(
                    f"{self._layout.keys[partition].stream} is closed: a repartition moves its events to a new topic"
                )
            elif reply[0] == b"full":
                limit = int(reply[1])
                problem = f"a stream has reached its limit of {limit:,} entries: the workers must count some first"
            elif reply[0] == b"held":
                problem = "a reset holds the events back for a moment"
            else:
                # If a reply was lost before, the stored offset is the end of this chunk, or of a later queued chunk.
                if reply[0] == b"at" and int(reply[1]) not in {each.end for each in self._waiting[partition]}:
                    raise SourceMoved(f"the offset of {self._source} is {int(reply[1]):,}, not {chunk.begin:,}")
                if reply[0] == b"appended":
                    self.last_ids[partition] = reply[1].decode()
                self._waiting[partition].popleft()
                self.ends[partition] = chunk.end
                events += chunk.events
                continue
            stopped.add(partition)
        return events, problem


def keep_offsets(client: redis.Redis, old: Layout, new: Layout) -> None:
    """Copy the offsets of files from a closed topic to the new topic, where `OffsetGate.earlier_offsets` reads them.

    The offsets that the closed topic has from earlier topics are copied too.

    Raises:
        KeyLost: the partition of the new topic that gets the offsets has lost a key.
        RedisError: the offsets cannot be read or written; some may be copied, and another call copies all.
    """
    for partition, keys in enumerate(old.keys):
        kept: dict[str, bytes] = {}
        for name, mark in client.hscan_iter(keys.sequences, match=f"{SOURCE}*", count=1000):
            source = name.decode()
            kept[source if _AT in source else earlier_name(source, old.topic, partition)] = mark
        left = iter(kept.items())
        while page := list(islice(left, _PAGE)):
            fields = [part for pair in page for part in pair]
            write_unless_lost(client, new.keys[0], "HSET", new.keys[0].sequences, *fields)


def earlier_name(source: str, topic: int, partition: int) -> str:
    """Return the name under which the live topic has the offset that a source had in a partition of an earlier topic.

    The offset is in the sequences of partition 0 of the live topic.
    """
    return f"{source}{_AT}{topic}.{partition}"


def offset_of(mark: bytes | None) -> int:
    """Return the offset in a stored value of a source; 0 if there is no value."""
    return int(mark.split()[0]) if mark else 0
