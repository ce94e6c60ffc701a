"""Audits beside the counting, every so often: one worker of all that serve a namespace does it.

When the last one ended stands in `tally:meta`, with what it found, so it matters to none which worker that was; a lease
keeps two from doing it at once. If both did, for a lease that ran out, that would cost time and nothing else.
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import TallyError
from tallystream.rules.windows import seconds
from tallystream_worker.process.periodic import PeriodicService
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.baseline import opened

if TYPE_CHECKING:
    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream_worker.rebuild.report import Report
    from tallystream_worker.settings.settings import Settings

FIELD: Final = "audit"
"""Of the meta hash: when the last audit ended (seconds since 1970), how many counters it compared, how many differ."""

LOOK_EVERY: Final = 60.0
"""Seconds between two looks whether one is due."""

RETRY_AFTER: Final = 900.0
"""Seconds at most until an audit that failed is tried again by the same worker."""

_LEASE: Final = 60.0
_RENEW: Final = 10.0


class _Stopped(TallyError):
    """The worker ends, and the audit with it."""


class Scheduled:
    """Looks whether an audit is due, and does it.

    Args:
        settings: What was configured.
        client: The live server.
        log: Where counters that differ are said.
        stopping: Ends an audit in hand.
    """

    def __init__(
        self, settings: Settings, client: redis.Redis, log: FilteringBoundLogger, stopping: threading.Event
    ) -> None:
        self._settings, self._log, self._stopping = settings, log, stopping
        self._client: Any = client  # its replies are bytes
        self._every = float(seconds(settings.audit.every) or 0)
        self._again_at = float("-inf")

    def run_once(self) -> dict[str, object] | None:
        """Audit, if it is time and nobody else does; return what is worth a line of the log.

        Raises:
            ConfigurationError: nothing can be proved; it is tried again after a while.
        """
        deployment = Deployment.find(self._client, self._settings.redis.namespace)
        if deployment.declared is None or time.monotonic() < self._again_at or not self._is_due(deployment):
            return None
        lease, token = deployment.layout.keys[0].prefix + "auditing", uuid.uuid4().hex
        if not self._client.set(lease, token, nx=True, px=int(_LEASE * 1000)):
            return None
        try:
            if not self._is_due(deployment):
                return None  # somebody else has ended one just now
            self._again_at = time.monotonic() + min(self._every, RETRY_AFTER)
            report = self._audit(deployment, lease)
            self._again_at = float("-inf")
        except _Stopped:
            return None
        finally:
            if self._client.get(lease) == token.encode():
                self._client.delete(lease)
        self._client.hset(
            deployment.layout.meta, FIELD, f"{time.time():.3f} {report.counters} {len(report.differences)}"
        )
        if report.differences:
            self._log.error("audit.counters_differ", **report.said())
        return report.said()

    def _is_due(self, deployment: Deployment) -> bool:
        found: bytes | None = self._client.hget(deployment.layout.meta, FIELD)
        return found is None or time.time() - float(found.split()[0]) >= self._every

    def _audit(self, deployment: Deployment, lease: str) -> Report:
        renewed = time.monotonic()

        def show(*_: object) -> None:
            nonlocal renewed
            if self._stopping.is_set():
                raise _Stopped
            if time.monotonic() - renewed > _RENEW:
                renewed = time.monotonic()
                self._client.pexpire(lease, int(_LEASE * 1000))

        with opened(self._settings, log=deployment.layout.topic) as sources:
            return audit(
                self._client,
                deployment,
                deployment.rules,
                sources=sources,
                sample=self._settings.audit.sample,
                show=show,
            )


def audit_service(settings: Settings, log: FilteringBoundLogger) -> PeriodicService:
    """Return the service that audits as often as `[audit] every` says."""
    client, stopping = connect(settings.redis.url), threading.Event()
    scheduled = Scheduled(settings, client, log, stopping)
    return PeriodicService(
        "audit",
        min(LOOK_EVERY, float(seconds(settings.audit.every) or 0)),
        scheduled.run_once,
        log,
        clients=[client],
        stopping=stopping,
    )
