"""Trims streams to the configured age and size, and never removes an entry that is still needed.

The job also bounds the memory of the dead letters: it drops the oldest ones.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tallystream.client.connect import connect
from tallystream.storage.scripts import Script
from tallystream_worker.dead_letters.store import shorten
from tallystream_worker.maintenance.partitions import INTERVAL, for_each_partition, maintenance_service
from tallystream_worker.process.state_log import StreamStates

if TYPE_CHECKING:
    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.process.periodic import PeriodicService
    from tallystream_worker.settings.settings import RetentionSettings, Settings

_TRIM: Final = Script("tallystream_worker.maintenance", "trim")
_STEP: Final = 2000
"""The largest number of entries that one call removes, which bounds the time for which it blocks the server."""

_CALLS: Final = 50
"""The largest number of calls that trim a stream, or drop dead letters, in one pass; the next pass does the rest."""

_NEARLY: Final = 0.8


@dataclass(frozen=True)
class Trimmed:
    """The result of one call of the trim script in one partition.

    Attributes:
        removed: Number of entries that the call removed.
        entries: Number of entries left.
        bytes: Memory of the stream before the call in bytes, as the server estimates it.
        limit: Number of entries at which appends are refused; 0 for no limit, and if the stream is empty.
        holder: The reader that has come least far, even if it needs no entry any more: `group <name>`, or the name of a
            retention hold; `""` if there is neither.
    """

    removed: int
    entries: int
    bytes: int
    limit: int
    holder: str

    @property
    def nearly_full(self) -> bool:
        """Whether the stream has 80 % of the entries at which appends are refused, or more; false without a limit."""
        return 0 < self.limit * _NEARLY <= self.entries


def trim(client: redis.Redis, keys: PartitionKeys, retention: RetentionSettings, *, step: int = _STEP) -> Trimmed:
    """Remove the oldest entries that no reader needs and that are beyond the retention; publish the limits.

    An entry is needed until every consumer group of the stream has acknowledged it, and until every retention hold is
    past it. The limits, for appends and dead letters, are written to the hash of sequences; while the stream is empty,
    a limit for appends is not. One call removes at most `step` entries. The server removes whole nodes of a stream, so
    up to a hundred small entries stay longer than the retention demands.

    Remove nothing if the counting group is missing. Remove nothing for its age within an hour after the first call, or
    after the server's clock was set back or advanced by more than ten minutes between two calls (also if no worker
    made a call meanwhile).

    Raises:
        KeyLost: the partition has lost a key.
        redis.ResponseError: the stream does not exist, or a retention hold is not a stream ID.
        redis.RedisError: the server does not reply, or rejects the command for another reason.
    """
    age = retention.age_seconds
    _, *found = _TRIM(
        client,
        [keys.stream, keys.retention_holds, keys.topic_ledger, keys.sequences],
        [
            keys.group,
            0 if age is None else age * 1000,
            retention.bytes,
            retention.backlog_bytes,
            step,
            retention.dead_bytes,
        ],
    )
    removed, entries, size, limit, holder = found
    return Trimmed(removed, entries, size, limit, holder.decode())


class Trimmer:
    """Trims the streams of all partitions, and bounds the memory of their dead letters.

    `run_once` makes one pass; the service calls it about every 2 seconds.

    Args:
        client: The connection to the streams.
        deployment: The deployment that the worker started with.
        retention: The configured age and sizes.
        log: The logger of `dead_letters.dropped`, and of streams and dead letters that become nearly full (80 % of
            their limit) or have room again.
        stopping: When set, ends a pass early: in each partition that is left, it makes one more call of each kind.
    """

    def __init__(
        self,
        client: redis.Redis,
        deployment: Deployment,
        retention: RetentionSettings,
        log: FilteringBoundLogger,
        stopping: threading.Event,
    ) -> None:
        self._client = client
        self._deployment = deployment
        self._retention = retention
        self._log = log
        self._stopping = stopping
        self._full = StreamStates(log, "stream.nearly_full", "stream.has_room")
        self._dead_full = StreamStates(log, "dead_letters.nearly_full", "dead_letters.have_room")

    def run_once(self) -> None:
        """Remove from each partition entries beyond the configured age and size, and dead letters beyond their size.

        Entries that a reader needs stay, and so do some dead letters: see `trim` and `shorten`. Log dropped dead
        letters, and each stream or store of dead letters that becomes nearly full (80 % of its limit), or has room
        again. In a partition, one pass makes at most 50 calls that trim the stream, and 51 that drop dead letters. Do
        nothing if the data was deleted or replaced, or a restore has not finished.

        Raises:
            ConfigurationError: this release cannot read the stored layout version or rules.
            redis.RedisError: the server does not reply, or rejects a command; see `for_each_partition`.
            KeyLost, DamagedValue: the description of the deployment is lost in part, or damaged.
            KeyLost: a partition has lost a key; raised after all partitions were tried.
            CodecError: see `shorten`; the partitions after that one are not tried.
        """
        for_each_partition(self._client, self._deployment, self._partition)

    def _partition(self, _number: int, keys: PartitionKeys, _found: Deployment) -> None:
        self._trim(keys)
        self._bound_dead(keys)

    def _trim(self, keys: PartitionKeys) -> None:
        for _ in range(_CALLS):
            trimmed = trim(self._client, keys, self._retention)
            if not trimmed.removed or self._stopping.is_set():
                break
        state = self._full[keys.stream]
        if trimmed.nearly_full:
            state.failed(
                "appends beyond its limit are refused",
                entries=trimmed.entries, limit=trimmed.limit, held_by=trimmed.holder,
            )  # fmt: skip
        else:
            state.works()

    def _bound_dead(self, keys: PartitionKeys) -> None:
        used, entries, events = shorten(self._client, keys, self._retention.dead_bytes)
        for _ in range(_CALLS):
            if used <= 1 or self._stopping.is_set():
                break
            used, more_entries, more_events = shorten(self._client, keys, self._retention.dead_bytes)
            if not more_entries:
                break
            entries, events = entries + more_entries, events + more_events
        if entries:
            self._log.error("dead_letters.dropped", stream=keys.dead, entries=entries, events=events)
        state = self._dead_full[keys.dead]
        if used > _NEARLY:
            state.failed("the oldest will be dropped")
        else:
            state.works()


def trim_service(settings: Settings, deployment: Deployment, log: FilteringBoundLogger) -> PeriodicService:
    """Return the service, not started, that trims streams and dead letters of all partitions about every 2 seconds.

    Raises:
        ConfigurationError: the URL of the server cannot be used.
    """
    client, stopping = connect(settings.redis.url), threading.Event()
    trimmer = Trimmer(client, deployment, settings.retention, log, stopping)
    return maintenance_service("trim", INTERVAL, trimmer.run_once, client, log, stopping)
