"""Sets archived entries aside that the server has lost, so that readers find only what was sent again.

A server that loses the end of its log (a failover to a replica that lagged, an append-only file that was cut) loses the
position of the archive too, because both are in the same partition. Then there are files after the position. Their
entries up to the first one that the stream does not have are of both logs; the others are of the lost log alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from tallystream.wire.codec import COPIED, stated_events
from tallystream.wire.stream_id import id_text, parse_id
from tallystream_worker.archive.rows import entries_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import redis

    from tallystream.storage.keys import PartitionKeys
    from tallystream.wire.stream_id import StreamID
    from tallystream_worker.archive.counted_only import LeftOut
    from tallystream_worker.archive.store import File, Store
    from tallystream_worker.counting.entry import Entry

_READ: Final = 256


@dataclass(frozen=True)
class LostEntries:
    """Archived entries that the server has lost.

    Attributes:
        stream: The name of the stream.
        after: The ID of the last archived entry up to which archive and stream have the same entries after the position
            of the group `archive`; this position if there is none.
        until: The ID of the last lost entry.
        entries: Number of lost entries.
        events: Number of events in them.
        sent_again: Number of lost entries that their producers had sent again when the loss was found, or whose events
            are in the counters of a restored snapshot: the server's record of the producer has the sequence, or a later
            one.
    """

    stream: str
    after: str
    until: str
    entries: int
    events: int
    sent_again: int


def find_lost(
    client: redis.Redis, keys: PartitionKeys, store: Store, files: Sequence[File], position: str
) -> tuple[str, bool, LostEntries | None]:
    """Compare the archived entries after the group's position with the stream; change nothing.

    The stream has an archived entry if its entry with this ID is of the same producer and sequence, or if neither of
    the two entries has a producer and a sequence.

    Args:
        client: The server of the stream.
        keys: The keys of the partition.
        store: The archive.
        files: The files with entries after the position, in order.
        position: The position of the group `archive`.

    Returns:
        Three values. The ID of the last archived entry up to which archive and stream have the same entries after the
        position; `position` if there is none. Whether there are later archived entries. A summary of those of them that
        the stream lacks; `None` if it lacks none. After a restore that read the archive, it may have some of them.

    Raises:
        ArchiveError: a file cannot be read.
        CodecError: a file has a damaged row `raw`.
        redis.RedisError: the server did not answer, or refused a command.
    """
    common, until, entries, events, sent_again, is_apart = position, position, 0, 0, 0, False
    for file in files:
        table, _ = store.read(file)
        for part in _parts(entry for entry in entries_of(table) if parse_id(entry.id) > parse_id(position)):
            rest = part
            if not is_apart:
                same = _same(client, keys.stream, common, part)
                common = part[same - 1].id if same else common
                rest = part[same:]
                is_apart = bool(rest)
            if lost := _lacking(client, keys.stream, rest):
                entries += len(lost)
                events += sum(stated_events(entry.fields) for entry in lost)
                sent_again += sum(_are_known(client, keys, lost))
                until = lost[-1].id
    return common, is_apart, LostEntries(keys.stream, common, until, entries, events, sent_again) if entries else None


def set_aside(
    client: redis.Redis,
    keys: PartitionKeys,
    store: Store,
    partition: int,
    files: Sequence[File],
    after: str,
    *,
    left_out: LeftOut | None,
    is_current: Callable[[], bool],
) -> bool:
    """Take the entries after the ID `after` out of the archive: move those that the stream lacks to other files.

    No reader of the archive finds these. `Store.put_lost` writes them; but those that were sent again, up to the last
    ID of `left_out`, are written by `Store.put_counted`. Entries that the stream has are archived again later. A file
    that also has entries up to `after` is divided. Files are taken out from the last to the first. Each stays under
    another name (see `Store.retire`), so no entry is deleted. If a crash interrupts this, a second call, with the files
    listed again, completes it.

    An entry without a producer and a sequence, or a copy of a repartition, was not sent again. Any other one was sent
    again if the server's record of its producer has its sequence or a later one.

    Args:
        client: The server of the stream.
        keys: The keys of the partition.
        store: The archive.
        partition: The number of the partition.
        files: The files of the partition that may have such entries, in order.
        after: The ID of the last entry that stays.
        left_out: Of a restored snapshot, if entries before these are only in its counters. The restore has left out
            what producers had sent again of those: so the events of an entry that was sent again are counted, although
            the stream may lack both of its copies. Not so for an entry that was appended after the restore: a producer
            that has lost entries continues with a later sequence, so its record does not show that it sent them again.
        is_current: Returns whether `files` are still those after the group's position. It is called before each file is
            taken out: another archiver may have written a file of this name meanwhile.

    Returns:
        `False` if `is_current` has returned `False`: the caller must begin again.

    Raises:
        ArchiveError: a file cannot be read, written or removed.
        CodecError: a file has a damaged row `raw`.
        redis.RedisError: the server did not answer, or refused a command; entries may be set aside already.
    """
    branch = parse_id(after)
    for file in reversed([file for file in files if file.last > branch]):
        table, previous = store.read(file)
        is_common = _is_up_to(table, branch)
        apart = table.filter(pc.invert(is_common))
        before = max(previous, after, key=parse_id)
        known: dict[StreamID, bool] = {}  # by ID of each entry that the stream lacks: whether it was sent again
        for part in _parts(entries_of(apart)):
            lost = _lacking(client, keys.stream, part)
            known |= zip((parse_id(entry.id) for entry in lost), _are_known(client, keys, lost), strict=True)
        is_counted = {
            id_: is_known and left_out is not None and id_ <= left_out.until for id_, is_known in known.items()
        }
        counted = _chosen(apart, is_counted, True)  # noqa: FBT003  # the value to choose
        if left_out is not None and counted.num_rows:
            store.put_counted(partition, before, next(entries_of(counted)).id, file, counted, left_out.mark)
        if (rest := _chosen(apart, is_counted, False)).num_rows:  # noqa: FBT003
            missing = sum(not is_known for is_known in known.values())
            store.put_lost(partition, before, next(entries_of(rest)).id, file, rest, missing)
        if file.first <= branch:
            store.put(partition, previous, id_text(file.first), after, table.filter(is_common))
        if not is_current():
            return False
        store.retire(file)
    return True


def state_counted_only(store: Store, partition: int, files: Sequence[File], after: StreamID, until: StreamID) -> None:
    """State in the archive that entries after the ID `after`, up to `until`, may be only in the counters.

    The file with the next archived entry states it. If this file also has entries up to `after`, it is divided; a crash
    meanwhile leaves entries in two files, and a second call, with the files listed again, completes it.

    Args:
        store: The archive.
        partition: The number of the partition.
        files: The files of the partition that have later entries than `after`, in order; at least one.
        after: The ID of the last archived entry before the range.
        until: The ID up to which the range reaches.

    Raises:
        ArchiveError: a file cannot be read, written or removed.
        CodecError: a file has a damaged row `raw`.
    """
    for file in files:
        table, previous = store.read(file)
        if file.first > after:
            stated = store.join(file).lost
            if stated is None or stated < until:
                first, last = id_text(file.first), id_text(file.last)
                store.put(partition, previous, first, last, table, lost=id_text(until), again=True)
            return
        is_before = _is_up_to(table, after)
        rest = table.filter(pc.invert(is_before))
        first = next(entries_of(rest)).id
        store.put(partition, id_text(after), first, id_text(file.last), rest, lost=id_text(until))
        store.put(partition, previous, id_text(file.first), id_text(after), table.filter(is_before))
        store.retire(file)
        return


def _is_up_to(table: pa.Table, last: StreamID) -> Any:
    """Return, as an Arrow array of booleans, for each row of a table whether its entry has an ID up to `last`."""
    milliseconds = pc.cast(table.column("received"), "int64")
    is_before = pc.less(milliseconds, last[0])
    is_same = pc.and_(pc.equal(milliseconds, last[0]), pc.less_equal(table.column("received_n"), last[1]))
    return pc.or_(is_before, is_same)


def _chosen(table: pa.Table, values: Mapping[StreamID, bool], value: bool) -> pa.Table:
    """Return the rows of the entries for whose IDs `values` has this value."""
    received = table.column("received").cast("int64").to_pylist()
    numbers = table.column("received_n").to_pylist()
    return table.filter(pa.array([values.get(id_) is value for id_ in zip(received, numbers, strict=True)], pa.bool_()))


def _parts(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield entries, in their order, in lists of at most 256: one call to the server asks for a list."""
    entries = iter(entries)
    while part := list(islice(entries, _READ)):
        yield part


