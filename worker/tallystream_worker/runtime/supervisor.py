"""A pool of partition workers: one for each partition that this process serves, each in its own thread.

When the pool stops, each thread finishes its pass and ends. Entries that were read and not applied stay pending, and
the next worker with the same consumer name begins with them.

Each thread waits for entries on its own connection. Everything else goes through a few connections that all share. If
the process may not open as many files as it has partitions, it serves as many as it can, and leaves the rest to others.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from tallystream.client.cluster.client import ClusterClient
from tallystream.client.connect import connect
from tallystream_worker.maintenance.hot_subjects import HotSubjectTracker
from tallystream_worker.process.open_files import OPEN_FILES
from tallystream_worker.process.services import quiet_all, start_all, stop_all
from tallystream_worker.runtime.partition_worker import BLOCK, PartitionHealth, PartitionWorker
from tallystream_worker.runtime.share import chosen, exchanged, query_others

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import Layout
    from tallystream_worker.counting.outcome import BatchSubscriber
    from tallystream_worker.process.periodic import PeriodicService
    from tallystream_worker.settings.settings import Settings

APPLYING: Final = 16
"""The most connections to each server over which all partitions together apply batches and check their keys."""

_OTHERS: Final = 24
"""Connections to each server of the other services of a worker, with room for those of a repartition."""


class _Served(NamedTuple):
    worker: PartitionWorker
    service: PeriodicService


class WorkerPool:
    """Counts the partitions of one topic from `start` until `stop`: all, or as many as this process can serve.

    `health` has the state of each.

    Args:
        settings: The configuration.
        deployment: The deployment with the topic.
        log: Logger for the changes of state.
        subscribers: Called with the result of each applied batch.
        consumer: Consumer name in the group; default: the configured one.
        evicting: By stream, the policy by which its server may evict keys; such a stream is not counted.

    Raises:
        ConfigurationError: the URL of the server cannot be used.
        redis.RedisError: this process cannot serve all partitions, and the server does not state which of them others
            serve; or no node of a cluster returned the slot map.
    """

    def __init__(
        self,
        settings: Settings,
        deployment: Deployment,
        log: FilteringBoundLogger,
        subscribers: Sequence[BatchSubscriber] = (),
        *,
        consumer: str | None = None,
        evicting: Mapping[str, str] | None = None,
    ) -> None:
        self.layout = layout = deployment.layout
        """The layout of the topic."""
        self.hot_subjects = HotSubjectTracker(layout.partitions, layout.topic)
        """Finds the hot subject of each partition in the applied batches."""
        self.foreign = threading.Event()
        """Set by the partition follower while the server has the data of another deployment, or none, or a restore has
        not finished. It is needed on a cluster: FLUSHALL empties its nodes one after the other, so a partition worker
        that begins again may still find the old meta hash."""
        self._settings = settings
        self._deployment = deployment
        self._log = log
        self._consumer = consumer or settings.worker.consumer
        self._subscribers: list[BatchSubscriber] = [*subscribers, self.hot_subjects]
        self._evicting = {} if evicting is None else evicting
        self._reading = connect(settings.redis.url, block=BLOCK)
        self._applying = connect(settings.redis.url, most=APPLYING)
        self._left: list[PeriodicService] = []  # of partitions that were given up
        servers = self._applying.count_primaries() if isinstance(self._applying, ClusterClient) else 1
        shared = (APPLYING + _OTHERS) * servers
        self._reserved = OPEN_FILES.reserve(shared, least=shared)
        self._most = OPEN_FILES.reserve(layout.partitions, least=1)
        try:
            served = self._begin()
        except BaseException:
            self._give_back()
            raise
        self._served = {partition: self._serve(partition) for partition in sorted(served)}

    @property
    def is_limited(self) -> bool:
        """Whether this process cannot serve all partitions, because it may not open enough files."""
        return self._most < self.layout.partitions

    @property
    def services(self) -> list[PeriodicService]:
        """The services that count, one for each served partition."""
        return [each.service for each in list(self._served.values())]

    def start(self) -> None:
        """Start the thread of each served partition."""
        start_all(self.services)

    def notice(self, deployment: Deployment) -> None:
        """Make each served partition follow the rules of a newly read deployment; see `PartitionWorker.notice`."""
        for each in list(self._served.values()):
            each.worker.notice(deployment)

    def share(self, deployment: Deployment) -> int:
        """Begin to serve partitions that no worker serves; return how many of them.

        If this process cannot serve more, give up a partition that another worker serves too for each of them; if there
        is no such partition, leave it unserved. A partition whose consumers cannot be read counts as unserved. Do
        nothing if this process serves all partitions. Call it between `start` and `stop`, always from the same thread.

        Args:
            deployment: The deployment as read now, with the topic of this pool.

        Raises:
            redis.RedisError: the server does not reply, or rejects a command.
        """
        if len(self._served) == self.layout.partitions:
            return 0
        self._most += OPEN_FILES.reserve(self.layout.partitions - self._most)  # another pool may have ended
        beyond = self._most - len(self._served)
        exchange = exchanged(self._served.keys(), self._others(deployment.layout), beyond)
        for taken, given in exchange.items():
            if given >= 0:
                service = self._served.pop(given).service
                service.quiet()
                self._left.append(service)
            self._served[taken] = self._serve(taken)
            self._served[taken].service.start()
        return len(exchange)

    def quiet(self) -> None:
        """Read no more entries; running batches are finished, and `stop` waits for them."""
        quiet_all(self.services)

    def stop(self, deadline: float) -> bool:
        """Finish the running passes; return whether all threads ended by the monotonic second `deadline`.

        A thread that has not ended is left alone. If the process ends before it, its entries stay pending, and the next
        worker counts them.
        """
        has_ended = stop_all([*self.services, *self._left], deadline)
        if has_ended and self._most:
            self._give_back()
        return has_ended

    @property
    def health(self) -> list[PartitionHealth]:
        """The state of the thread of each served partition."""
        found = []
        for number, (worker, service) in list(self._served.items()):
            state, hot = service.health, self.hot_subjects.of(number)
            found.append(PartitionHealth(number, state.problem, state.passed, state.tried, hot, worker.lost_key))
        return found

    def _begin(self) -> set[int]:
        """Return the partitions to serve at the start; log a warning if these are not all."""
        served: set[int] = set(range(self.layout.partitions))
        if self.is_limited:
            served = chosen(self._others(self.layout), self._most, self._consumer)
            self._log.warning(
                "worker.partitions_limited",
                partitions=self.layout.partitions,
                served=len(served),
                problem="this process may not open more files, and needs a connection for each partition",
                action="raise the limit of open files (LimitNOFILE, ulimit -n), or start more workers",
            )
        return served

    def _give_back(self) -> None:
        self._reading.close()
        self._applying.close()
        OPEN_FILES.give_back(self._reserved + self._most)
        self._reserved = self._most = 0

    def _serve(self, partition: int) -> _Served:
        worker = PartitionWorker(
            self._settings,
            self._deployment,
            partition,
            self._consumer,
            self._subscribers,
            self._log,
            self.foreign,
            self._evicting,
            self._reading,
            self._applying,
        )
        return _Served(worker, worker.service())

    def _others(self, layout: Layout) -> list[int]:
        query = query_others(layout, self._consumer)
        with self._applying.pipeline(transaction=False) as pipeline:
            for command in query.commands:
                pipeline.execute_command(*command)
            others = query.parse(pipeline.execute(raise_on_error=False))
        assert isinstance(others, list)  # noqa: S101  # its `parse` returns no further query
        return others
