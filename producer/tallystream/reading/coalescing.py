"""Reads that come at the same time, asked in one pipeline: as many as there are callers, for the price of one.

What several ask for is asked once. Positions are asked before values here as everywhere, so a value is complete up to
its position, or further: a command stands where it was first asked for, and each query that shares it asks for the
position of a partition before any value of it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from tallystream.reading.query import Answer, Command, Query

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

_AT_ONCE: Final = 2
"""Pipelines on their way: while one is, the callers of the next gather."""

_MOST: Final = 256
"""Queries in one pipeline: it must not hold the server for long."""

Waiting = tuple[Query[Any], "asyncio.Future[Any]"]


class ReadCoalescer:
    """Asks queries for counters together; for one event loop.

    Args:
        ask: Asks one query.
    """

    def __init__(self, ask: Callable[[Query[list[Any]]], Awaitable[list[Any]]]) -> None:
        self._ask = ask
        self._waiting: list[Waiting] = []
        self._working = 0
        self._tasks: set[asyncio.Task[None]] = set()  # the loop alone would let go of them

    async def run(self, query: Query[Answer]) -> Answer:
        """Return the answer to a query for counters, such as `query_counters` makes."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((query, answer))
        if self._working < _AT_ONCE:
            self._working += 1
            task = loop.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await answer

    async def _work(self) -> None:
        try:
            await self._ask_all()
        finally:
            # In the same step in which nothing was waiting: who comes later finds that nobody is at work.
            self._working -= 1

    async def _ask_all(self) -> None:
        while self._waiting:
            some, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            try:
                merged, places = merge([query.commands for query, _ in some])
                replies = await self._ask(Query(merged, list))
            except BaseException as error:
                for _, answer in some:
                    if not answer.done():
                        answer.set_exception(error)
                if not isinstance(error, Exception):
                    raise
            else:
                for (query, answer), place in zip(some, places, strict=True):
                    _settle(answer, query, [_reply(replies, at) for at in place])


CommandPlace = tuple[int, int, int]
"""Where a command's reply is: the number of the merged command, and from which to which of its values; -1 is all."""


def merge(queries: Sequence[Sequence[Command]]) -> tuple[list[Command], list[list[CommandPlace]]]:
    """Return the commands of several queries without repeats, one MGET for each partition, and each query's places."""
    numbers: dict[Any, int] = {}
    merged: list[Command] = []
    keys: dict[int, list[Any]] = {}
    places: list[list[CommandPlace]] = []
    for commands in queries:
        found: list[CommandPlace] = []
        for command in commands:
            many = command[0] == "MGET"
            shared = command[1].partition("}")[0] if many else command
            number = numbers.get(shared)
            if number is None:
                number = numbers[shared] = len(merged)
                merged.append(command)
                if many:
                    keys[number] = []
            if many:
                values = keys[number]
                found.append((number, len(values), len(values) + len(command) - 1))
                values += command[1:]
            else:
                found.append((number, -1, -1))
        places.append(found)
    for number, values in keys.items():
        merged[number] = ("MGET", *values)
    return merged, places


def _reply(replies: list[Any], place: CommandPlace) -> Any:
    number, first, last = place
    reply = replies[number]
    return reply if first < 0 or not isinstance(reply, list) else reply[first:last]


def _settle(answer: asyncio.Future[Answer], query: Query[Answer], replies: list[Any]) -> None:
    if answer.done():  # its caller has gone
        return
    try:
        found = query.parse(replies)
        assert not isinstance(found, Query)  # noqa: S101  # counters are one question
    except Exception as error:  # noqa: BLE001  # it is raised where the caller waits
        answer.set_exception(error)
    else:
        answer.set_result(found)
