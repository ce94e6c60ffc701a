"""Finds out whether the server has lost entries that a stored snapshot contains, or a restore has passed them over.

A failover to a replica that lagged, an append-only file that was cut, or an older RDB file takes the end of the log
away. New entries then follow, with later IDs, so an ID does not show the loss. Each snapshot therefore leaves a mark in
the partition: see `mark.lua`. If the mark is there, so is everything that the snapshot contains.

A restore of another snapshot takes the mark away too. It is the choice of an operator, who may have named the wrong
file: so the snapshot that was passed over is not replaced either, but the error is another one. A restore of an earlier
topic leaves the streams of the later one, and so the marks in them: only the time of the restore shows what happened.
"""

from __future__ import annotations

import uuid
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from tallystream.storage.keys import CLOSING, HORIZONS, REAPED, REAPED_SPOOL, RESTORED, RESTORED_AT
from tallystream.storage.scripts import Script
from tallystream.storage.stored_values import stored_number
from tallystream.wire.codec import COPIED
from tallystream.wire.stream_id import parse_id
from tallystream_worker.process.moments import format_moment
from tallystream_worker.snapshot.database import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import redis

    from tallystream.storage.keys import Layout, PartitionKeys
    from tallystream_worker.snapshot.database import Database
    from tallystream_worker.snapshot.point_in_time import SnapshotPosition

_MARK: Final = Script("tallystream_worker.snapshot", "mark")
_READ: Final = 1000

HOLDER: Final = "snapshot"
"""The name of the retention hold of the snapshots."""


class LogLost(SnapshotError):
    """Raised if the server has lost entries of the snapshot, and may lack their events: the snapshot is not replaced.

    Args:
        problem: Which entries of which stream are lost; also an attribute. The message has it, and what to do.
    """

    to_do = (
        "To go back to it, stop the workers that archive, and run: tallystream restore --force. To accept the loss and "
        "replace it, run: tallystream snapshot --once --accept-loss"
    )

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}. The snapshot is unchanged. {self.to_do}")
        self.problem = problem


class PassedOver(LogLost):
    """Raised instead of `LogLost` if another snapshot was restored after this one was taken."""

    to_do = (
        "To keep the present counters, and replace it, run: tallystream snapshot --once --accept-loss. To go back to "
        "it instead, stop the workers that archive, and run: tallystream restore --force"
    )


def next_mark(mark: str) -> str:
    """Return a new random mark for the next snapshot, after one with the mark `mark`; nothing is stored.

    It begins as `mark` does, up to the dot; if `mark` is empty, it begins with a new random text.
    """
    lineage = mark.partition(".")[0] or uuid.uuid4().hex[:12]
    return f"{lineage}.{uuid.uuid4().hex[:12]}"


def last_closing(client: redis.Redis, keys: PartitionKeys) -> int:
    """Return the number of the last closing or reopening that a partition has recorded; 0 if it has recorded none.

    A repartition that failed may have recorded a number without closing the partition. A restore that has not finished
    may not have recorded its number yet.

    Raises:
        DamagedValue: the number has another form than scripts write.
        redis.RedisError: the server did not answer, or refused the command.
    """
    field = f"!{CLOSING}"
    return stored_number(keys.sequences, client.execute_command("HGET", keys.sequences, field), field=field)


def put_mark(client: redis.Redis, keys: PartitionKeys, known: str, added: str = "", closing: int = 0) -> bool:
    """Store the mark `added` in a partition that has the mark `known`; return `False`, and store nothing, without it.

    If `added` is empty, store nothing, and return whether the partition has `known`. Storing a mark may remove older
    ones.

    Args:
        client: The server of the partition.
        keys: The keys of the partition.
        known: The mark of the last snapshot in the database. An empty one counts as there.
        added: The mark of the next snapshot.
        closing: With `added`, the result of `last_closing` before the values of that snapshot were read. If it is no
            longer the last one, or a restore replaces the counters now, nothing is stored, and the result is `False`.

    Raises:
        KeyLost: with `added`, the partition has lost a key; nothing was stored.
        redis.RedisError: the server did not answer, and may have stored the mark; or it refused the command.
    """
    (answer,) = _MARK(client, [keys.sequences, keys.live], [known, added, closing])
    return bool(answer == b"marked")


def has_everything(
    client: redis.Redis,
    keys: PartitionKeys,
    position: SnapshotPosition,
    database: Database,
    number: int,
    live: Layout,
) -> bool:
    """Return whether a partition has the mark of its snapshot, and so everything that the snapshot contains.

    Without the mark, the server has lost data of the snapshot, or another snapshot was restored. If the result is
    `False`, it has the events all the same: no entry of the snapshot is lost, or all were sent again. An empty mark
    counts as there. The generation of the snapshot need not be live, nor its topic; but if the topic is later than the
    live one, which only a restore leaves, the live topic lacks its events, whatever its streams have.

    Args:
        client: The server of the partition.
        keys: The keys of the partition, in the topic of the snapshot.
        position: The position of the snapshot.
        database: The database of the snapshot, which has the records of its producers.
        number: The number of the partition.
        live: The layout of the live topic.

    Raises:
        LogLost: entries of the snapshot are missing, and not all of them were surely sent again. It is `PassedOver` if
            another snapshot was restored after this one was taken.
        SnapshotError: the database cannot be used.
        DamagedValue: another client has changed the record of a restore.
        redis.RedisError: the server did not answer, or refused a command.
    """
    if keys.topic > live.topic and (passed := passed_over(client, keys, position, live)):
        raise passed
    if put_mark(client, keys, position.mark):
        return True
    held: bytes | None = client.execute_command("HGET", keys.retention_holds, HOLDER)
    try:
        ensure_sent_again(client, keys, position, database.producers(number), "0-0" if held is None else held.decode())
    except LogLost:
        if passed := passed_over(client, keys, position, live):
            raise passed from None
        raise
    return False


