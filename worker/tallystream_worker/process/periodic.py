"""A duty: something that is done again and again in a thread of its own until it is told to stop."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tallystream.errors import TallyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

_BACKOFF: Final = (0.5, 30.0)


class PeriodicTask(threading.Thread):
    """Calls `work` every so often; what goes wrong is said once, and tried again with growing pauses.

    Args:
        name: What the log calls it.
        every: Seconds from one beginning to the next.
        work: One round; returns what is worth a log line, `None` for nothing.
        log: Where changes of state are said.
    """

    def __init__(
        self, name: str, every: float, work: Callable[[], dict[str, object] | None], log: FilteringBoundLogger
    ) -> None:
        super().__init__(name=f"tallystream-{name}", daemon=True)
        self._every = every
        self._work = work
        self._log = log.bind(duty=name)
        self._stopping = threading.Event()
        self.problem: str | None = None
        """Why the last round failed; `None` where it did not."""

    def stop(self, timeout: float) -> bool:
        """Let the round in hand finish; tell whether it did within `timeout` seconds."""
        self._stopping.set()
        self.join(timeout)
        return not self.is_alive()

    def run(self) -> None:
        """Work until stopped."""
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                done = self._work()
            except (RedisError, TallyError) as error:
                failures += 1
                self._say(str(error) or type(error).__name__)
            except Exception as error:  # noqa: BLE001  # a thread that dies in silence is worse than any bug
                failures += 1
                self._say(f"{type(error).__name__}: {error}", exc_info=True)
            else:
                failures = 0
                self._say(None)
                if done:
                    self._log.info("done", **done)
            pause = self._every - (time.monotonic() - began)
            if failures:
                first, most = _BACKOFF
                # Jitter, so that a fleet does not come back in step.
                pause = min(most, first * 2 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0)  # noqa: S311
            self._stopping.wait(max(0.0, pause))

    def _say(self, problem: str | None, **details: object) -> None:
        if problem != self.problem:
            if problem is None:
                self._log.info("works again")
            else:
                self._log.error("does not work", problem=problem, **details)
        self.problem = problem
