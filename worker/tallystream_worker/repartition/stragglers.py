"""Fetches what is still appended to a closed log, by clients that XADD plain events to its streams."""

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
    """Copies what comes late from the log before the present one, for as long as that is kept.

    Args:
        client: Where both are.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._copying: StreamCopier | None = None
        self._between: tuple[int, int] | None = None

    def __call__(self, deployment: Deployment) -> int:
        """Copy what is there; return how many entries that were.

        Every worker may do this: each entry is copied once.
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
            self._copying = None  # another worker was first: look anew in the next round
            return 0


def straggler_service(settings: Settings, deployment: Deployment, log: FilteringBoundLogger) -> PeriodicService:
    """Return the service that copies stragglers."""
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
