"""A question to Redis apart from who asks it, so that threads and asyncio share every read.

A query asks for positions first and values after: the values are complete up to the position, or further.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from redis.exceptions import RedisError

from tallystream.wire.position import CountingPosition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Answer = TypeVar("Answer")
Other = TypeVar("Other")
Command = tuple[Any, ...]


@dataclass(frozen=True)
class Query(Generic[Answer]):
    """Commands for one pipeline, and what their replies (errors among them) mean.

    `parse` returns the answer, or another query where the replies only say what to ask next.
    `atomic` asks for replies that are of one moment (MULTI): all of a partition's, and on a single server all of them.
    """

    commands: Sequence[Command]
    parse: Callable[[list[Any]], Answer | Query[Answer]]
    atomic: bool = False

    def then(self, use: Callable[[Answer], Other]) -> Query[Other]:
        """Return the same query with something made of its answer."""

        def parse(replies: list[Any]) -> Other | Query[Other]:
            answer = self.parse(replies)
            return answer.then(use) if isinstance(answer, Query) else use(answer)

        return Query(self.commands, parse, self.atomic)

    def without_transaction(self) -> Query[Answer]:
        """Return the same query without MULTI, which a server refuses when its memory is full.

        Such a server refuses to append and to count as well, so the moments do not differ in what matters.
        """
        return replace(self, atomic=False)


def raise_on_error(reply: Any) -> Any:
    """Return a reply, or raise the error that it is."""
    if isinstance(reply, RedisError):
        raise reply
    return reply


def lag_of(positions: Sequence[CountingPosition]) -> int | None:
    """Return the entries that are not counted yet in several partitions; `None` where the server cannot tell."""
    lags = [position.lag for position in positions]
    return None if None in lags else sum(lag for lag in lags if lag is not None)


def as_of(positions: Sequence[CountingPosition]) -> str:
    """Return the stream ID up to which several partitions are all complete."""
    return min((position.as_of for position in positions), key=_order, default="0-0")


def combined(positions: Sequence[CountingPosition]) -> CountingPosition:
    """Return how far counting has come in several partitions, as one."""
    if len(positions) == 1:
        return positions[0]
    return CountingPosition(as_of(positions), sum(position.pending for position in positions), lag_of(positions))


def _order(stream_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence)
