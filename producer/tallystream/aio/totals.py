"""Reads counters from asyncio: the questions of `tallystream.Totals`, asked in threads."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from tallystream.aio.threads import in_thread
from tallystream.client.connect import DEFAULT_URL
from tallystream.errors import TallyError
from tallystream.reading import questions
from tallystream.reading.coalescing import ReadCoalescer
from tallystream.reading.deployment_cache import DeploymentCache, query_deployment
from tallystream.reading.freshness import ReadBarrier
from tallystream.reading.totals import Totals as ThreadedTotals

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

    from tallystream.deployment import Deployment
    from tallystream.reading.actor_rules import Limit, Uniques, Votes
    from tallystream.reading.alerts import Alerts
    from tallystream.reading.counters import Counter, CounterTotal, CounterTotals, Reading, SubjectTotals
    from tallystream.reading.leaderboards import Leaderboard
    from tallystream.reading.ledger import LedgerSummary
    from tallystream.reading.query import Answer, Query
    from tallystream.reading.questions import Question
    from tallystream.reading.search import FoundSubjects
    from tallystream.reading.series import RollingSum, Series

_READS: Final = 32
"""Queries at once, each in a thread and on a connection; more wait for their turn."""


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

        await in_thread(close)

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
