"""The service that takes snapshots while the worker counts."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tallystream.client.connect import connect
from tallystream.storage.deployment_hash import SNAPSHOT_EVERY
from tallystream_worker.process.description import note
from tallystream_worker.process.periodic import PeriodicService
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.snapshotter import Snapshotter

if TYPE_CHECKING:
    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream_worker.settings.settings import Settings


class LiveSnapshot:
    """Takes a snapshot of the live counters in each call of `run_once`, and publishes the interval of the calls.

    The interval is a field of the hash `meta` of the live topic.

    Args:
        client: The server of the counters; `close` does not close it.
        database: The database of the snapshots; closed by `close`.
        deployment: The deployment that the worker began with.
        every: The interval to publish, in seconds; the caller must call `run_once` at this interval.
    """

    def __init__(self, client: redis.Redis, database: Database, deployment: Deployment, every: float) -> None:
        self._client = client
        self._database = database
        self._deployment = deployment
        self._every = every

    def run_once(self) -> dict[str, object] | None:
        """Publish the interval and take a snapshot; return the fields of a log line.

        Return `None` if no value of a counter was written or removed, and no snapshot of an earlier release was
        replaced; other rows may have been written.

        The fields are `rows` (see `Round`), and `replaced`, the format of the snapshot of an earlier release that this
        one has replaced, if it has.

        The deployment is read again each time, because its rules, generation and topic may have changed. If the topic
        has changed, the interval is removed from the earlier one.

        Raises:
            DeploymentChanged: the server has other data than the worker began with, or a restore has not finished.
            ConfigurationError: this release cannot read the stored layout version or rules, or no worker has published
                rules yet.
            DamagedValue: a stored value has a form that tallystream never writes.
            KeyLost: a partition has lost a key (see `Snapshotter.run_once`), or the hash that describes the deployment
                has lost a field, or (of a later topic) is lost itself.
            SnapshotError, ViewLost, ScanBroken: see `Snapshotter` and its `run_once`.
            redis.RedisError: the server did not answer, or refused a command.
        """
        found = self._deployment.reload(self._client)
        if found.layout.meta != self._deployment.layout.meta:  # the events were moved to another topic
            self._client.hdel(self._deployment.layout.meta, SNAPSHOT_EVERY)
        self._deployment = found
        note(self._client, found, {SNAPSHOT_EVERY: f"{self._every:g}"})
        done = Snapshotter(self._client, self._database, found).run_once()
        fields: dict[str, object] = {"rows": done.rows}
        if done.replaced:
            return fields | {"replaced": done.replaced}
        return fields if done.rows else None

    def close(self) -> None:
        """Remove the published interval, because no next snapshot is due, and close the database.

        If the server does not answer, or refuses the command, the interval stays; no error is raised.
        """
        with suppress(RedisError):
            self._client.hdel(self._deployment.layout.meta, SNAPSHOT_EVERY)
        self._database.close()


def snapshot_service(settings: Settings, deployment: Deployment, log: FilteringBoundLogger) -> PeriodicService:
    """Return the service that takes a snapshot into `[snapshot] url` every `[snapshot] every`.

    The service is not started, and no connection is made yet. The caller must make sure that `[snapshot] url` is not
    empty.

    Raises:
        ConfigurationError: the URL of the database or of the server cannot be used.
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
