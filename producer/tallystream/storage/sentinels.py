"""Opens partitions, and checks whether a partition has lost a sentinel: see `lua/lib/sentinels.lua`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.errors import KeyLost
from tallystream.storage.deployment_hash import live_mark
from tallystream.storage.keys import FIRST
from tallystream.storage.scripts import Script

if TYPE_CHECKING:
    import redis

    from tallystream.storage.keys import Layout, PartitionKeys

_FIND_LOST: Final = Script("tallystream.storage", "find_lost")
_OPEN: Final = Script("tallystream.storage", "open_partition")


def open_partitions(client: redis.Redis, layout: Layout, revision: int = 0) -> None:
    """Let the partitions of a topic take and count events, with the first generation live.

    Nothing changes in partitions that were opened or closed before. Call it only before the topic is live, or just
    after this process has created the deployment: later, a partition without keys has lost them.

    Args:
        client: The server.
        layout: The layout of the topic.
        revision: The number of the rules that the topic is counted by; 0 if they are not published yet.

    Raises:
        KeyLost: as in `open_partition`; the partitions before the one that has lost the key were opened.
        redis.RedisError: the server does not reply, or rejects a command; some partitions may be open.
    """
    for keys in layout.keys:
        open_partition(client, keys, live_mark(FIRST, revision))


def open_partition(client: redis.Redis, keys: PartitionKeys, live: str) -> None:
    """Let one partition take and count events; change nothing if it was opened or closed before.

    `live` is the value for the key of the live generation: see `live_mark`. When to call it: see `open_partitions`.

    Raises:
        KeyLost: the partition has lost a sentinel (see `lost_key`), and has another one or a stream that was counted.
        redis.RedisError: the server does not reply, or rejects the command.
    """
    _OPEN(client, [keys.sequences], [live])


def is_new(client: redis.Redis, keys: PartitionKeys) -> bool:
    """Return whether a partition has no sentinel (see `lost_key`), and its stream does not show that it was counted.

    Then it was never opened, or has lost its keys.

    Raises:
        KeyLost: the partition has lost a sentinel, and has another one or a stream that was counted.
        redis.RedisError: the server does not reply, or rejects the command.
    """
    answer, *_ = _FIND_LOST(client, [keys.stream], [])
    return bool(answer == b"new")


def was_counted(client: redis.Redis, keys: PartitionKeys) -> bool:
    """Return whether a partition has a sign of a stored deployment, or has lost a sentinel (see `lost_key`).

    The signs: a worker has counted an entry, a repartition or a restore of another topic has closed the partition, or
    another generation than the first is live in it. Producers leave no such sign. The deployment itself is not read.
    Return `False` for a partition without any sentinel, unless its stream shows that a worker has counted in it.

    Raises:
        redis.RedisError: the server does not reply, or rejects the command.
    """
    try:
        answer, *_ = _FIND_LOST(client, [keys.stream], [])
    except KeyLost:
        return True
    return bool(answer == b"counted")


def lost_key(client: redis.Redis, keys: PartitionKeys) -> str | None:
    """Return the name of the sentinel that a partition of a stored topic has lost; `None` if none is lost.

    The sentinels are the sequences, the ledger of the topic, and the live generation: without one of them, entries
    would be appended or counted twice. If several are lost, the first of these is returned. Other lost keys are not
    found here.

    Raises:
        redis.RedisError: the server does not reply, or rejects the command.
    """
    try:
        refuse_lost(client, keys)
    except KeyLost as error:
        return error.key
    return None


def refuse_lost(client: redis.Redis, keys: PartitionKeys) -> None:
    """Raise `KeyLost` if a partition of a stored topic has lost a sentinel (see `lost_key`); change nothing.

    Raises:
        KeyLost: the partition has lost a sentinel, or all its keys.
        redis.RedisError: the server does not reply, or rejects the command.
    """
    if is_new(client, keys):
        raise KeyLost(keys.sequences)


def has_lost_sequences(client: redis.Redis, keys: PartitionKeys) -> bool:
    """Return whether a partition of a stored topic has lost its sequences, alone or with other keys.

    If it has, a missing record of a producer does not show that nothing was appended.

    Raises:
        redis.RedisError: the server does not reply, or rejects the command.
    """
    return lost_key(client, keys) == keys.sequences


def begun_of(client: redis.Redis, keys: PartitionKeys) -> str:
    """Return the last stream ID before a generation began, `0-0` for the first generation; see `PartitionKeys.begun`.

    Raises:
        KeyLost: a later generation has lost the key.
        redis.RedisError: the server does not reply, or rejects the command.
    """
    if keys.generation == FIRST:
        return "0-0"
    begun: bytes | None = client.execute_command("GET", keys.begun)
    if begun is None:
        raise KeyLost(keys.begun)
    return begun.decode()
