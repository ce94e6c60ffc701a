"""A pool of partition workers: one for each partition, each in its own thread.

When the pool stops, each thread finishes its pass and ends. Entries that were read and not applied stay pending, and
the next worker with the same consumer name begins with them.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from tallystream_worker.maintenance.hot_subjects import HotSubjectTracker
from tallystream_worker.process.services import quiet_all, start_all, stop_all
from tallystream_worker.runtime.partition_worker import PartitionHealth, PartitionWorker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream_worker.counting.outcome import BatchSubscriber
    from tallystream_worker.settings.settings import Settings


class WorkerPool:
    """Counts all partitions of one topic from `start` until `stop`; `health` has the state of each.

    Args:
        settings: The configuration.
        deployment: The deployment with the topic.
        log: Logger for the changes of state.
        subscribers: Called with the result of each applied batch.
        consumer: Consumer name in the group; default: the configured one.
        evicting: By stream, the policy by which its server may evict keys; such a stream is not counted.
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
        self.layout = deployment.layout
        """The layout of the topic."""
        self.hot_subjects = HotSubjectTracker(deployment.layout.partitions, deployment.layout.topic)
        """Finds the hot subject of each partition in the applied batches."""
        self.foreign = threading.Event()
        """Set by the partition follower while the server has the data of another deployment, or none, or a restore has
        not finished. It is needed on a cluster: FLUSHALL empties its nodes one after the other, so a partition worker
        that begins again may still find the old meta hash."""
        name = consumer or settings.worker.consumer
        everyone: list[BatchSubscriber] = [*subscribers, self.hot_subjects]
        self._workers = [
            PartitionWorker(
                settings, deployment, partition, name, everyone, log, self.foreign, {} if evicting is None else evicting
            )
            for partition in range(deployment.layout.partitions)
        ]
        self.services = [worker.service() for worker in self._workers]
        """The services that count, one for each partition."""

    def start(self) -> None:
        """Start the thread of each partition."""
        start_all(self.services)

    def notice(self, deployment: Deployment) -> None:
        """Make every partition follow the rules of a deployment that was read later; see `PartitionWorker.notice`."""
        for worker in self._workers:
            worker.notice(deployment)

    def quiet(self) -> None:
        """Read no more entries; running batches are finished, and `stop` waits for them."""
        quiet_all(self.services)

    def stop(self, deadline: float) -> bool:
        """Finish the running passes; return whether all threads ended by the monotonic second `deadline`.

        A thread that has not ended is left alone. If the process ends before it, its entries stay pending, and the next
        worker counts them.
        """
        return stop_all(self.services, deadline)

    @property
    def health(self) -> list[PartitionHealth]:
        """The state of the thread of each partition."""
        states = [service.health for service in self.services]
        return [
            PartitionHealth(
                number, state.problem, state.passed, state.tried, self.hot_subjects.of(number), worker.lost_key
            )
            for number, (state, worker) in enumerate(zip(states, self._workers, strict=True))
        ]
