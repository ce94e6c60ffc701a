"""A pool: one partition worker a partition, each in a thread of its own.

Stopping: the threads finish the batch in hand, apply it, and end. What was read and not applied stays pending,
and whoever comes next begins with it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from tallystream_worker.maintenance.hot_subjects import HotSubjectTracker
from tallystream_worker.process.services import quiet_all, start_all, stop_all
from tallystream_worker.runtime.partition_worker import PartitionHealth, PartitionWorker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream_worker.counting.outcome import BatchSubscriber
    from tallystream_worker.settings.settings import Settings


class WorkerPool:
    """Counts all partitions of one log until stopped.

    Args:
        settings: What was configured.
        deployment: What is stored.
        log: Where changes of state are logged.
        subscribers: Called with the result of each applied batch.
        consumer: The name in the group, if not the configured one.
    """

    def __init__(
        self,
        settings: Settings,
        deployment: Deployment,
        log: FilteringBoundLogger,
        subscribers: Sequence[BatchSubscriber] = (),
        *,
        consumer: str | None = None,
    ) -> None:
        self.layout = deployment.layout
        self.hot_subjects = HotSubjectTracker(deployment.layout.partitions, deployment.layout.topic)
        self.foreign = threading.Event()
        """Set while the server holds other data, or none: over a cluster, FLUSHALL is not one moment, so a partition
        worker that begins again may find the meta hash of data that is about to be gone."""
        name = consumer or settings.worker.consumer
        everyone: list[BatchSubscriber] = [*subscribers, self.hot_subjects]
        workers = [
            PartitionWorker(settings, deployment, partition, name, everyone, log, self.foreign)
            for partition in range(deployment.layout.partitions)
        ]
        self.services = [worker.service() for worker in workers]
        """What counts, by partition."""

    def start(self) -> None:
        """Begin to count."""
        start_all(self.services)

    def quiet(self) -> None:
        """Read nothing more; the batches in hand are finished, and `stop` waits for them."""
        quiet_all(self.services)

    def stop(self, deadline: float) -> bool:
        """Finish the batches in hand; return whether all threads ended by the monotonic second `deadline`.

        A thread that did not is left alone: what it holds stays pending, and is counted by whoever comes next.
        """
        return stop_all(self.services, deadline)

    @property
    def health(self) -> list[PartitionHealth]:
        """How each partition's thread is."""
        states = [service.health for service in self.services]
        return [
            PartitionHealth(number, state.problem, state.passed, state.tried, self.hot_subjects.of(number))
            for number, state in enumerate(states)
        ]
