"""Follows the log: after the events were moved to another number of partitions, a worker goes on there by itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tallystream.client.backoff import Backoff
from tallystream.client.connect import connect
from tallystream.errors import DeploymentChanged
from tallystream_worker.process.periodic import PeriodicService
from tallystream_worker.process.state_log import StateLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream_worker.process.periodic import ServiceHealth
    from tallystream_worker.runtime.supervisor import WorkerPool
    from tallystream_worker.settings.settings import Settings

INTERVAL: Final = 0.5
"""Seconds between looks which log is live: about how long new entries wait after a move."""

_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 5.0


class PartitionFollower:
    """Runs the pool of the log that is live, and another one after a move.

    Nothing else in a worker belongs to one log: every other service looks in each pass which one is live.

    Args:
        settings: What was configured.
        deployment: What is stored.
        log: Where a move is logged.
        pool: Makes a pool that has not started.
    """

    def __init__(
        self,
        settings: Settings,
        deployment: Deployment,
        log: FilteringBoundLogger,
        pool: Callable[[Deployment], WorkerPool],
    ) -> None:
        self._timeout = settings.worker.stop_timeout
        self._deployment = deployment
        self._log = log
        self._make = pool
        self._client = connect(settings.redis.url)
        self._is_stopping = False
        self._following = PeriodicService(
            "follow",
            INTERVAL,
            self.run_once,
            log,
            state=StateLog(log, failed="topic.follow_failed", works="topic.follow_recovered"),
            backoff=Backoff(_FIRST_PAUSE, _LONGEST_PAUSE),
            clients=[self._client],
        )
        self.pool = pool(deployment)
        """What counts."""

    @property
    def health(self) -> ServiceHealth:
        """How the following is; see `pool.health` for the partitions."""
        return self._following.health

    def start(self) -> None:
        """Begin to count, and to follow."""
        self.pool.start()
        self._following.start()

    def quiet(self) -> None:
        """Read nothing more, and follow no further; the batches in hand are finished, and `stop` waits for them."""
        self._is_stopping = True
        self._following.quiet()
        self.pool.quiet()

    def stop(self, deadline: float) -> bool:
        """Finish what is in hand; return whether everything ended by the monotonic second `deadline`."""
        self.quiet()
        has_ended = self._following.stop(deadline)
        return self._end(self.pool, deadline) and has_ended

    def run_once(self) -> None:
        """Go on in the log that is live.

        Raises:
            redis.RedisError: the server does not answer, or refuses.
            ConfigurationError: what is stored is not of this release.
        """
        try:
            found = self._deployment.reload(self._client)
        except DeploymentChanged:
            self.pool.foreign.set()  # the partition workers report it
            return
        self.pool.foreign.clear()
        if found.layout.topic != self._deployment.layout.topic:
            self._go_on(found)

    def _go_on(self, found: Deployment) -> None:
        pool = self._make(found)  # first: what has come since the move waits for it
        try:
            pool.start()
        except Exception:
            self._end(pool, time.monotonic() + self._timeout)
            raise  # the next pass tries again
        before, self.pool, self._deployment = self.pool, pool, found
        if self._is_stopping:
            self.pool.quiet()
        self._log.info("topic.switched", topic=found.layout.topic, partitions=found.layout.partitions)
        self._end(before, time.monotonic() + self._timeout)

    def _end(self, pool: WorkerPool, deadline: float) -> bool:
        has_ended = pool.stop(deadline)
        if not has_ended:
            self._log.warning("worker.stop_timed_out", timeout=self._timeout, problem="the batch stays pending")
        return has_ended
