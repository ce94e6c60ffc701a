"""Copies stragglers: events that other clients XADD to the streams of the old topic after a repartition.

Also copies again what a failover has taken back from the live topic, as long as the old topic is kept.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tallystream.client.connect import connect
from tallystream.errors import DeploymentChanged
from tallystream.rules.metrics import read
from tallystream_worker.process.periodic import PeriodicService
from tallystream_worker.repartition.copy import CopiedElsewhere, StreamCopier

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.rules.retraction import Retraction
    from tallystream.storage.keys import Layout
    from tallystream_worker.settings.settings import Settings

INTERVAL: Final = 2.0
"""Seconds between two passes."""

_PATIENCE: Final = 10.0
"""Seconds in which `copy_all` tries again."""


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

        If entries were copied, the retention holds of the old topic then move, so that these may be trimmed there.
        Every worker may do this at the same time: each entry is copied once. The marks are read from the server each
        time, because a failover may have taken copies back together with their marks. Return 0 if no old topic is kept.
        Also return 0 if another worker copies the same entries, a failover takes copies back meanwhile, or the live
        topic was replaced; in these cases, this call may have copied some entries before.

        Args:
            deployment: The live deployment, read a moment ago.

        Raises:
            StreamError: entries were trimmed while the old streams were read (`EntriesTrimmed`), an old stream was
                replaced, a node failed over while the dropped dead letters were read (`ScanBroken`), or (`KeyLost`) an
                old stream was deleted or a partition of the live topic has lost a key.
            CodecError: the record of a dropped dead letter is damaged.
            ConfigurationError: this release cannot read the rules of the old topic.
            redis.RedisError: the last page may be copied or not; call again.
        """
        try:
            return self._copy(deployment)
        except CopiedElsewhere:
            return 0  # another worker was first

    def copy_all(self, deployment: Deployment) -> int:
        """Copy as `__call__` does, and return how many entries the last attempt has copied.

        If another worker copies the same entries, a failover takes copies back meanwhile, or the live topic was
        replaced, try again for 10 seconds. Then earlier attempts may have copied other entries.

        Raises:
            CopiedElsewhere: one of these is still so after 10 seconds.
            StreamError, CodecError, ConfigurationError, redis.RedisError: see `__call__`.
        """
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return self._copy(deployment)
            except CopiedElsewhere:
                if time.monotonic() > until:
                    raise

    def _copy(self, deployment: Deployment) -> int:
        old = deployment.kept_layout
        if old is None:
            self._copying = None
            return 0
        between = (old.topic, deployment.layout.topic)
        if self._copying is None or self._between != between:
            self._copying = StreamCopier(
                self._client, old, deployment.layout, self._retracted(old), spread=deployment.spread
            )
            self._between = between
        self._copying.look()
        return self._copying()

    def _retracted(self, old: Layout) -> Sequence[Retraction]:
        """Return the retractions of the old topic: what is copied again must be marked with them again.

        Empty if the rules in its hash are lost. Raise a `ConfigurationError` if this release cannot read them.
        """
        rules: bytes | None = self._client.execute_command("HGET", old.meta, "rules")
        return read(rules).retracted if rules is not None else ()


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
