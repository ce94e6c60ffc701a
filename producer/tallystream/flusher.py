"""The flusher: the thread behind a producer that seals, sends, and tries again for as long as it takes."""

from __future__ import annotations

import logging
import random
import threading
from typing import TYPE_CHECKING, Final

from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from tallystream.append import Appender
from tallystream.connection import is_refusal
from tallystream.errors import ConfigurationError
from tallystream.lane import Entry

if TYPE_CHECKING:
    import redis

    from tallystream.admission import Admission
    from tallystream.buffer import Buffer
    from tallystream.confirm import Confirmation

_BACKOFF: Final = (0.05, 2.0)
"""Seconds to wait after the first failure, and at the most."""

_log: Final = logging.getLogger("tallystream")


class Flusher:
    """Sends what a buffer holds.

    The thread starts with the first need for it, so that a fork before the first event is free.

    Args:
        client: A client that never sends anything twice.
        admission: What is stored there.
        buffer: What is to be sent.
        linger: Seconds that events may gather.
        confirmation: What counts as sent.
    """

    def __init__(
        self, client: redis.Redis, admission: Admission, buffer: Buffer, linger: float, confirmation: Confirmation
    ) -> None:
        self._client = client
        self._admission = admission
        self._buffer = buffer
        self._linger = linger
        self._confirmation = confirmation
        self._problem: str | None = None
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self.appender: Appender | None = None

    def start(self) -> None:
        """Wake the thread; start it where there is none."""
        self._buffer.wake.set()
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="tallystream-producer", daemon=True)
                    thread.start()
                    self._thread = thread

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        buffer = self._buffer
        failures = 0
        while not buffer.is_closed:
            self._wait()
            try:
                failures = 0 if self._pass() else failures + 1
            except ConfigurationError as error:
                buffer.fail(error)
                return
            except RedisError as error:
                if is_refusal(error):
                    buffer.fail(ConfigurationError(f"Redis refuses this producer: {error}"))
                    return
                self._lost(error)
                failures += 1
            if failures:
                first, most = _BACKOFF
                # Jitter, so that a fleet of producers does not come back in step.
                pause = min(most, first * 2 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0)  # noqa: S311
                buffer.rest(pause)
                buffer.wake.set()

    def _wait(self) -> None:
        """Wait until there is something to do, and then for more to share its entry."""
        buffer = self._buffer
        due = None if self.appender is None else self.appender.due
        if buffer.wake.wait(due) and not buffer.is_closing and due != 0:
            buffer.hurry.wait(self._linger if due is None else min(self._linger, due))
        buffer.wake.clear()
        buffer.hurry.clear()

    def _pass(self) -> bool:
        """Seal what has gathered, send a burst; tell whether the server took it."""
        meta = self._admission.refresh()
        if self.appender is None:
            self._confirmation.check(self._client)
            self.appender = Appender(self._client, meta.layout, meta.epoch, self._confirmation)
            self._buffer.open(meta.layout.partitions)
        appender = self.appender
        cycle, sealed = self._buffer.seal()
        for partition, pack in sealed:
            appender.push(partition, Entry(cycle, pack.events, pack.size, pack.seal()))
        confirmed, error = appender.send()
        oldest = appender.oldest_cycle
        self._buffer.settle(confirmed, cycle if oldest is None else oldest - 1)
        if error is not None:
            if is_refusal(error):
                raise error
            self._lost(error)
        elif confirmed:
            self._say(None)
        return bool(confirmed) or oldest is None or appender.due != 0

    def _lost(self, error: RedisError) -> None:
        if isinstance(error, ReadOnlyError) or not isinstance(error, ResponseError):
            # Idle connections would keep going to a node that was demoted, or is gone; those in use find out.
            self._client.connection_pool.disconnect(inuse_connections=False)
        self._say(str(error) or type(error).__name__)

    def _say(self, problem: str | None) -> None:
        """One line for each change of state, however often it is met."""
        if problem is None and self._problem is not None:
            _log.info("events are sent again")
        elif problem is not None and self._problem is None:
            _log.warning("events are held, because they cannot be sent: %s", problem)
        self._problem = problem
