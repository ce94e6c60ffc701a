"""Logs one line when a thing stops working and one line when it works again, and none for the attempts between."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tallystream.client.error_text import named_text, text_of
from tallystream.errors import TallyError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_EXPECTED: Final = (RedisError, TallyError)
"""Errors that are logged with their text only. Any other error is a bug, and its traceback is logged too."""


class StateLog:
    """Logs one line for each change of the state of one thing: call `failed`, `failed_with` or `works` each time.

    Two problems are the same if their texts differ only in numbers, such as an address or a count; see `kind_of`.

    Args:
        log: Logger for the lines, bound to the fields that name the thing.
        failed: The event to log when a problem begins, or becomes a different problem.
        works: The event to log when a problem ends.
        problem: The problem at the beginning; `None` if the thing works.
        started: The event to log instead of `works` when the problem of the beginning ends before any other was logged.
    """

    def __init__(
        self, log: FilteringBoundLogger, failed: str, works: str, *, problem: str | None = None, started: str = ""
    ) -> None:
        self._log = log
        self._failed = failed
        self._works = works
        self._next = started or works
        self.problem = problem
        """The present problem; `None` while the thing works."""

    def failed(self, problem: str, **fields: object) -> None:
        """Record a problem; log it as an error with `fields`, unless the present one is the same (see `kind_of`)."""
        if self.problem is None or kind_of(problem) != kind_of(self.problem):
            self._log.error(self._failed, problem=problem, **fields)
            self._next = self._works
        self.problem = problem

    def failed_with(self, error: Exception) -> None:
        """Record an exception as the problem; log it as an error, unless the present one is the same (see `kind_of`).

        A `RedisError` or `TallyError` is logged with its text only, any other exception also with its traceback.
        """
        if isinstance(error, _EXPECTED):
            self.failed(text_of(error))
        else:
            self.failed(named_text(error), exc_info=error)

    def works(self) -> None:
        """Record that the thing works; log this if there was a problem."""
        if self.problem is not None:
            self._log.info(self._next)
        self._next = self._works
        self.problem = None


class StreamStates:
    """The state logs of one condition, one for each stream: `states[stream]` returns that of a stream.

    Args:
        log: Logger for the lines; each line gets a field `stream`.
        begins: The event to log when the condition begins.
        ends: The event to log when the condition ends.
    """

    def __init__(self, log: FilteringBoundLogger, begins: str, ends: str) -> None:
        self._log = log
        self._begins = begins
        self._ends = ends
        self._states: dict[str, StateLog] = {}

    def __getitem__(self, stream: str) -> StateLog:
        """Return the state log of one stream; create it if it does not exist."""
        if stream not in self._states:
            self._states[stream] = StateLog(self._log.bind(stream=stream), self._begins, self._ends)
        return self._states[stream]


def kind_of(problem: str) -> str:
    """Return a problem with `#` in place of each number, which includes the letters a to f next to its digits."""
    return re.sub(r"[0-9a-f]*\d[0-9a-f]*", "#", problem)
