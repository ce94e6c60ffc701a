"""The library for asyncio: the same verbs, to be awaited.

from tallystream.aio import Producer, Totals

async with Producer("redis://127.0.0.1:6379") as producer:
    await producer.emit("view", "article:1")
    await producer.flush(wait="counted")
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from tallystream.client.connect import DEFAULT_URL
from tallystream.errors import BufferFull, TallyError
from tallystream.producing.producer import Producer as ThreadedProducer
from tallystream.reading.coalescing import ReadCoalescer
from tallystream.reading.totals import DeploymentCache, ReadBarrier, Reading, declared, query_counters, query_deployment
from tallystream.reading.totals import Totals as ThreadedTotals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    from tallystream.deployment import Deployment
    from tallystream.producing.buffer import WhenFull
    from tallystream.producing.decider import Decision
    from tallystream.producing.producer import ProducerStats
    from tallystream.reading.query import Answer, Query
    from tallystream.reading.totals import Counter

_LOOK: Final = 0.005
"""Seconds between looks for room in a full buffer."""

_DECISIONS: Final = 16
"""Decisions at once; more wait for their turn. With fewer, round trips would leave the processor idle; more threads
only get in each other's way."""

_READS: Final = 32
"""Queries at once, each in a thread and on a connection; more wait for their turn."""


