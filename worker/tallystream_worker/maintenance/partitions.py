"""Runs a maintenance job in every partition, periodically."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tallystream.client.backoff import Backoff
from tallystream.client.replies import is_stream_or_group_missing, is_unreachable
from tallystream.errors import DeploymentChanged, KeyLost
from tallystream_worker.process.in_reach import for_each_in_reach
from tallystream_worker.process.periodic import PeriodicService

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import PartitionKeys

INTERVAL: Final = 2.0
"""Approximate seconds between two passes of most jobs."""

_JITTER: Final = 0.25
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 5.0


def for_each_partition(
    client: redis.Redis, deployment: Deployment, job: Callable[[int, PartitionKeys, Deployment], None]
) -> None:
    """Read the deployment again, and run a job in every partition of its live topic, also after it failed in one.

    If nodes of a cluster do not answer, their partitions are left out. If a single server does not answer the job, the
    partitions after it are not tried.

    If the data that the worker started with was deleted or replaced, or a restore has not finished, do nothing. Ignore
    a `RedisError` of the job that shows that a stream or consumer group is gone. The counting loop reports both. An
    exception of the job that is neither a `RedisError` nor a `KeyLost` ends the pass at once. It is raised, unless the
    job failed in an earlier partition: then that error is.

    Args:
        client: The connection to the partitions.
        deployment: The deployment that the worker started with.
        job: Called with the partition's number, its keys, and the deployment that is stored now.

    Raises:
        redis.RedisError, KeyLost: the deployment could not be read; or the first error of the job: after all
            partitions, or at once if a single server does not answer.
        DamagedValue: a value that describes the deployment has a form that tallystream never writes.
        NodeUnreachable: nodes do not answer, and there is no other error; raised after all other partitions.
        ConfigurationError: this release cannot read the stored layout version or rules.
    """
    try:
        found = deployment.reload(client, in_part=True)
    except DeploymentChanged:
        return
    failed: list[RedisError | KeyLost] = []

    def run(partition: int, keys: PartitionKeys) -> None:
        try:
            job(partition, keys, found)
        except KeyLost as error:
            failed.append(error)
        except RedisError as error:
            if is_unreachable(error):
                raise
            if not is_stream_or_group_missing(error):
                failed.append(error)

    try:
        for_each_in_reach(client, found.in_reach.layout, run)
    finally:
        if failed:
            raise failed[0]


def maintenance_service(
    name: str,
    interval: float,
    run_once: Callable[[], None],
    client: redis.Redis,
    log: FilteringBoundLogger,
    stopping: threading.Event | None = None,
) -> PeriodicService:
    """Return the periodic service of a maintenance job, not started. Several workers may run it at the same time.

    A failed pass is tried again after a back-off that grows from about 0.5 to 5 seconds, each up to half shorter.

    Args:
        name: The name of the service in logs and health.
        interval: Seconds from the beginning of one pass to that of the next, varied by up to a quarter.
        run_once: Makes one pass.
        client: The job's own client; the service closes it when it stops.
        log: Logs changes of state.
        stopping: The event that the service sets when it stops, so that a long pass can end early; `None` if no pass
            needs it.
    """
    return PeriodicService(
        name,
        interval,
        run_once,
        log,
        backoff=Backoff(_FIRST_PAUSE, _LONGEST_PAUSE),
        jitter=_JITTER,
        clients=[client],
        stopping=stopping,
    )
