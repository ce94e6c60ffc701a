"""What the maintenance jobs have in common: one pass over all partitions, and a service that makes it."""

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
"""Seconds between two passes of most jobs, about."""

_JITTER: Final = 0.25
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 5.0


def for_each_partition(
    client: redis.Redis, deployment: Deployment, job: Callable[[int, PartitionKeys, Deployment], None]
) -> None:
    """Do a job in every partition, whether or not it fails in another one.

    Does nothing if the server holds other data than the worker began with, and leaves out a partition whose stream or
    consumer group is gone: the partition's worker reports both.

    Args:
        client: Where the partitions are.
        deployment: The data that the worker began with.
        job: Takes the partition's number, its keys, and what is stored by now.

    Raises:
        redis.RedisError: the first error of a partition, after the others were done.
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
    """Return the service of a job; every worker runs it, and each step is right whoever else does the same.

    Args:
        name: What logs and health call it.
        interval: Seconds between two passes, a quarter more or less.
        run_once: Makes one pass.
        client: The job's own; closed at the end.
        log: Where changes of state are logged.
        stopping: Seen by a pass that takes longer.
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
