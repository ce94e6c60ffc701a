"""Takes a server back to an earlier state, as a failover to a replica that lagged or an older RDB file does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.storage.keys import NAMESPACE, tag_of

if TYPE_CHECKING:
    import redis


def copy_of(client: redis.Redis) -> dict[bytes, bytes]:
    """Return all keys of a server, in the form of an RDB file; keys must not expire."""
    copied = {}
    for key in client.scan_iter(count=1000):
        value = client.dump(key)
        if value is not None:
            copied[key] = value
    return copied


def go_back(client: redis.Redis, copied: dict[bytes, bytes]) -> None:
    """Give a server the keys that `copy_of` returned, and no others."""
    with client.pipeline() as pipeline:
        pipeline.flushall()
        for key, value in copied.items():
            pipeline.restore(key, 0, value)
        pipeline.execute()


class Slot:
    """The slot of a partition, as it is when this object is made; in a cluster, it goes back to older data on its own.

    Args:
        client: The server.
        partition: The number of the partition; the slot has its keys in every topic.
    """

    def __init__(self, client: redis.Redis, partition: int) -> None:
        self._client = client
        self._pattern = f"{NAMESPACE}:{{{tag_of(partition)}}}:*"
        self._saved = {key: client.dump(key) for key in client.scan_iter(self._pattern, count=1000)}

    def go_back(self) -> None:
        """Give the slot the data that it had when this object was made."""
        self._client.delete(*self._client.scan_iter(self._pattern, count=1000))
        for key, value in self._saved.items():
            self._client.restore(key, 0, value)


def lose(client: redis.Redis, prefix: str) -> None:
    """Remove all keys with a prefix at one moment, as if their node came back empty."""
    client.eval("for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end", 0, f"{prefix}*")
