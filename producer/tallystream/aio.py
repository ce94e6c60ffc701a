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
from tallystream.reading import questions
from tallystream.reading.coalescing import ReadCoalescer
from tallystream.reading.deployment_cache import DeploymentCache, query_deployment
from tallystream.reading.freshness import ReadBarrier
from tallystream.reading.totals import Totals as ThreadedTotals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    from tallystream.deployment import Deployment
    from tallystream.producing.buffer import WhenFull
    from tallystream.producing.decider import Decision
    from tallystream.producing.stats import ProducerStats
    from tallystream.reading.actor_rules import Limit, Uniques, Votes
    from tallystream.reading.alerts import Alerts
    from tallystream.reading.counters import Counter, CounterTotal, CounterTotals, Reading, SubjectTotals
    from tallystream.reading.leaderboards import Leaderboard
    from tallystream.reading.ledger import LedgerSummary
    from tallystream.reading.query import Answer, Query
    from tallystream.reading.questions import Question
    from tallystream.reading.search import FoundSubjects
    from tallystream.reading.series import RollingSum, Series


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

    async def flush(self, timeout: float | None = None, *, wait: Literal["appended", "counted"] = "appended") -> None:
        """Wait until everything emitted before this call is in the stream, or with `wait="counted"` in the totals.

        Raises:
            FlushTimeout: not in time; the events stay buffered and are still sent.
            ConfigurationError: this producer cannot work with what is stored in Redis.
        """
        await _in_thread(lambda: self._inner.flush(timeout, wait=wait))

    async def close(self, timeout: float = 5.0) -> None:
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

    The verbs, their settings, answers and errors are those of `tallystream.Totals`. Queries run in threads, by its
    client: that packs commands in C, and its client of a cluster needs no twin. Reads of counters that come at the same
    time share a pipeline. A read that is cancelled leaves its query to end in its thread.

    Args:
        url: Where Redis or Valkey is.
        partitions: The number of partitions, if the caller wants it checked.
        namespace: The first part of every key.
    """

    def __init__(self, url: str = DEFAULT_URL, *, partitions: int | None = None, namespace: str = "tally") -> None:
        self._inner = ThreadedTotals(url)
        self._threads = ThreadPoolExecutor(_READS, thread_name_prefix="tallystream-read")
        self._partitions = partitions
        self._namespace = namespace
        self._remembered = DeploymentCache()
        self._together = ReadCoalescer(self.run)
        self._closed = False

    async def deployment(self) -> Deployment:
        """Return what is stored here, at most a second old."""
        remembered = self._remembered
        return remembered.get() or remembered.put(
            await self.run(query_deployment(remembered.expected(self._partitions), self._namespace))
        )

    async def get(self, subject: str, metric: str, *, after: str | None = None, timeout: float = 5.0) -> CounterTotal:
        """Return one total, in `value`; see `Totals.get` of `tallystream`."""
        return await self._ask(questions.get(subject, metric), after, timeout, together=True)

    async def get_many(
        self, counters: Iterable[Counter], *, after: str | None = None, timeout: float = 5.0
    ) -> CounterTotals:
        """Return many totals, in the order asked; see `Totals.get_many` of `tallystream`."""
        return await self._ask(questions.get_many(counters), after, timeout, together=True)

    async def of(
        self, subject: str, metrics: Iterable[str] | None = None, *, after: str | None = None, timeout: float = 5.0
    ) -> SubjectTotals:
        """Return a subject's totals by metric, and the declared ratios of them; see `Totals.of` of `tallystream`."""
        return await self._ask(questions.of(subject, metrics), after, timeout, together=True)

    async def series(
        self, subject: str, metric: str, window: str, last: int = 24, *, after: str | None = None, timeout: float = 5.0
    ) -> Series:
        """Return a counter's latest buckets, oldest first; see `Totals.series` of `tallystream`."""
        return await self._ask(questions.series(subject, metric, window, last), after, timeout)

    async def sum(
        self, subject: str, metric: str, over: str, *, after: str | None = None, timeout: float = 5.0
    ) -> RollingSum:
        """Return a counter's sum over a range that ends now; see `Totals.sum` of `tallystream`."""
        return await self._ask(questions.rolling_sum(subject, metric, over), after, timeout)

    async def top(
        self,
        metric: str,
        window: str | None = None,
        *,
        n: int | None = None,
        offset: int = 0,
        after: str | None = None,
        timeout: float = 5.0,
    ) -> Leaderboard:
        """Return the subjects with the most, largest first; see `Totals.top` of `tallystream`."""
        return await self._ask(questions.top(metric, window, n, offset), after, timeout)

    async def limit(self, subject: str, metric: str, *, after: str | None = None, timeout: float = 5.0) -> Limit:
        """Return how much of a subject's limit is used now, and what remains; see `Totals.limit` of `tallystream`."""
        return await self._ask(questions.limit(subject, metric), after, timeout)

    async def votes(self, subject: str, metric: str, *, after: str | None = None, timeout: float = 5.0) -> Votes:
        """Return a subject's score, and the votes for and against it; see `Totals.votes` of `tallystream`."""
        return await self._ask(questions.votes(subject, metric), after, timeout)

    async def uniques(
        self, subject: str, metric: str, over: str | None = None, *, after: str | None = None, timeout: float = 5.0
    ) -> Uniques:
        """Return an estimate of a subject's different actors; see `Totals.uniques` of `tallystream`."""
        return await self._ask(questions.uniques(subject, metric, over), after, timeout)

    async def ledger(self) -> LedgerSummary:
        """Return what became of every event, by partition and in all; see `Totals.ledger` of `tallystream`."""
        return await self._ask(questions.ledger())

    async def alerts(self, n: int = 100, offset: int = 0) -> Alerts:
        """Return the declared alerts, and those that are firing; see `Totals.alerts` of `tallystream`."""
        return await self._ask(questions.alerts(n, offset))

    async def search(self, prefix: str, n: int = 10) -> FoundSubjects:
        """Return subjects by the beginning of their name; see `Totals.search` of `tallystream`."""
        return await self._ask(questions.search(prefix, n))

    async def read(self, counters: Iterable[Counter], *, after: str | None = None, timeout: float = 5.0) -> Reading:
        """Return many totals, each with its error, and the position of each partition; any metric may be asked for."""
        return await self._ask(questions.read(counters), after, timeout, together=True)

    async def run(self, query: Query[Answer]) -> Answer:
        """Send a query, and those that its replies lead to; return what the replies mean.

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

    async def _ask(
        self,
        question: Question[Answer],
        after: str | None = None,
        timeout: float = 0.0,
        *,
        together: bool = False,
    ) -> Answer:
        """Ask until the answer is fresh enough; `together`: in one pipeline with other reads of the same time."""
        barrier = ReadBarrier(after, timeout)
        while True:
            query = barrier.guard(question(await self.deployment()))
            answer = await (self._together.run(query) if together else self.run(query))
            if answer is not None:
                return answer
            await asyncio.sleep(barrier.pause())

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
