"""Logs one line when something stops working and one when it works again, however often it is tried."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tallystream.errors import TallyError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_EXPECTED: Final = (RedisError, TallyError)
"""Errors whose text says everything. Any other is a bug, and its traceback is logged as well."""


class StateLog:
    """Logs one line for each change of the state of one thing.

    Two problems are the same if their texts differ only in numbers, such as an address or a count.

    Args:
        log: Where the lines go; what names the thing is bound to it.
        failed: The event of a problem that begins, or turns into another one.
        works: The event of the end of a problem.
        problem: What is the matter at first; `None` if it works at first.
    """

    def __init__(self, log: FilteringBoundLogger, failed: str, works: str, *, problem: str | None = None) -> None:
        self._log = log
        self._failed = failed
        self._works = works
        self.problem = problem
        """What is the matter; `None` while it works."""

    def failed(self, problem: str, **fields: object) -> None:
        """Take note of a problem; log it as an error unless it is the same as before."""
        if self.problem is None or kind_of(problem) != kind_of(self.problem):
            self._log.error(self._failed, problem=problem, **fields)
        self.problem = problem

    def failed_with(self, error: Exception) -> None:
        """Take note of an error, with its traceback if it is a bug."""
        if isinstance(error, _EXPECTED):
            self.failed(str(error) or type(error).__name__)
        else:
            self.failed(f"{type(error).__name__}: {error}", exc_info=error)

    def works(self) -> None:
        """Take note that it works; log it if it did not before."""
        if self.problem is not None:
            self._log.info(self._works)
        self.problem = None


class StreamStates:
    """Logs one line for each change of a condition that a stream is in or not.

    Args:
        log: Where the lines go, each with its `stream`.
        begins: The event of the condition's beginning.
        ends: The event of its end.
    """

    def __init__(self, log: FilteringBoundLogger, begins: str, ends: str) -> None:
        self._log = log
        self._begins = begins
        self._ends = ends
        self._states: dict[str, StateLog] = {}

    def __getitem__(self, stream: str) -> StateLog:
        """Return the state of one stream."""
        if stream not in self._states:
            self._states[stream] = StateLog(self._log.bind(stream=stream), self._begins, self._ends)
        return self._states[stream]


def kind_of(problem: str) -> str:
    """Return the text of a problem without its numbers."""
    return re.sub(r"[0-9a-f]*\d[0-9a-f]*", "#", problem)
