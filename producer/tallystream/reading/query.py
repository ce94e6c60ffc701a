"""A query to Redis without I/O, so that threads and asyncio share every read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Answer = TypeVar("Answer")
Other = TypeVar("Other")
Command = tuple[Any, ...]


class Query(msgspec.Struct, Generic[Answer], frozen=True):
    """Commands for one pipeline, and what their replies (errors among them) mean.

    `parse` returns the answer, or another query where the replies only say what to ask next.
    `atomic` asks for replies that are of one moment (MULTI): all of a partition's, and on a single server all of them.
    """

    commands: Sequence[Command]
    parse: Callable[[list[Any]], Answer | Query[Answer]]
    atomic: bool = False

    def then(self, use: Callable[[Answer], Other | Query[Other]]) -> Query[Other]:
        """Return the same query with something made of its answer; `use` may return another query to go on with."""

        def parse(replies: list[Any]) -> Other | Query[Other]:
            answer = self.parse(replies)
            return answer.then(use) if isinstance(answer, Query) else use(answer)

        return Query(self.commands, parse, self.atomic)

    def without_transaction(self) -> Query[Answer]:
        """Return the same query without MULTI, which a server refuses when its memory is full.

        Such a server refuses to append and to count as well, so the moments do not differ in what matters.
        """
        return Query(self.commands, self.parse)


def raise_on_error(reply: Any) -> Any:
    """Return a reply, or raise the error that it is."""
    if isinstance(reply, RedisError):
        raise reply
    return reply
