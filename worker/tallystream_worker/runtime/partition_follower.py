"""Follows the live topic and its rules: a worker counts new partitions, and by new rules, without a restart."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final

from tallystream.client.backoff import Backoff
from tallystream.client.connect import connect
from tallystream.errors import DeploymentChanged
from tallystream_worker.process.periodic import PeriodicService
from tallystream_worker.process.state_log import StateLog
from tallystream_worker.runtime.publication import counting_number, publish_again, warn_of_lost_rules

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.process.periodic import ServiceHealth
    from tallystream_worker.runtime.supervisor import WorkerPool
    from tallystream_worker.settings.settings import Settings

INTERVAL: Final = 0.5
"""Seconds between checks of the live topic: about the time for which new entries wait after a repartition."""

SHARE_INTERVAL: Final = 15.0
"""Seconds between two looks at which partitions no worker serves, if this process cannot serve all of them."""

_LOOKED_AT: Final = 32
"""Partitions of which one check reads the number of the rules that count them."""

_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 5.0


class PartitionFollower:
    """Runs the worker pool of the live topic, and replaces it after a repartition.

    Only the pool belongs to one topic: every other service of a worker checks the live topic in each pass.

    Args:
        settings: The configuration.
        deployment: The deployment at the start.
        log: Logger for the changes of topic, and for failures.
        pool: Makes a pool for a deployment, without starting it; the constructor and `run_once` call it.

    Raises:
        ConfigurationError: the URL of the server cannot be used.
        Exception: any error of `pool`.
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
        self._found = deployment
        self._next = 0
        self._following = PeriodicService(
            "follow",
            INTERVAL,
            self.run_once,
            log,
            state=StateLog(log, failed="topic.follow_failed", works="topic.follow_recovered"),
            backoff=Backoff(_FIRST_PAUSE, _LONGEST_PAUSE),
            clients=[self._client],
        )
        self._share_at = time.monotonic() + SHARE_INTERVAL
        self.pool = pool(deployment)
        """The pool that counts the live topic."""

    @property
    def health(self) -> ServiceHealth:
        """The state of the check of the live topic; `pool.health` has the state of the partitions."""
        return self._following.health

    def start(self) -> None:
        """Start the pool and the check of the live topic."""
        self.pool.start()
        self._following.start()

    def quiet(self) -> None:
        """Read no more entries and check the topic no more; running passes continue, and `stop` waits for them."""
        self._is_stopping = True
        self._following.quiet()
        self.pool.quiet()

    def stop(self, deadline: float) -> bool:
        """Finish the running batches; return whether all threads ended by the monotonic second `deadline`.

        Log a warning if a thread of a partition did not end. If the process ends before it, its batch stays pending.
        """
        self.quiet()
        has_ended = self._following.stop(deadline)
        return self._end(self.pool, deadline) and has_ended

    def run_once(self) -> None:
        """Read the deployment again, and pass its rules to the pool of partition workers.

        If the topic has changed, instead start a pool for it, then stop the old pool and wait for its end, up to
        `[worker] stop_timeout`.

        If the server lost the latest rules, log a warning, and store the rules that are left, if any, with a higher
        number. Two signs show a loss: a partition is counted by rules with a higher number, and refuses batches and
        decisions until then; or this worker has followed such rules of the same generation. Each pass looks at 32
        partitions.

        After a change of topic, and about every 15 seconds, also let the pool serve partitions that no worker serves:
        see `WorkerPool.share`.

        If nodes of a cluster do not answer, follow what the other nodes state. The node of the description must answer.

        If the server has the data of another deployment, or none, or a restore has not finished, set `pool.foreign` and
        change nothing else. Clear it when the deployment could be read.

        Raises:
            redis.RedisError: the server does not reply, or rejects a command.
            ConfigurationError: the stored data is of another release.
            DamagedValue: a stored value has a form that tallystream never writes.
            KeyLost: the stored deployment is not complete.

        An exception from the construction or the start of a new pool is raised, too. After any error, the pool in
        `pool` counts on.
        """
        # Read the numbers before the deployment: rules are stored before a partition is counted by them.
        counting = counting_number(self._client, self._found, self._some_partitions(), in_part=True)
        try:
            found = self._deployment.reload(self._client, in_part=True)
            found = self._without_reuse(found, counting)
        except DeploymentChanged:
            self.pool.foreign.set()  # the partition workers report it
            return
        self._found = found
        self.pool.foreign.clear()
        if found.layout.topic != self._deployment.layout.topic:
            self._go_on(found)
        else:
            self.pool.notice(found)
        if time.monotonic() >= self._share_at:
            self._share_at = time.monotonic() + SHARE_INTERVAL * random.uniform(0.8, 1.2)  # noqa: S311
            self._share(found)

    def _without_reuse(self, found: Deployment, counting: int) -> Deployment:
        """Log a loss of rules, and give the rules that are left a number above the lost ones; return the deployment.

        Without a loss, return `found`. A smaller number is no loss if another topic or generation is live than before.
        If no rules are left, only log. If other rules were published meanwhile, they keep their number.

        Args:
            found: The deployment as read now.
            counting: The highest number of the rules by which partitions were counted just before; 0 if it is not
                known.

        Raises:
            DeploymentChanged, KeyLost, DamagedValue, ConfigurationError, redis.RedisError: after a loss; see
                `publish_again`.
        """
        followed = self._found.revision
        lost = followed if found.declared is None else max(counting, followed)
        if lost <= found.revision or not _counts_the_same(found, self._found):
            return found
        if found.declared is not None:
            found = publish_again(self._client, found, lost)
        warn_of_lost_rules(self._log, found, lost)
        return found

    def _some_partitions(self) -> list[PartitionKeys]:
        """Return the next 32 partitions in turn (all, if there are fewer), so that a pass needs few commands."""
        keys = self._deployment.layout.keys
        chosen = [keys[(self._next + n) % len(keys)] for n in range(min(_LOOKED_AT, len(keys)))]
        self._next += len(chosen)
        return chosen

    def _go_on(self, found: Deployment) -> None:
        pool = self._make(found)  # before the old pool stops: new entries wait for the new pool
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
        self._share(found)  # the files of the old pool are free now

    def _share(self, found: Deployment) -> None:
        if not self._is_stopping and (taken := self.pool.share(found)):
            self._log.info("worker.partitions_taken", partitions=taken)

    def _end(self, pool: WorkerPool, deadline: float) -> bool:
        has_ended = pool.stop(deadline)
        if not has_ended:
            self._log.warning("worker.stop_timed_out", timeout=self._timeout, problem="the batch stays pending")
        return has_ended


def _counts_the_same(found: Deployment, before: Deployment) -> bool:
    """Return whether two descriptions of one epoch have the same live topic and generation."""
    return (found.layout.topic, found.generation) == (before.layout.topic, before.generation)
