"""Finds out whether a partition has lost a sentinel, a key that was deleted or evicted: see `lua/lib/sentinels.lua`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.errors import KeyLost
from tallystream.storage.keys import FIRST
from tallystream.storage.scripts import Script

if TYPE_CHECKING:
    import redis

    from tallystream.storage.keys import PartitionKeys

_FIND_LOST: Final = Script("tallystream.storage", "find_lost")


def was_counted(client: redis.Redis, keys: PartitionKeys) -> bool:
    """Return whether a partition was counted, closed or switched by a worker, or has lost a sentinel (see `lost_key`).

    So it is `True` only if a deployment was stored; producers alone, without a worker, do not make it `True`.

    Raises:
        redis.RedisError: the server does not reply, or rejects the command.
    """
    try:
        (answer,) = _FIND_LOST(client, [keys.stream], [])
    except KeyLost:
        return True
    return bool(answer == b"counted")


def lost_key(client: redis.Redis, keys: PartitionKeys) -> str | None:
    """Return the name of the sentinel that a partition has lost; `None` if none is lost, or nothing was ever written.

    The sentinels are the sequences, the ledger of the topic, and the live generation: without one of them, entries
    would be appended or counted twice. If several are lost, the first of these is returned. Other lost keys are not
    found here, and a partition that has lost its stream and all sentinels looks like one to which nothing was written.

    Raises:
        redis.RedisError: the server does not reply, or rejects the command.
    """
    try:
        refuse_lost(client, keys)
    except KeyLost as error:
        return error.key
    return None


def refuse_lost(client: redis.Redis, keys: PartitionKeys) -> None:
    """Raise `KeyLost` if a partition has lost a sentinel (see `lost_key`); change nothing.

    Raises:
        KeyLost: the partition has lost a sentinel.
        redis.RedisError: the server does not reply, or rejects the command.
    """
    _FIND_LOST(client, [keys.stream], [])


def has_lost_sequences(client: redis.Redis, keys: PartitionKeys) -> bool:
    """Return whether a partition has lost its sequences: then a missing record does not show what was appended.

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
