"""The signs of life beside the ledger: the server's memory, and who counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from tallystream.reading.query import Command, Query
from tallystream.storage.deployment_hash import SNAPSHOT_AT, SNAPSHOT_EVERY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tallystream.storage.keys import Layout

SILENT_MS: Final = 15_000
"""Milliseconds after which a worker that has not asked for entries counts as gone; it asks every second."""


LIMIT: Final = "!limit"
"""The field of the sequences in which append.lua finds the bound of its stream."""

_DEAD_LIMIT: Final = "!dead"
"""The one in which trim.lua says the bytes that the dead stream may have."""


@dataclass(frozen=True)
class ServerStats:
    """Bytes of memory, and the workers that have lately asked for entries.

    Attributes:
        memory_used: Bytes that the server uses; `None` where this user may not ask.
        memory_max: Bytes that it may use, 0 without a bound.
        workers: Consumers, in all partitions, that are there.
        stream_entries: By stream, how many entries it holds, counted ones included.
        stream_limits: By stream with a bound, how many it may hold; then appends are refused.
        dead_bytes: By stream, the memory that what is parked takes.
        dead_limits: By stream with a bound, the bytes beyond which the oldest of it is dropped.
        snapshot: Second at which the latest snapshot was taken; `None` before the first.
        snapshot_every: Seconds between two, where they are taken by themselves.
        audit: Second at which a worker's latest audit ended, counters compared, counters that differ; `None` before.
    """

    memory_used: int | None
    memory_max: int | None
    workers: int
    stream_entries: dict[str, int]
    stream_limits: dict[str, int]
    dead_bytes: dict[str, int]
    dead_limits: dict[str, int]
    snapshot: float | None
    snapshot_every: float | None = None
    audit: tuple[float, int, int] | None = None


def query_server_stats(layout: Layout) -> Query[ServerStats]:
    """Ask for the signs of life; what a reader's rights do not allow is left out rather than an error."""
    commands: list[Command] = [("INFO", "memory")]
    for keys in layout.keys:
        commands += [("XINFO CONSUMERS", keys.stream, keys.group), ("XLEN", keys.stream)]
        commands += [("HMGET", keys.sequences, LIMIT, _DEAD_LIMIT), ("MEMORY USAGE", keys.dead)]
    commands.append(("HMGET", layout.meta, SNAPSHOT_AT, SNAPSHOT_EVERY, "audit"))

    def parse(replies: list[Any]) -> ServerStats:
        memory = {} if isinstance(replies[0], RedisError) else replies[0]
        *replies, (snapshot, every, audit) = replies
        present: set[bytes] = set()
        for consumers in replies[1::4]:
            present.update(_present(consumers))
        bounds = [(None, None) if isinstance(both, RedisError) else both for both in replies[3::4]]

        def by_stream(values: Iterable[Any]) -> dict[str, int]:
            return {
                keys.stream: int(value)
                for keys, value in zip(layout.keys, values, strict=True)
                if value is not None and not isinstance(value, RedisError)
            }

        return ServerStats(
            memory.get("used_memory"),
            memory.get("maxmemory"),
            len(present),
            by_stream(replies[2::4]),
            by_stream(limit for limit, _ in bounds),
            by_stream(each or 0 for each in replies[4::4]),
            by_stream(limit for _, limit in bounds),
            float(snapshot) if snapshot else None,
            float(every) if every else None,
            _audited(audit),
        )

    return Query(commands, parse)


def _audited(text: bytes | None) -> tuple[float, int, int] | None:
    if not text:
        return None
    at, counters, differences = text.split()
    return float(at), int(counters), int(differences)


def _present(consumers: Any) -> Iterable[bytes]:
    if isinstance(consumers, RedisError):
        return []  # no stream or no group yet: nobody counts
    return [consumer["name"] for consumer in consumers if int(consumer["idle"]) < SILENT_MS]
