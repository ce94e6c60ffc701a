"""Follows the log: where the events were moved to another number of partitions, a worker goes on there by itself."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tallystream.client.connect import connect
from tallystream.deployment import load
from tallystream.errors import TallyError
from tallystream_worker.repartition.stragglers import StragglerCopier

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import Layout
    from tallystream_worker.runtime.supervisor import PartitionHealth, WorkerPool
    from tallystream_worker.settings.settings import Settings

_EVERY: Final = 0.5
"""Seconds between looks which log holds: about how long new entries wait after a move,"""
_FETCH_EVERY: Final = 2.0
"""and between looks for what still comes to the log before."""


class PartitionFollower(threading.Thread):
    """A pool on the partitions of the log that holds, and what is done beside it; both are made anew after a move.

    Args:
        settings: What was configured.
        meta: What is stored.
        log: Where a move is said.
        pool: Makes a pool that has not started.
        beside: Does what is done beside the counting for as long as its context lasts.
    """

    def __init__(
        self,
        settings: Settings,
        meta: Deployment,
        log: FilteringBoundLogger,
        pool: Callable[[Deployment], WorkerPool],
        beside: Callable[[Deployment], AbstractContextManager[None]],
    ) -> None:
        super().__init__(name="tallystream-follow", daemon=True)
        self._timeout = settings.worker.stop_timeout
        self._namespace = settings.redis.namespace
        self._meta = meta
        self._log = log
        self._make, self._do = pool, beside
        self._client = connect(settings.redis.url)
        self._stragglers = StragglerCopier(self._client)
        self._stopping = threading.Event()
        self._pool = pool(meta)
        self._beside = ExitStack()
        self._is_begun = False  # what is done beside the counting
        self._fetch_at = 0.0
        self._problem: str | None = None

    @property
    def health(self) -> list[PartitionHealth]:
        """How each partition's thread is."""
        return self._pool.health

    @property
    def layout(self) -> Layout:
        """Where it counts."""
        return self._meta.layout

    def begin(self) -> None:
        """Begin to count, and to follow."""
        self._pool.start()
        self._begin_beside()
        self.start()

    def quiet(self) -> None:
        """Read nothing more, and follow no further; the batches in hand are finished, and `stop` waits for them."""
        self._stopping.set()
        self._pool.quiet()

    def stop(self) -> None:
        """Finish what is in hand, as far as it may take."""
        self.quiet()
        if self.is_alive():
            self.join(self._timeout)
        self._beside.close()
        self._end(self._pool)
        self._client.close()

    def run(self) -> None:
        """Look again and again, until told to stop."""
        while not self._stopping.wait(_EVERY):
            try:
                self.look()
            except RedisError as error:
                self._log.debug("cannot look which log holds", error=str(error))  # the workers say what is wrong
            except TallyError as error:
                self._say(str(error))
            except Exception as error:  # noqa: BLE001  # a thread that dies in silence is worse than any bug
                self._say(f"{type(error).__name__}: {error}", exc_info=True)
            else:
                self._problem = None

    def look(self) -> None:
        """Go on where the log that holds is; fetch what still comes to the one before."""
        found = load(self._client, self._namespace)
        if found is None or found.epoch != self._meta.epoch:
            return  # not our data: the workers sound the alarm
        if found.layout.log != self._meta.layout.log:
            self._go_on(found)
        if not self._is_begun and not self._stopping.is_set():
            self._begin_beside()
        if time.monotonic() >= self._fetch_at:
            self._fetch_at = time.monotonic() + _FETCH_EVERY
            if fetched := self._stragglers(found):
                self._log.info("entries fetched from the log before", entries=fetched)

    def _go_on(self, found: Deployment) -> None:
        before, self._meta = self._pool, found
        self._pool = self._make(found)  # first: what has come since the move waits for it
        self._pool.start()
        if self._stopping.is_set():
            self._pool.quiet()
        self._log.info("counting goes on in another log", log=found.layout.log, partitions=found.layout.partitions)
        self._is_begun = False
        self._beside.close()
        self._end(before)

    def _begin_beside(self) -> None:
        self._beside = ExitStack()
        self._beside.enter_context(self._do(self._meta))
        self._is_begun = True

    def _say(self, problem: str, **details: object) -> None:
        """One line for each problem, however often it is met."""
        if problem != self._problem:
            self._log.error("does not follow the log", problem=problem, **details)
        self._problem = problem

    def _end(self, pool: WorkerPool) -> None:
        if not pool.stop(self._timeout):
            self._log.warning("stopped in mid-batch", after_seconds=self._timeout, left="pending, counted later")
