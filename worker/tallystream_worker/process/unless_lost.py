"""Writes a key of a partition with a single command, unless the partition has lost a key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tallystream.storage.scripts import Script

if TYPE_CHECKING:
    import redis

    from tallystream.storage.keys import PartitionKeys

_SCRIPT: Final = Script("tallystream_worker.process", "unless_lost")


def write_unless_lost(client: redis.Redis, keys: PartitionKeys, command: str, *arguments: Any) -> Any:
    """Run a command that writes one key of a partition, unless the partition has lost a sentinel; return the reply.

    Without this check of the sentinels (see `lost_key`), the command would create the key in a partition that has lost
    all its keys. Then the partition would look as if something of it were left.

    Args:
        client: The server.
        keys: The keys of the partition.
        command: The command, such as `HSET` or `XGROUP CREATE`.
        arguments: Its arguments, at most 7,000. The first one is the key.

    Raises:
        KeyLost: the partition has lost a sentinel; nothing was changed.
        redis.RedisError: the server does not reply, or rejects the command.
    """
    _, reply = _SCRIPT(client, [keys.stream, arguments[0]], [*command.split(), *arguments])
    return reply
