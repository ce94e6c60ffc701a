"""The flusher: the thread behind a producer that seals, sends, and tries again for as long as it takes."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tallystream.append import Appender, Entry
from tallystream.connection import is_refusal
from tallystream.errors import ConfigurationError

if TYPE_CHECKING:
    import redis

    from tallystream.admission import Admission
    from tallystream.buffer import Buffer

_BACKOFF: Final = (0.05, 2.0)
"""Seconds to wait after the first failure, and at the most."""


class Flusher:
    """Sends what a buffer holds.

    The thread starts with the first need for it, so that a fork before the first event is free.

    Args:
        client: A client that never sends anything twice.
        admission: What is stored there.
        buffer: What is to be sent.
        linger: Seconds that events may gather.
    """

    def __init__(self, client: redis.Redis, admission: Admission, buffer: Buffer, linger: float) -> None:
        self._client = client
        self._admission = admission
        self._buffer = buffer
        self._linger = linger
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
            buffer.wake.wait()
            if not buffer.is_closing:
                buffer.hurry.wait(self._linger)
            buffer.wake.clear()
            buffer.hurry.clear()
            try:
                failures = 0 if self._pass() else failures + 1
            except ConfigurationError as error:
                buffer.fail(error)
                return
            except RedisError as error:
                if is_refusal(error):
                    buffer.fail(ConfigurationError(f"Redis refuses this producer: {error}"))
                    return
                failures += 1
            if failures:
                first, most = _BACKOFF
                # Jitter, so that a fleet of producers does not come back in step.
                pause = min(most, first * 2 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0)  # noqa: S311
                buffer.rest(pause)
                buffer.wake.set()

    def _pass(self) -> bool:
        """Seal what has gathered, send a burst; tell whether the server took it."""
        meta = self._admission.refresh()
        if self.appender is None:
            self.appender = Appender(self._client, meta.layout)
            self._buffer.open(meta.layout.partitions)
        appender = self.appender
        cycle, sealed = self._buffer.seal()
        for partition, pack in sealed:
            appender.push(partition, Entry(cycle, pack.events, pack.size, pack.seal()))
        confirmed, error = appender.send()
        oldest = appender.oldest_cycle
        self._buffer.settle(confirmed, cycle if oldest is None else oldest - 1)
        if oldest is not None:
            self._buffer.wake.set()
            self._buffer.hurry.set()
        if error is not None and is_refusal(error):
            raise error
        return bool(confirmed) or oldest is None