def _same(client: redis.Redis, stream: str, after: str, archived: Sequence[Entry]) -> int:
    """Return how many of these entries, from the first on, are the next ones of a stream after the ID `after`.

    Entries are compared as by `find_lost`.
    """
    found: Any = client.xrange(stream, f"({after}", archived[-1].id, count=len(archived))
    same = 0
    for entry, (id_, fields) in zip(archived, found, strict=False):
        if id_.decode() != entry.id or _origin(fields) != _origin(entry.fields):
            break
        same += 1
    return same


def _lacking(client: redis.Redis, stream: str, archived: Sequence[Entry]) -> list[Entry]:
    """Return those of these entries that a stream lacks, compared as by `find_lost`."""
    if not archived:
        return []
    with client.pipeline(transaction=False) as pipeline:
        for entry in archived:
            pipeline.xrange(stream, entry.id, entry.id)
        replies = pipeline.execute()
    return [
        entry
        for entry, found in zip(archived, replies, strict=True)
        if not found or _origin(found[0][1]) != _origin(entry.fields)
    ]


def _origin(fields: Mapping[bytes, bytes]) -> tuple[bytes, bytes] | None:
    producer, sequence = fields.get(b"p"), fields.get(b"q", b"")
    return (producer, sequence) if b"v" in fields and producer is not None and sequence.isdigit() else None


def _are_known(client: redis.Redis, keys: PartitionKeys, lost: Sequence[Entry]) -> list[bool]:
    """Return for each of these entries whether the server's record of its producer has its sequence or a later one.

    `False` for an entry without a producer and a sequence, and for a copy of a repartition.
    """
    origins = [_origin(entry.fields) for entry in lost]
    named = [origin for origin in origins if origin is not None and origin[0] != COPIED]
    if not named:
        return [False] * len(lost)
    records: Any = client.hmget(keys.sequences, [producer for producer, _ in named])
    pairs = zip(named, records, strict=True)
    known = {origin: record is not None and int(record.split()[0]) >= int(origin[1]) for origin, record in pairs}
    return [origin is not None and known.get(origin, False) for origin in origins]
