"""A query to Redis without I/O: commands, and a function that parses their replies. Threads and asyncio share it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tallystream.deployment import Deployment

Answer = TypeVar("Answer")
Other = TypeVar("Other")
Command = tuple[Any, ...]
"""A Redis command: its name, then its arguments."""


class Query(msgspec.Struct, Generic[Answer], frozen=True):
    """Commands for one pipeline, and the function that turns their replies into an answer.

    A caller, such as `Totals.run`, sends the commands and calls `parse`; `then` makes a query with another answer.

    Attributes:
        commands: The commands.
        parse: Takes the replies, one for each command in order, errors among them, and returns the answer, or another
            query to send next. Raises the error if a reply that it needs is one (`redis.RedisError`).
        atomic: Whether the replies must be from one moment (MULTI): those of one partition, and on a single server all.
    """

    commands: Sequence[Command]
    parse: Callable[[list[Any]], Answer | Query[Answer]]
    atomic: bool = False

    def then(self, use: Callable[[Answer], Other | Query[Other]]) -> Query[Other]:
        """Return a query with the same commands and `atomic`, whose answer is what `use` makes of this query's answer.

        Args:
            use: Takes the answer of this query; returns the new answer, or another query to send next.
        """

        def parse(replies: list[Any]) -> Other | Query[Other]:
            answer = self.parse(replies)
            return answer.then(use) if isinstance(answer, Query) else use(answer)

        return Query(self.commands, parse, self.atomic)

    def without_transaction(self) -> Query[Answer]:
        """Return the same query with `atomic` false: a server whose memory is full rejects MULTI.

        As long as its memory is full, it also rejects appends and counting, so the figures do not change between the
        commands. A further query that `parse` returns keeps its `atomic`.
        """
        return Query(self.commands, self.parse)


if TYPE_CHECKING:
    Question = Callable[[Deployment], Query[Answer]]
    """A function that takes the current deployment and returns a query: see `tallystream.reading.questions`."""


def raise_on_error(reply: Any) -> Any:
    """Return a reply; if it is a `RedisError`, raise it."""
    if isinstance(reply, RedisError):
        raise reply
    return reply