def passed_over(
    client: redis.Redis, keys: PartitionKeys, position: SnapshotPosition, live: Layout
) -> PassedOver | None:
    """Return the error about a snapshot if another snapshot was restored after it was taken; or `None`.

    Call it if the partition lacks the mark of the snapshot, or the topic of the snapshot is later than the live one.

    Args:
        client: The server of the partition.
        keys: The keys of the partition, in the topic of the snapshot.
        position: The position of the snapshot.
        live: The layout of the live topic. If the snapshot is of another one, a restore of any partition counts.

    Raises:
        DamagedValue: another client has changed the record of a restore.
        redis.RedisError: the server did not answer, or refused a command.
    """
    restored = 0
    for each in [keys] if keys.topic == live.topic else live.keys:
        found: Any = client.hmget(each.sequences, [RESTORED, RESTORED_AT])
        restored = max(restored, position.passed_over(each.sequences, *found))
    if not restored:
        return None
    return PassedOver(
        f"{keys.stream}: another snapshot was restored at {format_moment(restored / 1000)}, after this one was taken "
        f"({format_moment(position.taken / 1000)}), and the server lacks entries of this one"
    )


def ensure_sent_again(
    client: redis.Redis, keys: PartitionKeys, position: SnapshotPosition, producers: Mapping[str, str], held: str
) -> None:
    """Raise `LogLost` if a partition without the snapshot's mark may lack events of the entries of the snapshot.

    It lacks none if the stream has the snapshot's last entry, or may have trimmed it. It also lacks none if every
    producer has sent its lost entries again, and the stream has the entry `position.unsent`, or may have trimmed it:
    entries up to that one may be of clients that send nothing again. Nothing is sent or changed here.

    Args:
        client: The server of the stream.
        keys: The keys of the partition.
        position: The position of the snapshot.
        producers: The records of producers in the snapshot, as `Database.producers` returns them.
        held: The stream ID in the retention hold of the snapshot in the partition, `0-0` if there is none: no later
            entry was trimmed.

    Raises:
        LogLost: entries are missing, and not all of them were surely sent again.
        redis.RedisError: the server did not answer, or refused a command.
    """
    if _has_had(client, keys.stream, position.generated, held):
        return
    behind = sum(1 for _ in _behind(client, keys, producers))
    missing = [f"{behind} producers or sources have not sent theirs again"] if behind else []
    if not _has_had(client, keys.stream, position.unsent, held):
        missing.append(f"those up to {position.unsent} may be of clients that send nothing again")
    if not missing:
        return
    last = _last_common(client, keys.stream, position)
    after = f"after {last} " if last else ""
    raise LogLost(
        f"{keys.stream}: the server has lost entries {after}up to {position.generated}, which the snapshot contains; "
        f"{' and '.join(missing)}"
    )


def _has_had(client: redis.Redis, stream: str, id_: str, held: str) -> bool:
    """Return whether a stream has an entry, or may have had it until it was trimmed; else the server has lost it.

    It may have been trimmed if entries were ever removed from the stream, its ID is not after `held`, and it is before
    the first entry or, if the stream is empty, not after the last generated ID. True for the ID `0-0`, which is no
    entry, also if there is no stream; false for every other ID if there is no stream.

    Args:
        client: The server of the stream.
        stream: The key of the stream.
        id_: The ID of the entry.
        held: The ID in the retention hold of the snapshot: no later entry was trimmed.

    Raises:
        redis.RedisError: the server did not answer, or refused a command.
    """
    if id_ == "0-0":
        return True
    if not client.exists(stream):
        return False
    about: Any = client.xinfo_stream(stream)
    is_trimmed = about["entries-added"] > about["length"] and parse_id(id_) <= parse_id(held)
    if about["first-entry"] is None:
        return bool(is_trimmed and parse_id(id_) <= parse_id(about["last-generated-id"].decode()))
    if parse_id(id_) < parse_id(about["first-entry"][0].decode()):
        return bool(is_trimmed)
    return bool(client.xrange(stream, id_, id_))


def _behind(client: redis.Redis, keys: PartitionKeys, producers: Mapping[str, str]) -> Iterator[str]:
    """Yield the names in `producers` of those whose last sequence on the server is below that in the snapshot.

    One without a record on the server is yielded too, unless its last entry in the snapshot is before the horizon up to
    which the server has removed such records. `producers` has the records of producers in the snapshot, as
    `Database.producers` returns them; its horizons are ignored.
    """
    found: Any = client.hmget(keys.sequences, HORIZONS)
    horizons = {name: parse_id(value.split()[0].decode()) for name, value in zip(HORIZONS, found, strict=True) if value}
    names = [name for name in producers if not name.startswith("!") and name != COPIED.decode()]
    remaining = iter(names)
    while chunk := list(islice(remaining, _READ)):
        values: Any = client.hmget(keys.sequences, chunk)
        for name, value in zip(chunk, values, strict=True):
            sequence, id_ = producers[name].split(" ")
            if value is not None:
                if int(value.split()[0]) < int(sequence):
                    yield name
            elif parse_id(id_) >= horizons.get(REAPED_SPOOL if name.startswith("spool:") else REAPED, (0, 0)):
                yield name  # else the reaper has removed the record, long after the server had its entries


def _last_common(client: redis.Redis, stream: str, position: SnapshotPosition) -> str:
    """Return the ID of the last entry in a stream up to the last ID of the snapshot; `""` if there is none."""
    found: Any = client.xrevrange(stream, position.generated, "-", count=1)
    return found[0][0].decode() if found else ""
