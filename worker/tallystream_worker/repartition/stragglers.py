"""Copies stragglers: events that other clients XADD to the streams of the old topic after a repartition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.client.connect import connect
from tallystream.errors import DeploymentChanged
from tallystream_worker.process.periodic import PeriodicService
from tallystream_worker.repartition.copy import CopiedElsewhere, StreamCopier

if TYPE_CHECKING:
    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream_worker.settings.settings import Settings

INTERVAL: Final = 2.0
"""Seconds between two passes."""


class StragglerCopier:
    """Copies entries that reach the old topic after a repartition into the live topic, as long as the old one is kept.

    Call the object in each pass, with the deployment that was read just before.

    Args:
        client: The server of both topics.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._copying: StreamCopier | None = None
        self._between: tuple[int, int] | None = None

    def __call__(self, deployment: Deployment) -> int:
        """Copy the entries of the old topic that are not copied yet; return how many were copied.

        Then the retention holds of the old topic move, so that copied entries may be trimmed there. Every worker may do
        this at the same time: each entry is copied once. Return 0 if no old topic is kept, if another worker copies the
        same entries, or if the live topic was replaced; in the last two cases, this call may have copied some before.

        Args:
            deployment: The live deployment, read a moment ago.

        Raises:
            StreamError: entries were trimmed while the old streams were read (`EntriesTrimmed`), an old stream was
                replaced, or (`KeyLost`) an old stream was deleted or a partition of the live topic has lost a key.
            redis.RedisError: the last page may be copied or not; call again.
        """
        old = deployment.kept_layout
        if old is None:
            self._copying = None
            return 0
        between = (old.topic, deployment.layout.topic)
        if self._copying is None or self._between != between:
            self._copying, self._between = (
                StreamCopier(self._client, old, deployment.layout, spread=deployment.spread),
                between,
            )
        try:
            return self._copying()
        except CopiedElsewhere:
            self._copying = None  # another worker was first: read the marks again in the next pass
            return 0


def straggler_service(settings: Settings, deployment: Deployment, log: FilteringBoundLogger) -> PeriodicService:
    """Return the service, not started, that copies stragglers of the old topic into the live one every 2 seconds.

    A pass does nothing while the server has other data than that of `deployment`, or a restore has not finished.

    Raises:
        ConfigurationError: the URL of the server cannot be used.
    """
    client = connect(settings.redis.url)
    copier = StragglerCopier(client)

    def run_once() -> None:
        try:
            copied = copier(deployment.reload(client))
        except DeploymentChanged:
            return  # the partition workers report it
        if copied:
            log.info("repartition.stragglers_copied", entries=copied)

    return PeriodicService(
        "stragglers",
        INTERVAL,
        run_once,
        log,
        clients=[client],
    )
