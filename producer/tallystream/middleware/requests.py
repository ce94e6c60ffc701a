"""What every framework's middleware does with a finished request."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from tallystream.errors import TallyError
from tallystream.producing.producer import Producer

if TYPE_CHECKING:
    from typing import Self

UNMATCHED: Final = "unmatched"
"""The route of requests that no route took: one subject for all, or whoever scans a site would make a million."""

_FAILED: Final = 500

_log: Final = logging.getLogger("tallystream.middleware")


class RequestCounter:
    """Counts finished requests; the subject is method and route, such as `GET /articles/{id}`.

    A request is never delayed and never fails for the sake of a count: where the buffer is full the event is
    dropped, and `producer.stats` says how many were. What is wrong with the declaration is logged once.

    Args:
        producer: One made with `when_full="drop"`, as `connect` makes it.
        metric: What a request counts as.
        failed: What a request counts as besides, where it was answered with a status of 500 or more, or not at all.
    """

    def __init__(self, producer: Producer, metric: str = "request", failed: str = "request-failed") -> None:
        self.producer = producer
        self._metric = metric
        self._failed = failed
        self._problem = ""

    @classmethod
    def connect(cls, url: str, metric: str = "request", failed: str = "request-failed") -> Self:
        """Return a counter with a producer of its own."""
        return cls(Producer(url, when_full="drop"), metric, failed)

    def __call__(self, method: str, route: str | None, status: int) -> None:
        """Count one request; `route` is the pattern that took it, `None` where there was none."""
        subject = f"{method} {route or UNMATCHED}"
        try:
            self.producer.emit(self._metric, subject)
            if status >= _FAILED:
                self.producer.emit(self._failed, subject)
        except TallyError as error:
            self._say(str(error))

    def _say(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            _log.error("requests.not_counted problem=%r", problem)
