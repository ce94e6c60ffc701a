"""Audits a deployment at regular intervals while its workers count; one worker at a time runs the audit.

`tally:meta` records the time and the result of the last audit, so any worker can run the next one. A lease keeps two
workers from auditing at once. If a lease expires during an audit, a second audit may run; it costs only time.
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
from tallystream_worker.process.description import note
from tallystream_worker.process.periodic import PeriodicService
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.baseline import opened
from tallystream_worker.snapshot.live_rules import followed_rules

if TYPE_CHECKING:
    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream_worker.rebuild.report import Report
    from tallystream_worker.settings.settings import Settings

FIELD: Final = "audit"
"""Field of the meta hash with three numbers: when the last audit ended (seconds since 1970), how many counters it
compared, how many differences it found. These include live counters that should not exist, so that there may be more
differences than compared counters: see `Report`."""

LOOK_EVERY: Final = 60.0
"""Seconds, at most, between two checks whether an audit is due."""

RETRY_AFTER: Final = 900.0
"""Seconds, from the beginning of an audit that failed, or whose result could not be recorded, until the same worker
audits again.

If the interval is shorter, the interval counts instead."""

_LEASE: Final = 60.0
_RENEW: Final = 10.0


class _Stopped(TallyError):
    """Raised in a running audit to end it, because the worker stops."""


class Scheduled:
    """Runs an audit when one is due; it counts each entry by the rules that counted it.

    Args:
        settings: The configuration.
        client: Client of the server of the live counters.
        log: Logs an error if counters differ.
        stopping: Ends a running audit when set.
    """

    def __init__(
        self, settings: Settings, client: redis.Redis, log: FilteringBoundLogger, stopping: threading.Event
    ) -> None:
        self._settings, self._log, self._stopping = settings, log, stopping
        self._client: Any = client  # its replies are bytes
        self._every = float(seconds(settings.audit.every) or 0)
        self._again_at = float("-inf")

    def run_once(self) -> dict[str, object] | None:
        """Run an audit if one is due and no other worker runs one; return the fields of its log line, else `None`.

        Also return `None` if no rules are published, or if `stopping` ended the audit. Record the time and the result
        of a finished audit in the hash `meta` of the live topic (see `FIELD`), and log an error if counters surely
        differ (`Report.differences`).

        Raises:
            ConfigurationError: entries are gone and no counter can be proved, the URL of the archive or of the snapshot
                cannot be used, or this release cannot read the stored data.
            ImportError: an archive is configured, and the package pyarrow is not installed.
            TallyError, redis.RedisError, OSError: another error of the audit (see `audit`); or the deployment could not
                be read, or the result could not be recorded.

        If the audit fails, or its result cannot be recorded, calls run no audit within the interval or 15 minutes,
        whichever is shorter, after its beginning. After an error before the audit began, the next call tries again.
        """
        deployment = Deployment.find(self._client, self._settings.redis.namespace)
        if deployment.declared is None or time.monotonic() < self._again_at or not self._is_due(deployment):
            return None
        lease, token = deployment.layout.keys[0].prefix + "auditing", uuid.uuid4().hex
        if not self._client.set(lease, token, nx=True, px=int(_LEASE * 1000)):
            return None
        try:
            if not self._is_due(deployment):
                return None  # another worker has just finished an audit
            self._again_at = time.monotonic() + min(self._every, RETRY_AFTER)
            report = self._audit(deployment, lease)
        except _Stopped:
            return None
        finally:
            if self._client.get(lease) == token.encode():
                self._client.delete(lease)
        note(self._client, deployment, {FIELD: f"{time.time():.3f} {report.counters} {len(report.differences)}"})
        self._again_at = float("-inf")
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
                followed=followed_rules(self._client, deployment.layout, sources.changes),
                sample=self._settings.audit.sample,
                show=show,
            )


def audit_service(settings: Settings, log: FilteringBoundLogger) -> PeriodicService:
    """Return the service, not started, that runs an audit if `[audit] every` has passed since the end of the last one.

    The last one may be of another worker. The service checks at least every 60 seconds whether an audit is due.

    The caller must make sure that `[audit] every` is not empty: an empty one stands for no audits.

    Raises:
        ConfigurationError: the URL of the server is invalid.
    """
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
