"""A periodic service: one pass again and again, in a thread that nothing but `stop` ends."""

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
LONGEST_PAUSE: Final = 30.0
"""Seconds that a service waits after its first failed pass, and at most, unless it is given another back-off."""


@dataclass(frozen=True)
class ServiceHealth:
    """The state of one service.

    Attributes:
        name: Which service.
        problem: Why its last pass failed; `None` if it succeeded.
        passed: Monotonic second at which the last pass that succeeded ended.
        tried: Monotonic second at which the last pass began, whatever became of it.
    """

    name: str
    problem: str | None
    passed: float
    tried: float


class PeriodicService:
    """Makes one pass after another until it is stopped; a pass that fails is logged once and tried again.

    A `RedisError` or `TallyError` is logged with its text, any other exception with its traceback: whatever a pass
    raises, the thread goes on.

    Args:
        name: What logs, health and the thread call it.
        interval: Seconds from the beginning of one pass to the beginning of the next.
        run_once: Makes one pass; returns the fields of a log line if there is something to say.
        log: Where changes of state are logged.
        state: How they are logged, if not as "does not work" and "works again".
        backoff: How long it waits after failed passes, if not 0.5 s to 30 s.
        jitter: The part by which an interval may be shorter or longer, so that several processes do not keep in step.
        recover: Called with the exception of a failed pass; returns how many seconds to wait, or `None` for the
            back-off.
        close: Called once the last pass has ended, in the thread of the passes.
        clients: What the passes use: their connections are dropped if a server is lost, and closed after `close`.
        stopping: Set by `quiet`; handed in if a pass has to see it.
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
        close: Callable[[], None] = lambda: None,
        clients: Sequence[redis.Redis] = (),
        stopping: threading.Event | None = None,
    ) -> None:
        self.name = name
        self.run_once = run_once
        self._interval = interval
        self._log = log.bind(service=name)
        self._state = state or StateLog(self._log, failed="task.failed", works="task.recovered")
        self._backoff = backoff or Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        self._jitter = jitter
        self._recover = recover
        self._at_end = close
        self._clients = clients
        self._stopping = stopping or threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"tallystream-{name}", daemon=True)
        self._passed = self._tried = time.monotonic()

    @property
    def health(self) -> ServiceHealth:
        """The state as of the last pass."""
        return ServiceHealth(self.name, self._state.problem, self._passed, self._tried)

    def start(self) -> None:
        """Begin to make passes; the first one at once."""
        self._thread.start()

    def quiet(self) -> None:
        """Begin no further pass; the one in hand goes on, and `stop` waits for it."""
        self._stopping.set()

    def stop(self, deadline: float) -> bool:
        """Wait until the pass in hand has ended, until the monotonic second `deadline`; return whether it has.

        A pass that goes on for longer is left alone: its thread does not keep the process alive.
        """
        self.quiet()
        if self._thread.ident is None:
            self._close()
            return True
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def attempt(self) -> float:
        """Make one pass, log what has changed, and return how many seconds to wait before the next."""
        self._tried = time.monotonic()
        try:
            done = self.run_once()
        except Exception as error:  # noqa: BLE001  # a thread that dies in silence is worse than any bug
            return self._failed(error)
        self._backoff.reset()
        self._state.works()
        if done:
            self._log.info("task.done", **done)
        self._passed = time.monotonic()
        interval = self._interval * random.uniform(1 - self._jitter, 1 + self._jitter)  # noqa: S311
        return max(0.0, self._tried + interval - self._passed)

    def _failed(self, error: Exception) -> float:
        self._state.failed_with(error)
        try:
            _drop_stale_connections(error, self._clients)
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
                with suppress(Exception):  # the log itself cannot be written, perhaps because a disk is full
                    pause = self.attempt()
                self._stopping.wait(pause)
        finally:
            self._close()


def _drop_stale_connections(error: Exception, clients: Sequence[redis.Redis]) -> None:
    """Close the connections of clients after an error, unless it is the answer of a server that works.

    Pooled connections would keep going to a node that was demoted, or is gone.
    """
    if not isinstance(error, RedisError) or is_connection_stale(error):
        for client in clients:
            client.connection_pool.disconnect()
