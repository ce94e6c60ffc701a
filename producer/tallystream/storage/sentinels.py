"""Finds out whether a partition has lost a key: it was deleted or evicted; `lua/lib/sentinels.lua` states how."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.errors import KeyLost
from tallystream.storage.scripts import Script

if TYPE_CHECKING:
    import redis

    from tallystream.storage.keys import PartitionKeys

_FIND_LOST: Final = Script("tallystream.storage", "find_lost")


def was_counted(client: redis.Redis, keys: PartitionKeys) -> bool:
    """Return whether a worker has counted entries of a partition, or the partition has lost a key.

    Raises:
        redis.RedisError: the server does not reply, or rejects the command.
    """
    answer, *_ = _FIND_LOST(client, [keys.stream], [])
    return bool(answer != b"whole")


def refuse_lost(client: redis.Redis, keys: PartitionKeys) -> None:
    """Raise an error if a partition has lost a key without which entries would be appended or counted twice.

    Raises:
        KeyLost: the partition has lost a key.
        redis.RedisError: the server does not reply, or rejects the command.
    """
    answer, *lost = _FIND_LOST(client, [keys.stream], [])
    if answer == b"damaged":
        raise KeyLost(lost[0].decode())


def has_lost_sequences(client: redis.Redis, keys: PartitionKeys) -> bool:
    """Return whether a partition has lost its sequences: then a missing record does not show what was appended.

    Raises:
        redis.RedisError: the server does not reply, or rejects the command.
    """
    answer, *lost = _FIND_LOST(client, [keys.stream], [])
    return bool(answer == b"damaged" and lost[0].decode() == keys.sequences)
