"""Sets archived entries aside that the server has lost, so that readers find only what was sent again.

A server that loses the end of its log (a failover to a replica that lagged, an append-only file that was cut) loses the
position of the archive too, because both are in the same partition. Then there are files after the position. Their
entries up to the first one that the stream does not have are of both logs; the others are of the lost log alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow.compute as pc

from tallystream.wire.codec import COPIED, stated_events
from tallystream.wire.stream_id import parse_id
from tallystream_worker.archive.rows import entries_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pyarrow as pa
    import redis

    from tallystream.storage.keys import PartitionKeys
    from tallystream.wire.stream_id import StreamID
    from tallystream_worker.archive.store import File, Store
    from tallystream_worker.counting.entry import Entry

_READ: Final = 256


@dataclass(frozen=True)
class LostEntries:
    """Archived entries that the server has lost.

    Attributes:
        stream: The name of the stream.
        after: The ID of the last archived entry before the first lost one; if there is none after the position of the
            group `archive`, this position.
        until: The ID of the last lost entry.
        entries: Number of lost entries.
        events: Number of events in them.
        sent_again: Number of lost entries that their producers had sent again when the loss was found.
    """

    stream: str
    after: str
    until: str
    entries: int
    events: int
    sent_again: int


def find_lost(
    client: redis.Redis, keys: PartitionKeys, store: Store, files: Sequence[File], position: str
) -> tuple[str, LostEntries | None, dict[str, int]]:
    """Compare the archived entries after the group's position with the stream; change nothing.

    The stream has an archived entry if its entry with this ID is of the same producer and sequence, or if neither of
    the two entries has a producer and a sequence. All archived entries after the first lost one are lost, too.

    Args:
        client: The server of the stream.
        keys: The keys of the partition.
        store: The archive.
        files: The files with entries after the position, in order.
        position: The position of the group `archive`.

    Returns:
        Three values. The ID of the last archived entry before the first lost one, or of the last of all if none is
        lost; `position` if no archived entry after it is there. A summary of the lost entries; `None` if none is lost.
        By path of each file, how many of its lost entries were not sent again: an entry was sent again if the server's
        record of its producer has its sequence or a later one. A copy of a repartition, and an entry without a
        producer, count as not sent again.

    Raises:
        ArchiveError: a file cannot be read.
        CodecError: a file has a damaged row `raw`.
        redis.RedisError: the server did not answer, or refused a command.
    """
    common, until, entries, events = position, position, 0, 0
    missing = dict.fromkeys((file.path for file in files), 0)
    for file in files:
        table, _ = store.read(file)
        archived = [entry for entry in entries_of(table) if parse_id(entry.id) > parse_id(position)]
        for start in range(0, len(archived), _READ):
            part = archived[start : start + _READ]
            there = {} if entries else _origins(client, keys.stream, part[0].id, part[-1].id)
            lost: list[Entry] = []
            for entry in part:
                is_there = entry.id in there and there[entry.id] == _origin(entry.fields)  # the origin may be `None`
                if not entries and not lost and is_there:
                    common = entry.id
                else:
                    lost.append(entry)
            if lost:
                entries += len(lost)
                events += sum(stated_events(entry.fields) for entry in lost)
                missing[file.path] += len(lost) - _sent_again(client, keys, lost)
                until = lost[-1].id
    if not entries:
        return common, None, missing
    return common, LostEntries(keys.stream, common, until, entries, events, entries - sum(missing.values())), missing


def set_aside(store: Store, partition: int, files: Sequence[File], after: str, missing: Mapping[str, int]) -> None:
    """Take the entries after the ID `after` out of the archive: move them to files that no reader finds.

    See `Store.put_lost`. A file that also has earlier entries is divided. Files are moved from the last to the first,
    and each is copied before it is removed: if a crash interrupts this, a second call, with the files listed again,
    completes it.

    Args:
        store: The archive.
        partition: The number of the partition.
        files: The files of the partition that may have such entries, in order.
        after: The ID of the last entry that stays.
        missing: By path of each of these files, how many of its entries after that ID were not sent again.

    Raises:
        ArchiveError: a file cannot be read, written or removed.
        CodecError: a file has a damaged row `raw`.
    """
    branch = parse_id(after)
    for file in reversed([file for file in files if file.last > branch]):
        table, previous = store.read(file)
        is_common = _is_up_to(table, branch)
        lost = table.filter(pc.invert(is_common))
        store.put_lost(
            partition, max(previous, after, key=parse_id), next(entries_of(lost)).id, file, lost, missing[file.path]
        )
        if file.first <= branch:
            store.put(partition, previous, f"{file.first[0]}-{file.first[1]}", after, table.filter(is_common))
        store.remove(file)


def _is_up_to(table: pa.Table, last: StreamID) -> Any:
    """Return, as an Arrow array of booleans, for each row of a table whether its entry has an ID up to `last`."""
    milliseconds = pc.cast(table.column("received"), "int64")
    is_before = pc.less(milliseconds, last[0])
    is_same = pc.and_(pc.equal(milliseconds, last[0]), pc.less_equal(table.column("received_n"), last[1]))
    return pc.or_(is_before, is_same)


def _origins(client: redis.Redis, stream: str, first: str, last: str) -> dict[str, tuple[bytes, bytes] | None]:
    """Return, by ID, the producer and sequence of each entry of a stream from the ID `first` to the ID `last`.

    The value is `None` for an entry that has no producer or no sequence.
    """
    found: dict[str, tuple[bytes, bytes] | None] = {}
    while True:
        page: Any = client.xrange(stream, first, last, count=_READ)
        found |= {id_.decode(): _origin(fields) for id_, fields in page}
        if len(page) < _READ:
            return found
        first = f"({page[-1][0].decode()}"


def _origin(fields: Mapping[bytes, bytes]) -> tuple[bytes, bytes] | None:
    producer, sequence = fields.get(b"p"), fields.get(b"q", b"")
    return (producer, sequence) if b"v" in fields and producer is not None and sequence.isdigit() else None


def _sent_again(client: redis.Redis, keys: PartitionKeys, lost: Iterable[Entry]) -> int:
    origins = [origin for entry in lost if (origin := _origin(entry.fields)) is not None and origin[0] != COPIED]
    if not origins:
        return 0
    known: Any = client.hmget(keys.sequences, [producer for producer, _ in origins])
    pairs = zip(origins, known, strict=True)
    return sum(record is not None and int(record.split()[0]) >= int(sequence) for (_, sequence), record in pairs)
