"""Runs a maintenance job in every partition, periodically."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tallystream.client.backoff import Backoff
from tallystream.client.replies import is_stream_or_group_missing
from tallystream.errors import DeploymentChanged
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
    """Run a job in every partition, also after it failed in another partition.

    If the epoch differs from the one that the worker started with, do nothing. Ignore a partition whose stream or
    consumer group is gone. The counting loop reports both.

    Args:
        client: The connection to the partitions.
        deployment: The deployment that the worker started with.
        job: Called with the partition's number, its keys, and the deployment that is stored now.

    Raises:
        redis.RedisError: the first error of a partition, after the job has run in all of them.
    """
    try:
        found = deployment.reload(client)
    except DeploymentChanged:
        return
    failed: RedisError | None = None
    for partition, keys in enumerate(found.layout.keys):
        try:
            job(partition, keys, found)
        except RedisError as error:
            if not is_stream_or_group_missing(error):
                failed = failed or error
    if failed is not None:
        raise failed


def maintenance_service(
    name: str,
    interval: float,
    run_once: Callable[[], None],
    client: redis.Redis,
    log: FilteringBoundLogger,
    stopping: threading.Event | None = None,
) -> PeriodicService:
    """Return the periodic service of a maintenance job. Every worker runs it, and several may run it at the same time.

    Args:
        name: The name of the service in logs and health.
        interval: Seconds between two passes, varied by up to a quarter.
        run_once: Makes one pass.
        client: The job's own client; the service closes it when it stops.
        log: Logs changes of state.
        stopping: Set when the service stops, so that a long pass can end early.
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
