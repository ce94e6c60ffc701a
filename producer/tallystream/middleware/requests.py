"""Counts finished requests, for the middleware of every framework."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from tallystream.errors import TallyError
from tallystream.producing.producer import Producer

if TYPE_CHECKING:
    from typing import Self

UNMATCHED: Final = "unmatched"
"""Route in the subject of every request that no route matched: one subject for each method, so that a scan of the
site does not create a subject for each path."""

_FAILED: Final = 500

_log: Final = logging.getLogger("tallystream.middleware")


class RequestCounter:
    """Counts finished requests by subject; the subject is method and route, such as `GET /articles/{id}`.

    Call the object once for each finished request. An error of the producer (`TallyError`), such as an undeclared
    metric, is logged and not raised. A failed request that cannot be counted in one of its two metrics is still counted
    in the other. The error is not logged again until another error comes for the same metric.

    With a producer as `connect` makes it, counting does not delay a request: if the buffer is full, the event is
    dropped and counted in `producer.stats.dropped`, and nothing is logged.

    Args:
        producer: Producer with `when_full="drop"`, as `connect` makes it, and without `spool_sync="disk"`: any other
            may delay requests.
        metric: Metric of every request.
        failed: Metric in which a request is also counted if its status is 500 or more.

    Attributes:
        producer: The producer that the events go to.
    """

    def __init__(self, producer: Producer, metric: str = "request", failed: str = "request-failed") -> None:
        self.producer = producer
        self._metric = metric
        self._failed = failed
        self._problems: dict[str, str] = {}  # by metric, the last one that was logged

    @classmethod
    def connect(cls, url: str, metric: str = "request", failed: str = "request-failed") -> Self:
        """Return a request counter with a new producer for `url`, which drops events when its buffer is full.

        This does not wait for the server. At interpreter exit, the producer tries for five seconds to deliver the
        buffered events; see `Producer`. To deliver them earlier, call `producer.close()`.

        Raises:
            ConfigurationError: the URL is invalid.
        """
        return cls(Producer(url, when_full="drop"), metric, failed)

    def __call__(self, method: str, route: str | None, status: int) -> None:
        """Count one request in `metric`, and from status 500 on also in `failed`; log a `TallyError` of the producer.

        It calls `Producer.emit`, which adds to the buffer. An error is not logged again until another one comes for
        the same metric. If the producer has `when_full="drop"`, a full buffer is no error, and is not logged.

        Args:
            method: The HTTP method.
            route: The pattern of the route, such as `/articles/{id}`. If no route matched, `None` or empty: the subject
                then has the route `unmatched`.
            status: The status of the response; 500 if there was no response.
        """
        subject = f"{method} {route or UNMATCHED}"
        for metric in (self._metric, self._failed) if status >= _FAILED else (self._metric,):
            try:
                self.producer.emit(metric, subject)
            except TallyError as error:
                self._say(metric, str(error))

    def _say(self, metric: str, problem: str) -> None:
        if problem != self._problems.get(metric):
            self._problems[metric] = problem
            _log.error("requests.not_counted problem=%r", problem)
