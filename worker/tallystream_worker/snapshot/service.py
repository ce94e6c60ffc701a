"""The service that takes snapshots beside the counting."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tallystream.client.connect import connect
from tallystream.storage.deployment_hash import SNAPSHOT_EVERY
from tallystream_worker.process.periodic import PeriodicService
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.snapshotter import Snapshotter

if TYPE_CHECKING:
    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream_worker.settings.settings import Settings


class LiveSnapshot:
    """Takes snapshots of what is live, and says in `tally:meta` how often.

    Args:
        client: Where the counters are.
        database: Where they go; closed at the end.
        deployment: The data that the worker began with.
        every: Seconds between two snapshots.
    """

    def __init__(self, client: redis.Redis, database: Database, deployment: Deployment, every: float) -> None:
        self._client = client
        self._database = database
        self._deployment = deployment
        self._every = every

    def run_once(self) -> dict[str, object] | None:
        """Take a snapshot; return how many rows were written, `None` for none.

        What is stored is read each time: rules are published, and generations switched, meanwhile.

        Raises:
            DeploymentChanged: the server holds other data by now.
            SnapshotError: see `Snapshotter`.
            redis.RedisError: the server does not answer, or refuses.
        """
        found = self._deployment.reload(self._client)
        if found.layout.meta != self._deployment.layout.meta:  # the events were moved to another log
            self._client.hdel(self._deployment.layout.meta, SNAPSHOT_EVERY)
        self._deployment = found
        self._client.hset(found.layout.meta, SNAPSHOT_EVERY, f"{self._every:g}")
        done = Snapshotter(self._client, self._database, found).run_once()
        return {"rows": done.rows} if done.rows else None

    def close(self) -> None:
        """Take back how often: nobody promises the next snapshot any more."""
        with suppress(RedisError):
            self._client.hdel(self._deployment.layout.meta, SNAPSHOT_EVERY)
        self._database.close()


def snapshot_service(settings: Settings, deployment: Deployment, log: FilteringBoundLogger) -> PeriodicService:
    """Return the service that takes snapshots into `[snapshot] url`.

    Raises:
        SnapshotError: the database cannot be used.
    """
    client, database = connect(settings.redis.url), Database(settings.snapshot.url, deployment.layout.namespace)
    snapshot = LiveSnapshot(client, database, deployment, settings.snapshot.every)
    return PeriodicService(
        "snapshot",
        settings.snapshot.every,
        snapshot.run_once,
        log,
        close=snapshot.close,
        clients=[client],
    )
