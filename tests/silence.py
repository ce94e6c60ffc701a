"""Lets days of active time pass at the sequence gate, in a moment: see `reap_producers.lua`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream_worker.maintenance.reaper import reap_producers

if TYPE_CHECKING:
    import redis

    from tallystream.storage.keys import PartitionKeys
    from tests.harness import Harness

_DAY = 86_400


def pass_days(harness: Harness, days: int) -> int:
    """Let days pass in which other clients append a plain event to each stream a day; return the records removed."""
    removed = 0
    for _ in range(days):
        for keys in harness.layout.keys:
            harness.client.xadd(keys.stream, {"metric": "view", "subject": "other"})
            move_clock(harness.client, keys, _DAY)
            removed += reap_all(harness.client, keys, longest=_DAY)
    return removed


def move_clock(client: redis.Redis, keys: PartitionKeys, seconds: int) -> None:
    """Make it seem that the server's clock has moved by some seconds since the reaper's last pass, if there was one."""
    found = client.hget(keys.sequences, "!active")
    if found is not None:
        active, seen = found.split()
        client.hset(keys.sequences, "!active", f"{active.decode()} {int(seen) - seconds * 1000}")


def reap_all(client: redis.Redis, keys: PartitionKeys, **settings: float) -> int:
    """Let the reaper examine every producer of a partition; return the number of records removed."""
    cursor, removed = "0", 0
    while True:
        cursor, some = reap_producers(client, keys, cursor, **settings)
        removed += some
        if cursor == "0":
            return removed
