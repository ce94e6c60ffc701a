"""Checks that the server still has what an ingest appended: a server that an older copy is put back to has lost it.

Appends to a segment notice such a loss, because the stored offset is not the expected one. Of a segment that was read
to its end, only this check does.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tallystream_worker.ingest.offsets import earlier_name, offset_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import redis

    from tallystream.storage.keys import Layout
    from tallystream_worker.ingest.file_identity import Identity

_BATCH: Final = 1000
"""The most values that one command reads."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SentSegment:
    """A segment of a file that was read to its end, and whose events are appended.

    Attributes:
        source: The name of its source, with the prefix `SOURCE`.
        identity: The identity of the file.
        offsets: By topic and partition, the offset up to which the source was appended there, in bytes of text or, of
            Parquet, in rows (see `OffsetGate.offsets`); 0 is left out.
        partitions: The number of partitions of the topic that it was appended to.
    """

    source: str
    identity: Identity
    offsets: Mapping[tuple[int, int], int]
    partitions: int


def lost_sources(client: redis.Redis, layout: Layout, segments: Iterable[SentSegment]) -> set[str]:
    """Return the sources of the segments of which the server has lost events; store lost identities of files again.

    A source is lost if the stored offset of any partition is lower than it was. Its segment must then be read again. An
    identity is stored again because a file that has grown since would otherwise get another one, and be taken for new.

    Args:
        client: The client of the server.
        layout: The layout of the live topic.
        segments: The segments to check.

    Raises:
        RedisError: the offsets cannot be read, or an identity cannot be stored.
    """
    expected: dict[str, list[tuple[str, str, int]]] = defaultdict(list)  # by key: field, source, offset
    identities: dict[str, int] = {}
    for segment in segments:
        identities[segment.identity.name] = segment.identity.size
        for (topic, partition), offset in segment.offsets.items():
            if topic == layout.topic:
                place = (layout.keys[partition].sequences, segment.source)
            else:
                place = (layout.keys[0].sequences, earlier_name(segment.source, topic, partition))
            expected[place[0]].append((place[1], segment.source, offset))
    for names in _batches(list(identities)):
        sizes: Any = client.hmget(layout.files, names)
        if lost := {name: identities[name] for name, size in zip(names, sizes, strict=True) if size is None}:
            client.hset(layout.files, items=[part for pair in lost.items() for part in pair])
    found = set()
    for key, entries in expected.items():
        for batch in _batches(entries):
            marks: Any = client.hmget(key, [field for field, _, _ in batch])
            found |= {
                source for (_, source, offset), mark in zip(batch, marks, strict=True) if offset_of(mark) < offset
            }
    return found


def _batches(values: Sequence[_T]) -> Iterator[list[_T]]:
    for first in range(0, len(values), _BATCH):
        yield list(values[first : first + _BATCH])
