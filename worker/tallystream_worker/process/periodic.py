"""A periodic service: runs a function at an interval in its own thread, until it is stopped."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tallystream.client.backoff import Backoff
from tallystream.client.replies import is_connection_stale
from tallystream_worker.process.state_log import StateLog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import redis
    from structlog.typing import FilteringBoundLogger

FIRST_PAUSE: Final = 0.5
"""Seconds of the default back-off after the first failed pass."""

LONGEST_PAUSE: Final = 30.0
"""Longest default back-off between failed passes, in seconds."""


@dataclass(frozen=True)
class ServiceHealth:
    """The state of one service.

    Attributes:
        name: Name of the service.
        problem: Why the last pass that has ended failed; `None` if it succeeded. A failure that is a part of normal
            operation (`is_normal`) does not change it. Before the first pass ends: the problem that the service's
            `state` was made with, usually `None`.
        passed: Monotonic second at which the last successful pass ended; before the first successful pass, the second
            at which the service was made.
        tried: Monotonic second at which the last pass began, the running one included; before the first pass, the
            second at which the service was made.
    """

    name: str
    problem: str | None
    passed: float
    tried: float


class PeriodicService:
    """Runs one pass after another in its own thread, from `start` until `stop`.

    A failed pass is tried again after a back-off. A failure is logged unless it is the present problem of the service
    (see `StateLog`): a `RedisError` or `TallyError` with its text, any other exception with its traceback. No
    `Exception` of a pass ends the thread.

    Args:
        name: Name of the service in logs, health and the thread.
        interval: Seconds from the beginning of one pass to the beginning of the next; if a pass takes longer, the next
            one begins at once.
        run_once: Runs one pass; returns the fields of a line to log, or `None` (or no fields) to log no line.
        log: Logger for these lines and for the changes of state.
        state: Logs the changes of state; default: the events `task.failed` and `task.recovered`.
        backoff: Seconds to wait after failed passes; by default they grow from 0.5 to 30 s, each up to half shorter.
        jitter: The fraction by which an interval is randomly shorter or longer, so that several processes do not run
            in step.
        recover: Called with the exception of a failed pass; returns the seconds to wait, or `None` for the back-off.
        is_normal: Called with the exception of a failed pass; returns whether the failure is a part of normal
            operation, such as a switch. Then the state does not change, and nothing is logged.
        close: Called after the last pass, in the thread of the passes; if the thread was never started, `stop` calls
            it.
        clients: The Redis clients of the passes. The service closes their idle connections after a failure, unless the
            failure is a `redis.ResponseError` other than READONLY, and closes the clients after `close`.
        shared: Redis clients of the passes that other services use too. After such a failure, their idle connections
            are closed; the clients themselves stay open.
        stopping: The event that `quiet` sets, if a pass has to check it; `None` for a private one.
    """

    def __init__(  # noqa: PLR0913  # every part is handed in, and named
        self,
        name: str,
        interval: float,
        run_once: Callable[[], Mapping[str, object] | None],
        log: FilteringBoundLogger,
        *,
        state: StateLog | None = None,
        backoff: Backoff | None = None,
        jitter: float = 0.0,
        recover: Callable[[Exception], float | None] = lambda _error: None,
        is_normal: Callable[[Exception], bool] = lambda _error: False,
        close: Callable[[], None] = lambda: None,
        clients: Sequence[redis.Redis] = (),
        shared: Sequence[redis.Redis] = (),
        stopping: threading.Event | None = None,
    ) -> None:
        self.name = name
        """Name of the service."""
        self.run_once = run_once
        """Runs one pass, without logging and back-off."""
        self._interval = interval
        self._log = log.bind(service=name)
        self._state = state or StateLog(self._log, failed="task.failed", works="task.recovered")
        self._backoff = backoff or Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        self._jitter = jitter
        self._recover = recover
        self._is_normal = is_normal
        self._at_end = close
        self._clients = clients
        self._shared = shared
        self._stopping = stopping or threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"tallystream-{name}", daemon=True)
        self._passed = self._tried = time.monotonic()

    @property
    def health(self) -> ServiceHealth:
        """The state of the service now."""
        return ServiceHealth(self.name, self._state.problem, self._passed, self._tried)

    def start(self) -> None:
        """Start the thread, and return; the first pass begins at once. A second call raises a `RuntimeError`."""
        self._thread.start()

    def quiet(self) -> None:
        """Begin no further pass, and return at once; a running pass continues, and `stop` waits for it."""
        self._stopping.set()

    def stop(self, deadline: float) -> bool:
        """Begin no further pass, and wait for the running one until the monotonic second `deadline`.

        A pass that takes longer continues, but its thread does not keep the process alive. The clients are closed after
        the last pass; if the thread was never started, they are closed at once.

        Returns:
            Whether the thread has ended, or was never started.
        """
        self.quiet()
        if self._thread.ident is None:
            self._close()
            return True
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def attempt(self) -> float:
        """Run one pass, without waiting; log a change of state; return the seconds to wait before the next pass.

        If the pass returns fields, they are logged as `task.done`. An `Exception` of the pass is not raised: it becomes
        the problem of the service (unless `is_normal` is true for it), idle connections may be closed (see `clients`),
        and the wait is the one that `recover` returns, or else the back-off.
        """
        self._tried = time.monotonic()
        try:
            done = self.run_once()
        except Exception as error:  # noqa: BLE001  # a bug in a pass must not end the thread
            return self._failed(error)
        self._backoff.reset()
        self._state.works()
        if done:
            self._log.info("task.done", **done)
        self._passed = time.monotonic()
        interval = self._interval * random.uniform(1 - self._jitter, 1 + self._jitter)  # noqa: S311
        return max(0.0, self._tried + interval - self._passed)

    def _failed(self, error: Exception) -> float:
        if not self._is_normal(error):
            self._state.failed_with(error)
        try:
            _drop_stale_connections(error, [*self._clients, *self._shared])
            wanted = self._recover(error)
        except Exception as further:  # noqa: BLE001  # as above
            self._state.failed_with(further)
            wanted = None
        return self._backoff.next() if wanted is None else wanted

    def _close(self) -> None:
        self._at_end()
        for client in self._clients:
            client.close()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                pause = LONGEST_PAUSE
                with suppress(Exception):  # only logging itself can raise here, for example if a disk is full
                    pause = self.attempt()
                self._stopping.wait(pause)
        finally:
            self._close()


def _drop_stale_connections(error: Exception, clients: Sequence[redis.Redis]) -> None:
    """Close all idle connections of clients, unless `error` is a `redis.ResponseError` other than READONLY.

    After any other error, the connections may be to a node that was demoted or is gone. LOADING and a rejected password
    are such errors, too: redis-py raises a `ConnectionError` for these replies.
    """
    if not isinstance(error, RedisError) or is_connection_stale(error):
        for client in clients:
            client.connection_pool.disconnect(inuse_connections=False)  # another service may wait on one in use
