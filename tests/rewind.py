"""Takes a server back to an earlier state, as a failover to a replica that lagged or an older RDB file does."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
