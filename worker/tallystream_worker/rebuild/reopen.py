"""Repairs partitions that have lost keys, if there is no snapshot: counting continues without the lost events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tallystream.errors import ConfigurationError, KeyLost, StreamError
from tallystream.storage.deployment_hash import live_mark
from tallystream.storage.keys import FIRST
from tallystream.storage.scripts import Script
from tallystream.storage.sentinels import is_new, open_partition
from tallystream_worker.process.partition_names import partition_names, unlink_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import PartitionKeys

_REOPEN: Final = Script("tallystream_worker.rebuild", "reopen")
_BEGIN: Final = Script("tallystream_worker.rebuild", "begin")

_KEPT: Final = frozenset({b"files", b"meta", b"rules"})
"""Ends of keys that begin like a partition's keys, but do not belong to it."""

_NO_COUNTERS: Final = frozenset({b"holds", b"auditing", b"verifying", b"hottest", b"confirmed"})
"""Ends of keys that processes write even if a partition has lost all its keys; no counter depends on them."""


@dataclass(frozen=True)
class Reopened:
    """The keys and partitions that a reopening has changed.

    Attributes:
        mended: The lost keys that were repaired: streams, which exist again without the lost entries; keys of live
            generations; and records of dropped dead letters, which stay lost, but are not needed any more.
        opened: The stream of each partition that was opened again, without counters.
    """

    mended: list[str]
    opened: list[str]


def reopen(client: redis.Redis, deployment: Deployment, *, force: bool = False) -> Reopened:
    """Repair each partition of the live topic that has lost one of the keys below; no other lost key is repaired.

    - The lost key of a live generation is written again. Nothing is lost.
    - A lost stream is created again. No counter changes, but entries that were not counted yet are lost.
    - If the records of dropped dead letters are lost, a later rebuild no longer leaves these letters out.
    - A partition that has lost all its keys is opened. Its counters begin at 0.

    Args:
        client: The server.
        deployment: The stored deployment, as `Deployment.find` returns it.
        force: Also open each partition that has lost a key without which its other keys cannot be used: what is left of
            its counters and entries is removed.

    Raises:
        StreamError: a partition has lost a key without which its other keys cannot be used, and `force` is not set;
            nothing was changed.
        ConfigurationError: no deployment is stored, or a rebuild or a repartition is not finished; nothing was changed.
        redis.RedisError: the server does not reply, or rejects a command; call again to continue.
    """
    deployment.ensure_stored()
    if deployment.moving is not None:
        partitions: bytes | None = client.execute_command("HGET", deployment.layout.root, "moving-partitions")
        raise ConfigurationError(
            "cannot open partitions while a repartition is not finished: continue it with tallystream rebuild "
            f"--partitions {(partitions or b'N').decode()}; or, if it cannot be continued, give it up with tallystream "
            "rebuild --drop"
        )
    if deployment.building is not None:
        raise ConfigurationError(
            "cannot open partitions while a rebuild is not finished: give it up with tallystream rebuild --drop"
        )
    layout = deployment.layout.of(deployment.generation)
    mark = live_mark(deployment.generation, deployment.revision)
    broken = [unusable_without(client, keys) for keys in layout.keys]
    if not force and (lost := next(filter(None, broken), None)):
        raise StreamError(
            f"{lost} is lost, and the other keys of its partition cannot be used without it. If you have a "
            "snapshot, restore it: tallystream restore --force. Otherwise, let the partition begin again without its "
            "counters and events: tallystream reopen --force"
        )
    mended, opened = [], []
    for keys, is_broken in zip(layout.keys, broken, strict=True):
        if is_broken:
            _remove(client, keys)
        status, *names = _REOPEN(client, [keys.stream, keys.live, keys.ledger], [mark, keys.group])
        mended += [name.decode() for name in names]
        if status == b"empty":
            _open(client, keys, mark)
            opened.append(keys.stream)
    return Reopened(mended, opened)


def unusable_without(client: redis.Redis, keys: PartitionKeys) -> str | None:
    """Return the name of a lost key without which the other keys of the partition cannot be used.

    `None` if no sentinel is lost, or only that of the live generation, or if nothing is left of the partition. If it is
    not `None`, a reopening needs `force`.

    Raises:
        redis.RedisError: the server does not reply, or rejects a command.
    """
    try:
        is_lost = is_new(client, keys)
    except KeyLost as error:
        return None if error.key == keys.live else error.key
    return keys.sequences if is_lost and _has_remains(client, keys) else None


def _has_remains(client: redis.Redis, keys: PartitionKeys) -> bool:
    """Return whether a partition without sentinels has other keys that existed before the loss.

    A stream without consumer groups is not such a key: another client has appended plain entries since the loss. The
    keys of `_NO_COUNTERS` are ignored too.
    """
    for name, below in _names(client, keys):
        if below in _NO_COUNTERS or (name == keys.stream.encode() and not client.xinfo_groups(keys.stream)):
            continue
        return True
    return False


def _remove(client: redis.Redis, keys: PartitionKeys) -> None:
    """Remove all keys of a partition; the sentinels first, so that nothing appends or counts meanwhile."""
    client.unlink(keys.sequences, keys.topic_ledger, keys.live, keys.stream)
    unlink_all(client, (name for name, _ in _names(client, keys)))


def _names(client: redis.Redis, keys: PartitionKeys) -> Iterator[tuple[bytes, bytes]]:
    """Yield the full name of each key of a partition, and the name without the prefix; a key may come twice.

    Keys of the whole topic, which only begin like those of a partition, are left out.
    """
    return (each for each in partition_names(client, keys) if each[1] not in _KEPT)


def _open(client: redis.Redis, keys: PartitionKeys, mark: str) -> None:
    """Open a partition without keys, with the generation of `keys` as the live one, in one script call.

    `mark` is the value for the key of the live generation: see `live_mark`.
    """
    if keys.generation == FIRST:
        open_partition(client, keys, mark)
    else:
        names = [keys.stream, keys.begun, keys.ledger, keys.topic_ledger, keys.gone]
        _BEGIN(client, names, [keys.group, 0, mark])
