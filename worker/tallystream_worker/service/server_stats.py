"""Reads statistics of the server that are not in the ledger: memory, active workers, stream bounds, last snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from tallystream.client.replies import is_unreachable
from tallystream.reading.clocks import ClockStep, parse_step
from tallystream.reading.query import Command, Query, raise_on_error
from tallystream.storage.deployment_hash import ARCHIVE_LOST, CLOCK_STEP, SNAPSHOT_AT, SNAPSHOT_EVERY, VERIFIED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tallystream.storage.keys import Layout

SILENT_MS: Final = 15_000
"""Milliseconds without a read after which a worker counts as gone; a worker reads every second."""


LIMIT: Final = "!limit"
"""Field of the sequences hash with the largest number of entries of the stream, which append.lua checks."""

_DEAD_LIMIT: Final = "!dead"
"""Field of the sequences hash with the largest size of the dead letters in bytes, which trim.lua writes."""


@dataclass(frozen=True)
class ServerStats:
    """Statistics of the server, the workers, the streams, the last snapshot and the last audit.

    In a cluster, the figures of the server (`memory_used`, `memory_max`, `evicted`) are those of one node. The figures
    from `snapshot` on are those that workers have stored in the hash of the topic. If its node does not answer, they
    are `None`, and `archive_lost` is 0. In the figures by stream, a stream whose figure cannot be read is left out.

    Attributes:
        memory_used: Bytes that the server uses; `None` if they cannot be read, for example for lack of permission.
        memory_max: Bytes that the server may use; 0 without a bound, `None` if they cannot be read.
        evicted: Number of keys that the server has evicted since it started; `None` if it cannot be read.
        workers: Number of different consumer names that have read in any partition within the last 15 seconds; a
            partition that cannot be read adds none.
        serving: The number of these in each partition, by stream. It is 0 without a consumer group, and if the
            consumers cannot be read although the node answers.
        stream_entries: Number of entries by stream, counted ones included.
        stream_limits: Number of entries at which appends are rejected, by stream with a bound.
        dead_bytes: Bytes of the dead letters by the stream that their entries came from; 0 if there are none.
        dead_limits: Bytes above which the oldest dead letters are dropped, by stream with a bound.
        snapshot: Time of the last snapshot in seconds since 1970; `None` before the first.
        snapshot_every: Seconds between two snapshots; `None` if no worker takes them. After the crash of a worker that
            takes them, the number stays.
        audit: Last audit of a worker: its end in seconds since 1970, the number of compared counters, and the number
            of differences; `None` before the first. There may be more differences than compared counters, because
            counters that should not exist are differences, too.
        verified: Last verification of a worker: its end in seconds since 1970, the number of kinds of faults, and the
            number of checks that could not be made; `None` before the first.
        step: Last step of a server's clock that a worker noticed; `None` if there was none.
        archive_lost: Number of archived entries that the server has lost, and that producers had not sent again when
            the archiver found the loss; 0 if it is not known. It is 0 again when the files `*.parquet.lost` with these
            entries have been moved away.
    """

    memory_used: int | None
    memory_max: int | None
    evicted: int | None
    workers: int
    serving: dict[str, int]
    stream_entries: dict[str, int]
    stream_limits: dict[str, int]
    dead_bytes: dict[str, int]
    dead_limits: dict[str, int]
    snapshot: float | None
    snapshot_every: float | None = None
    audit: tuple[float, int, int] | None = None
    verified: tuple[float, int, int] | None = None
    step: ClockStep | None = None
    archive_lost: int = 0


def query_server_stats(layout: Layout) -> Query[ServerStats]:
    """Return a query for the statistics; see `ServerStats` for figures that cannot be read.

    Only an error of the command that reads the hash of the topic is raised, if its node answers.
    """
    commands: list[Command] = [("INFO", "memory"), ("INFO", "stats")]
    for keys in layout.keys:
        commands += [("XINFO CONSUMERS", keys.stream, keys.group), ("XLEN", keys.stream)]
        commands += [("HMGET", keys.sequences, LIMIT, _DEAD_LIMIT), ("MEMORY USAGE", keys.dead)]
    commands.append(("HMGET", layout.meta, SNAPSHOT_AT, SNAPSHOT_EVERY, "audit", VERIFIED, CLOCK_STEP, ARCHIVE_LOST))

    def parse(replies: list[Any]) -> ServerStats:
        memory, counts = ({} if isinstance(reply, RedisError) else reply for reply in replies[:2])
        *replies, latest = replies[1:]
        snapshot, every, audit, verified, step, lost = [None] * 6 if is_unreachable(latest) else raise_on_error(latest)
        present = {
            keys.stream: set(_present(consumers))
            for keys, consumers in zip(layout.keys, replies[1::4], strict=True)
            if not is_unreachable(consumers)
        }
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
            counts.get("evicted_keys"),
            len(set().union(*present.values())),
            {stream: len(names) for stream, names in present.items()},
            by_stream(replies[2::4]),
            by_stream(limit for limit, _ in bounds),
            by_stream(each or 0 for each in replies[4::4]),
            by_stream(limit for _, limit in bounds),
            float(snapshot) if snapshot else None,
            float(every) if every else None,
            _result(audit),
            _result(verified),
            parse_step(step),
            int(lost or 0),
        )

    return Query(commands, parse)


def _result(text: bytes | None) -> tuple[float, int, int] | None:
    if not text:
        return None
    at, first, second = text.split()
    return float(at), int(first), int(second)


def _present(consumers: Any) -> Iterable[bytes]:
    if isinstance(consumers, RedisError):
        return []  # no stream or no group yet, so no workers
    return [consumer["name"] for consumer in consumers if int(consumer["idle"]) < SILENT_MS]
