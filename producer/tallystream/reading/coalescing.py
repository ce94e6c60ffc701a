"""Merges the queries of concurrent callers into one pipeline, so that many reads need few commands.

A command that several queries contain is sent once, at its first place; only the checks of `replaced` come last. Each
query has the position of a partition before any value of that partition, and so has the merged pipeline: a value is
complete up to its position, or further.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from tallystream.reading.query import Answer, Command, Query
from tallystream.reading.replaced import CHECKS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

_AT_ONCE: Final = 2
"""The most pipelines in flight; meanwhile, the queries of the next pipeline gather."""

_MOST: Final = 256
"""The most queries in one pipeline: a longer one would block the server for too long."""

Waiting = tuple[Query[Any], "asyncio.Future[Any]"]
"""A query that waits to be sent, and the future of its answer."""


class ReadCoalescer:
    """Merges the queries of concurrent callers, and sends them in one pipeline; for one event loop.

    Each caller awaits `run` with its own query, and gets its own answer. At most 2 pipelines are under way, each with
    the commands of at most 256 queries; meanwhile, further queries wait for the next one.

    Args:
        ask: Coroutine function that sends one query, which has the commands of all merged queries, and returns its
            replies as a list. An error reply to a command is in the list, and not raised.
    """

    def __init__(self, ask: Callable[[Query[list[Any]]], Awaitable[list[Any]]]) -> None:
        self._ask = ask
        self._waiting: list[Waiting] = []
        self._working = 0
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop has only weak references to tasks

    async def run(self, query: Query[Answer]) -> Answer:
        """Send a query in one pipeline with those of concurrent callers, and return its answer.

        If the caller is cancelled, the query may still be sent, and its answer is dropped.

        Args:
            query: A query for counters, such as `query_counters` returns; its `parse` must not return another query.
                Its `atomic` is ignored.

        Raises:
            redis.RedisError: the server cannot be read.

        Any error of `ask` is raised in every caller of the pipeline, and an error of the query's own `parse` in its
        caller.
        """
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
            # No other task runs between the last check for waiting queries and this line, so no query is forgotten.
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
"""The place of a reply among the merged replies: the index of the merged command, then the index of the first value and
that after the last value in the reply to it. Both are -1 for the whole reply."""


def merge(queries: Sequence[Sequence[Command]]) -> tuple[list[Command], list[list[CommandPlace]]]:
    """Merge the commands of several queries: equal commands once, and one MGET for all the MGETs of a partition.

    A key that several MGETs read is in the merged one as often. The commands GET and EXISTS, which check that the
    partitions are live (see `tallystream.reading.replaced`), come after all others.

    Returns:
        The merged commands, and for each query the `CommandPlace` of the reply to each of its commands.
    """
    numbers: dict[Any, int] = {}
    merged: list[Command] = []
    keys: dict[int, list[Any]] = {}
    checks: dict[Command, int] = {}
    places: list[list[CommandPlace]] = []
    for commands in queries:
        found: list[CommandPlace] = []
        for command in commands:
            if command[0] in CHECKS:
                found.append((~checks.setdefault(command, len(checks)), -1, -1))
                continue
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
    end = len(merged)
    merged += checks
    return merged, [
        [(end + ~number if number < 0 else number, first, last) for number, first, last in found] for found in places
    ]


def _reply(replies: list[Any], place: CommandPlace) -> Any:
    number, first, last = place
    reply = replies[number]
    return reply if first < 0 or not isinstance(reply, list) else reply[first:last]


def _settle(answer: asyncio.Future[Answer], query: Query[Answer], replies: list[Any]) -> None:
    if answer.done():  # its caller was cancelled
        return
    try:
        found = query.parse(replies)
        assert not isinstance(found, Query)  # noqa: S101  # counters need only one query
    except Exception as error:  # noqa: BLE001  # it is raised in the caller that waits
        answer.set_exception(error)
    else:
        answer.set_result(found)
