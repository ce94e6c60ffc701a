"""Verifies a deployment at regular intervals while its workers count; one worker at a time runs the verification.

The hash of the live topic has the time and the result of the last verification. A lease keeps two workers from
verifying at once. If a lease expires meanwhile, a second verification may run; it costs only time.
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.rules.windows import seconds
from tallystream.storage.deployment_hash import VERIFIED
from tallystream_worker.process.description import note
from tallystream_worker.process.periodic import PeriodicService
from tallystream_worker.rebuild.baseline import opened
from tallystream_worker.rebuild.schedule import LOOK_EVERY, RETRY_AFTER
from tallystream_worker.verify.verify import Stopped, verify

if TYPE_CHECKING:
    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream_worker.settings.settings import Settings
    from tallystream_worker.verify.report import Verification

_LEASE: Final = 60.0
_RENEW: Final = 10.0


class ScheduledVerification:
    """Runs a verification in a call of `run_once` if one is due.

    One is due if none is recorded for the topic, or the interval `[verify] every` has passed since the last recorded
    one of any worker.

    Args:
        settings: The configuration; `[verify] every` must not be empty.
        client: Client of the server.
        log: Logs an error if something is wrong, or else a warning if a check could not be made.
        stopping: Ends a running verification when set.
    """

    def __init__(
        self, settings: Settings, client: redis.Redis, log: FilteringBoundLogger, stopping: threading.Event
    ) -> None:
        self._settings, self._log, self._stopping = settings, log, stopping
        self._client: Any = client  # its replies are bytes
        self._every = float(seconds(settings.verify.every) or 0)
        self._again_at = float("-inf")

    def run_once(self) -> dict[str, object] | None:
        """Run a verification if one is due and no other worker runs one; return the fields of a log line, else `None`.

        Also return `None` if no rules are published, or if `stopping` ended the verification. After a verification,
        record its time and result in the hash that describes the topic (`Layout.meta`), and log an error if something
        is wrong, or else a warning if a check could not be made.

        Raises:
            TallyError, redis.RedisError: the verification could not begin, or its result could not be recorded; see
                `verify`.
            redis.ConnectionError, redis.TimeoutError: also if the server did not reply during the verification.
            ImportError: an archive is configured, and the package pyarrow is not installed.

        If the archive or the snapshot cannot be opened, the verification fails or is stopped, or its result cannot be
        recorded, calls of this object within the interval or 15 minutes, whichever is shorter, do nothing. After an
        earlier error, the next call tries again.
        """
        deployment = Deployment.find(self._client, self._settings.redis.namespace)
        if deployment.declared is None or time.monotonic() < self._again_at or not self._is_due(deployment):
            return None
        lease, token = deployment.layout.keys[0].prefix + "verifying", uuid.uuid4().hex
        if not self._client.set(lease, token, nx=True, px=int(_LEASE * 1000)):
            return None
        try:
            if not self._is_due(deployment):
                return None  # another worker has just finished a verification
            self._again_at = time.monotonic() + min(self._every, RETRY_AFTER)
            report = self._verify(deployment, lease)
        except Stopped:
            return None
        finally:
            if self._client.get(lease) == token.encode():
                self._client.delete(lease)
        note(self._client, deployment, {VERIFIED: f"{time.time():.3f} {len(report.findings)} {len(report.failed)}"})
        self._again_at = float("-inf")
        if report.findings:
            self._log.error("verification.found_faults", **report.said())
        elif report.failed:
            self._log.warning("verification.incomplete", **report.said())
        return report.said()

    def _is_due(self, deployment: Deployment) -> bool:
        found: bytes | None = self._client.hget(deployment.layout.meta, VERIFIED)
        return found is None or time.time() - float(found.split()[0]) >= self._every

    def _verify(self, deployment: Deployment, lease: str) -> Verification:
        renewed = time.monotonic()

        def show(_: str) -> None:
            nonlocal renewed
            if self._stopping.is_set():
                raise Stopped
            if time.monotonic() - renewed > _RENEW:
                renewed = time.monotonic()
                self._client.pexpire(lease, int(_LEASE * 1000))

        with opened(self._settings, log=deployment.layout.topic) as sources:
            return verify(
                self._client,
                deployment.layout.namespace,
                sources,
                sample=self._settings.verify.sample,
                show=show,
            )


def verify_service(settings: Settings, log: FilteringBoundLogger) -> PeriodicService:
    """Return the service, not started, that verifies whenever one is due: see `ScheduledVerification`.

    Call this only if `[verify] every` is not empty: if it is empty, no verifications are wanted.

    Raises:
        ConfigurationError: the URL of the server is invalid.
        ValueError: `[verify] every` is empty.
    """
    client, stopping = connect(settings.redis.url), threading.Event()
    scheduled = ScheduledVerification(settings, client, log, stopping)
    return PeriodicService(
        "verify",
        min(LOOK_EVERY, float(seconds(settings.verify.every) or 0)),
        scheduled.run_once,
        log,
        clients=[client],
        stopping=stopping,
    )