class Producer:
    """Counts events from asyncio without making the loop wait.

    Sending stays with the threaded producer and its thread: redis-py packs commands in C for the synchronous client
    only (about twice as fast), and a loop that is busy elsewhere delays no event.

    Args:
        url: Where Redis or Valkey is.
        when_full: What `emit` does when the buffer is full; `block` suspends the caller until there is room.
        block_timeout: Seconds after which `block` gives up, as `raise` does at once.
        settings: Everything else that `tallystream.producing.producer.Producer` takes.

    Raises:
        ConfigurationError: the URL or another setting cannot be used.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        when_full: WhenFull = "block",
        block_timeout: float = 30.0,
        **settings: Any,
    ) -> None:
        # Blocking would stop the whole loop: there the inner one refuses, and we try again.
        inner: WhenFull = "raise" if when_full == "block" else when_full
        self._inner = ThreadedProducer(url, when_full=inner, block_timeout=block_timeout, **settings)
        self._patience = block_timeout if when_full == "block" else 0.0
        self._retries = 0
        # Decisions block, each on a connection, for a round trip. The pool is their own: in the loop's they would
        # stand in line with whatever else the program sends there, and it with them. Their end is waited for, which
        # takes no longer than the client's timeouts.
        self._decisions = ThreadPoolExecutor(_DECISIONS, thread_name_prefix="tallystream-decide")
        self._closed = False

    async def emit(
        self,
        metric: str,
        subject: str,
        amount: int = 1,
        *,
        actor: str | None = None,
        at: float | None = None,
        id: str | None = None,  # noqa: A002  # the event's own word
    ) -> None:
        """Take one event; suspends only while the buffer is full and the policy is to block.

        Raises:
            EventError: the event breaks a rule; it was not taken.
            BufferFull: there is no room, and `when_full` says to raise (or blocking took too long).
            ConfigurationError: this producer cannot work with what is stored in Redis.
            TallyError: the producer is closed.
        """
        began = time.monotonic()
        while True:
            try:
                self._inner.emit(metric, subject, amount, actor=actor, at=at, id=id)
            except BufferFull:
                if time.monotonic() - began >= self._patience:
                    raise
                self._retries += 1  # the inner one took it for a drop
            else:
                return
            if at is None:
                at = time.time()  # it happened now, not when there is room
            await asyncio.sleep(_LOOK)

    async def decide(
        self,
        metric: str,
        subject: str,
        amount: int = 1,
        *,
        actor: str | None = None,
        at: float | None = None,
        id: str | None = None,  # noqa: A002  # the event's own word
    ) -> Decision:
        """Count one event now and return the verdict; see `tallystream.producing.producer.Producer.decide`.

        A call that is cancelled may have counted its event all the same.

        Raises:
            EventError: the event breaks a rule; it was not counted.
            ConfigurationError: no worker has published the rules yet.
            TallyError: the producer is closed.
            redis.RedisError: it is not known whether it was counted; see `tallystream.producing.decider.Decider`.
        """
        if self._closed:
            raise TallyError("this producer is closed")
        call = partial(self._inner.decide, metric, subject, amount, actor=actor, at=at, id=id)
        return await asyncio.get_running_loop().run_in_executor(self._decisions, call)

    async def flush(self, timeout: float | None = None, *, wait: Literal["appended", "counted"] = "appended") -> None:  # noqa: ASYNC109  # the verb's own word
        """Wait until everything emitted before this call is in the stream, or with `wait="counted"` in the totals.

        Raises:
            FlushTimeout: not in time; the events stay buffered and are still sent.
            ConfigurationError: this producer cannot work with what is stored in Redis.
        """
        await _in_thread(lambda: self._inner.flush(timeout, wait=wait))

    async def close(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109
        """End the decisions in hand, deliver what is held, then stop; further calls change nothing.

        Raises:
            FlushTimeout: something could not be delivered within `timeout` seconds, and is lost with this producer.
        """
        self._closed = True

        def close() -> None:
            self._decisions.shutdown()  # before its connections are closed
            self._inner.close(timeout)

        await _in_thread(close)

    @property
    def stats(self) -> ProducerStats:
        """What became of the events so far; an event that waited for room is no dropped one."""
        stats = self._inner.stats
        return replace(stats, dropped=stats.dropped - self._retries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Totals:
    """Reads counters from asyncio; for one event loop. A counter that nothing was counted for is 0.

    Queries run in threads, by the client of `tallystream.reading.totals`: it packs commands in C, and its client of a
    cluster needs no twin. A read that is cancelled leaves its query to end in its thread.

    Args:
        url: Where Redis or Valkey is.
        partitions: The number of partitions, where the caller wants it checked.
        namespace: The first part of every key.
    """

    def __init__(self, url: str = DEFAULT_URL, *, partitions: int | None = None, namespace: str = "tally") -> None:
        self._inner = ThreadedTotals(url, partitions=partitions, namespace=namespace)
        self._threads = ThreadPoolExecutor(_READS, thread_name_prefix="tallystream-read")
        self._partitions = partitions
        self._namespace = namespace
        self._remembered = DeploymentCache()
        self._together = ReadCoalescer(self.run)
        self._closed = False

    async def deployment(self) -> Deployment:
        """Return what is stored here, at most a second old; see `tallystream.reading.totals.query_deployment`."""
        remembered = self._remembered
        return remembered.get() or remembered.put(
            await self.run(query_deployment(remembered.expected(self._partitions), self._namespace))
        )

    async def get(self, subject: str, metric: str) -> int:
        """Return one total."""
        reading = await self.read([(subject, metric)])
        return next(iter(reading.values.values()))

    async def get_many(self, counters: Iterable[Counter]) -> dict[Counter, int]:
        """Return many totals, by subject and metric."""
        return (await self.read(counters)).values

    async def of(self, subject: str) -> dict[str, int]:
        """Return the totals of every declared metric of a subject, by metric."""
        metrics = declared(await self.deployment())
        reading = await self.read((subject, metric) for metric in metrics)
        return {metric: value for (_, metric), value in reading.values.items()}

    async def read(
        self,
        counters: Iterable[Counter],
        *,
        after: str | None = None,
        timeout: float = 5.0,  # noqa: ASYNC109  # says how long the counting may take, and how that failed
    ) -> Reading:
        """Return totals and how good they are; see `tallystream.reading.totals.Totals.read`.

        Raises:
            EventError: a subject, a metric or a stream ID that cannot exist.
            FlushTimeout: not counted in time.
        """
        patience = ReadBarrier(after, timeout)
        wanted = list(counters)
        while True:
            deployment = await self.deployment()  # anew each time: see tallystream.reading.totals
            reading = await self._together.run(query_counters(deployment.layout, wanted, deployment.declared))
            if patience.ends(reading):
                return reading
            await asyncio.sleep(patience.pause())

    async def run(self, query: Query[Answer]) -> Answer:
        """Send a query and return what its replies mean.

        Raises:
            TallyError: these totals are closed.
        """
        if self._closed:
            raise TallyError("these totals are closed")
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._inner.run, query)

    async def close(self) -> None:
        """Wait for the queries that are under way, then give the connections back."""
        self._closed = True

        def close() -> None:
            self._threads.shutdown()
            self._inner.close()

        await _in_thread(close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _in_thread(call: Callable[[], None]) -> None:
    """Run a call that blocks in a thread of its own.

    Not in the loop's executor: that has few threads, and its end waits for all of them, so a flush that was given
    up while the server is away would keep the program from ending.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        failure: BaseException | None = None
        try:
            call()
        except BaseException as error:  # noqa: BLE001  # it is raised where the caller waits
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, failure)

    threading.Thread(target=run, name="tallystream-wait", daemon=True).start()
    await done
