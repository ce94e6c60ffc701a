"""Finds out which entries exist only as counters: a restored snapshot was newer than the archive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tallystream.storage.keys import RESTORED, RESTORED_UP_TO
from tallystream.wire.stream_id import after, parse_id

if TYPE_CHECKING:
    import redis

    from tallystream.storage.keys import PartitionKeys
    from tallystream.wire.stream_id import StreamID
    from tallystream_worker.archive.store import Store


@dataclass(frozen=True)
class LeftOut:
    """The archived entries that the last restore of a partition left out, because the snapshot had their events.

    Attributes:
        mark: The mark of the snapshot.
        until: No entry after this ID was left out: it was appended after the restore.
    """

    mark: str
    until: StreamID


def read_left_out(client: redis.Redis, keys: PartitionKeys) -> LeftOut | None:
    """Return what the last restore of a partition left out; `None` if it read no archive, or nothing was restored.

    Raises:
        redis.RedisError: the server did not answer, or refused a command.
    """
    found: Any = client.hmget(keys.sequences, [RESTORED, RESTORED_UP_TO])
    restored, until = found
    if restored is None or until is None:
        return None
    return LeftOut(restored.decode().partition(" ")[0], parse_id(until.decode()))


def find_counted_only(store: Store, partition: int, restored: bytes) -> tuple[StreamID, StreamID] | None:
    """Return the range of entries that only the counters may have after the last restore; `None` if there is none.

    If no entry is archived, return `None` too.

    The range is two IDs: that of the last archived entry before it (if there is none, the ID after which the archive
    begins), and one up to which it reaches (see `counted_only`). Archived entries after the range do not matter: also
    the server that went back to older data may have archived some. If the first one of them was pending in the
    snapshot, there is no range: the archive has it from the time before the loss, and so it has each entry before it.

    Args:
        store: The archive.
        partition: The number of the partition.
        restored: The value of the field `RESTORED` of the sequences.

    Raises:
        ArchiveError: the archive cannot be listed, or a file cannot be read.
    """
    until, lacked = parse_restored(restored)
    if not lacked:
        return None
    last, following = store.neighbours(partition, until)
    if last is None or last >= until or following == after(until):
        return None
    return last, until


def counted_only(restored: bytes, archived: StreamID) -> StreamID | None:
    """Return the ID up to which entries after the archive's end may be only in the counters; `None` if there are none.

    If the restored stream lacked entries of the snapshot's counters, and the archive ends before the ID up to which the
    snapshot had counted every entry, the entries between the two may be neither in the stream nor in the archive.

    Args:
        restored: The value of the field `RESTORED` of the sequences.
        archived: The ID of the last archived entry.
    """
    until, lacked = parse_restored(restored)
    return until if lacked and archived < until else None


def parse_restored(restored: bytes) -> tuple[StreamID, int]:
    """Return two values of the last restore of a partition, from the field `RESTORED` of its sequences.

    The first one is the ID up to which the snapshot had counted every entry. The second one is the number of entries in
    the snapshot's counters that the restored stream lacked; an archive may have them.
    """
    _, begins, lacked = restored.decode().split(" ")
    return parse_id(begins), int(lacked)
