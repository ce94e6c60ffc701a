"""Reads counters from asyncio: runs the queries of `tallystream.Totals` in threads."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Literal

from redis.exceptions import RedisError

from tallystream.aio.threads import in_thread
from tallystream.client.connect import DEFAULT_URL
from tallystream.client.replies import is_unreachable
from tallystream.errors import TallyError
from tallystream.reading import questions
from tallystream.reading.coalescing import ReadCoalescer
from tallystream.reading.deployment_cache import DeploymentCache, query_deployment, without_meta
from tallystream.reading.freshness import ReadBarrier
from tallystream.reading.reach import Unreached, partitions_in, within_reach
from tallystream.reading.replaced import REPLACED, checked, unless_lost
from tallystream.reading.replicas import ReplicaBarrier, awaits_replica
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
    from tallystream.reading.query import Answer, Query, Question
    from tallystream.reading.search import FoundSubjects
    from tallystream.reading.series import RollingSum, Series

_READS: Final = 32
"""Most queries under way at once, each in a thread and on a connection; further ones wait for a free thread."""


class Totals:
    """Reads counters from one asyncio event loop. A counter without events is 0, or its metric's `floor` if above 0.

    The methods are coroutines with the arguments, results and errors of those of `tallystream.Totals`; so is
    `deployment`, a property there. After `close`, reads raise `TallyError`. Queries run in threads, at most 32 at once,
    through the synchronous client: it packs commands in C, and no second cluster client is needed. Concurrent calls of
    `get`, `get_many`, `of` and `read` may share a pipeline. If a read is cancelled, a query that it has begun still
    runs to its end in its thread. After a `fork`, create a new object in the child.

    Args:
        url: URL of Redis or Valkey.
        partitions: Expected number of partitions; each read checks it against the stored one until a read has found
            published rules. `None` does not check it.
        namespace: First part of every key.
        durability: With `replica`, a read with `after` also waits until a replica has the counting. The server's user
            needs the right to INFO.

    Raises:
        ConfigurationError: the URL or `durability` is invalid.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        partitions: int | None = None,
        namespace: str = "tally",
        durability: Literal["memory", "replica"] = "memory",
    ) -> None:
        self._on_replica = awaits_replica(durability)
        self._inner = ThreadedTotals(url)
        self._threads = ThreadPoolExecutor(_READS, thread_name_prefix="tallystream-read")
        self._partitions = partitions
        self._namespace = namespace
        self._remembered = DeploymentCache()
        self._together = ReadCoalescer(self.run)
        self._closed = False

    def share(self, other: Totals) -> None:
        """Use the cached deployment of `other` in place of that of this object, from now on for both objects.

        Both must be of one event loop, server and namespace. What this object has read about the deployment before is
        forgotten. Afterwards, both use the description of the deployment that one of them has read. So both can read
        while its node does not answer, if `other` had read it before, or one of them has read it since.
        """
        self._remembered = other._remembered  # of the same class

    async def deployment(self) -> Deployment:
        """Return the deployment of this namespace; read it unless one with rules was read within the last second.

        If none is stored, `is_stored` of the result is false. If nodes of a cluster do not answer, see `reload`.

        Raises:
            ConfigurationError: this release cannot read the stored layout version or rules; the URL is that of a single
                server and the server is a node of a cluster, or the reverse; or, until a deployment with rules has been
                read, `partitions` is not 1 to 1,024 or not the stored number. Later, a repartition may change it.
            DeploymentChanged: the stored deployment was deleted, or a restore has not finished.
            KeyLost: the hash of the live topic is lost, or a field without which the deployment cannot be read.
            DamagedValue: a field, or the live generation of a partition, has a value that tallystream never writes.
            TallyError: this object is closed, and the deployment must be read.
            redis.RedisError: the server cannot be read.
        """
        return self._remembered.get() or await self.reload()

    async def reload(self) -> Deployment:
        """Return the deployment of this namespace, read now; see `deployment`, also for the errors.

        In a cluster, its `unreachable` names the partitions whose nodes do not answer. If the node of the description
        is among these nodes, the description is the one that was read last.

        Raises:
            NodeUnreachable: the node of the description does not answer, and no deployment with rules was read before.
        """
        remembered, inner = self._remembered, self._inner
        try:
            found = await self.run(query_deployment(remembered.expected(self._partitions), self._namespace))
        except RedisError as error:
            if not inner.is_cluster or not is_unreachable(error):
                raise
            found = await self.run(without_meta(remembered.latest, self._namespace, error, inner.locate))
        return remembered.put(found)

    async def get(self, subject: str, metric: str, *, after: str | None = None, timeout: float = 5.0) -> CounterTotal:
        """Return the total of a subject's metric, in `value`; if it is below the declared floor, `value` is the floor.

        A metric that the published rules do not declare is an `EventError`. See `tallystream.Totals.get`.
        """
        return await self.ask(questions.get(subject, metric), after, timeout, together=True)

    async def get_many(
        self, counters: Iterable[Counter], *, after: str | None = None, timeout: float = 5.0
    ) -> CounterTotals:
        """Return the totals of many counters, pairs of a subject and a metric, each once, in the given order.

        A metric that the published rules do not declare is an `EventError`. See `tallystream.Totals.get_many`.
        """
        return await self.ask(questions.get_many(counters), after, timeout, together=True)

    async def of(
        self, subject: str, metrics: Iterable[str] | None = None, *, after: str | None = None, timeout: float = 5.0
    ) -> SubjectTotals:
        """Return a subject's totals by metric, and their declared ratios.

        With `metrics` `None`, those of all declared metrics; an undeclared one is an `EventError`. A ratio needs all
        its metrics among those that are read. See `tallystream.Totals.of`.
        """
        return await self.ask(questions.of(subject, metrics), after, timeout, together=True)

    async def series(
        self, subject: str, metric: str, window: str, last: int = 24, *, after: str | None = None, timeout: float = 5.0
    ) -> Series:
        """Return the `last` (1 to 1,000) latest buckets of a counter, oldest first, up to the current one.

        A bucket has the value `None` if it has expired, or a change of the rules may have left events out of it. A
        metric without this `window` is an `EventError`. See `tallystream.Totals.series`.
        """
        return await self.ask(questions.series(subject, metric, window, last), after, timeout)

    async def sum(
        self, subject: str, metric: str, over: str, *, after: str | None = None, timeout: float = 5.0
    ) -> RollingSum:
        """Return the sum of a counter in the whole buckets that cover a duration that ends now, such as `8h`.

        `start` and `end` of the answer state what is summed, in seconds since 1970. If buckets at the begin have
        expired, or may lack events, and no coarser ones replace them, `complete` is false. A metric without windows is
        an `EventError`. See `tallystream.Totals.sum`.
        """
        return await self.ask(questions.rolling_sum(subject, metric, over), after, timeout)

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
        """Return the subjects with the largest totals of a metric, or sums of a `window`, largest first.

        With `window` `None`, the totals of all time; with a name such as `day`, the sums of its current bucket; with a
        duration such as `7d`, those of the range that ends now. At most `n` subjects (1 to the metric's `top`), after
        the first `offset` (0 to `top` - 1); with `n` `None`, at most 10. A number out of range, or a metric without a
        leaderboard or without this window, is an `EventError`. See `tallystream.Totals.top`.
        """
        return await self.ask(questions.top(metric, window, n, offset), after, timeout)

    async def limit(self, subject: str, metric: str, *, after: str | None = None, timeout: float = 5.0) -> Limit:
        """Return how much of a subject's limit is used and remains in the current bucket, and when the bucket ends.

        With `per = "total"`, the bucket never ends, and `reset_at` is `None`. A metric without a limit is an
        `EventError`. See `tallystream.Totals.limit`.
        """
        return await self.ask(questions.limit(subject, metric), after, timeout)

    async def votes(self, subject: str, metric: str, *, after: str | None = None, timeout: float = 5.0) -> Votes:
        """Return a subject's score, and the numbers of votes for and against it.

        A metric without `once` is an `EventError`. See `tallystream.Totals.votes`.
        """
        return await self.ask(questions.votes(subject, metric), after, timeout)

    async def uniques(
        self, subject: str, metric: str, over: str | None = None, *, after: str | None = None, timeout: float = 5.0
    ) -> Uniques:
        """Return an estimate of the number of a subject's different actors, over a duration such as `7d`.

        With `over` `None`, it is that of the current bucket of the metric's `unique` window. A metric without `unique`
        is an `EventError`. See `tallystream.Totals.uniques`.
        """
        return await self.ask(questions.uniques(subject, metric, over), after, timeout)

    async def ledger(self) -> LedgerSummary:
        """Return the numbers of events by outcome, in sum, and the lag of each partition in entries.

        The sums do not include partitions whose nodes of a cluster do not answer: `unreachable` names them. The `lag`
        and `unaccounted` of the whole are then `None`. See `tallystream.Totals.ledger`.
        """
        return await self.ask(questions.ledger())

    async def alerts(self, n: int = 100, offset: int = 0) -> Alerts:
        """Return the declared alerts, and one page of the pairs of alert and subject that fire, the latest first.

        The page has at most `n` (0 to 1,000) pairs, after the first `offset`, of all alerts together; a number out of
        range is an `EventError`. See `tallystream.Totals.alerts`.
        """
        return await self.ask(questions.alerts(n, offset))

    async def search(self, prefix: str, n: int = 10) -> FoundSubjects:
        """Return at most `n` (1 to 50) subjects of all-time leaderboards whose names begin with `prefix`.

        In each partition, the first 1,000 places of each leaderboard are searched. Each subject comes once, with the
        largest of its totals that were found, and the metric of this total; largest first. An empty or invalid
        `prefix`, or an `n` out of range, is an `EventError`. See `tallystream.Totals.search`.
        """
        return await self.ask(questions.search(prefix, n))

    async def read(self, counters: Iterable[Counter], *, after: str | None = None, timeout: float = 5.0) -> Reading:
        """Return many totals, each with its error, and the position of each partition that was read.

        Metrics need not be declared, but must be valid names. See `tallystream.Totals.read`.
        """
        return await self.ask(questions.read(counters), after, timeout, together=True)

    async def run(self, query: Query[Answer]) -> Answer:
        """Run a query in a thread, and then each further query that its `parse` returns; return the answer.

        Unlike the other methods, this does not check that the generation that the query reads is still live; see
        `tallystream.reading.replaced`.

        Raises:
            TallyError: this object is closed.
            redis.RedisError: the server cannot be read.
            ConfigurationError: the URL is that of a single server and the server is a node of a cluster, or the
                reverse.

        Any error of the query's `parse` is raised too.
        """
        if self._closed:
            raise TallyError("these totals are closed")
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._inner.run, query)

    async def close(self) -> None:
        """Wait for the queries under way, then close the connections; later queries raise `TallyError`.

        Raises:
            RuntimeError: the system refuses the thread that waits; the connections stay open. Call this again.
        """
        self._closed = True

        def close() -> None:
            self._threads.shutdown()
            self._inner.close()

        await in_thread(close)

    async def ask(
        self,
        question: Question[Answer],
        after: str | None = None,
        timeout: float = 0.0,
        *,
        together: bool = False,
    ) -> Answer:
        """Run a query, again and again until its answer includes all entries up to `after`, and return that answer.

        It is read in part if nodes of a cluster do not answer: then the answer names the partitions that it lacks. The
        wait also ends when no entry of the partitions that are read is uncounted. With `after` and the durability
        `replica`, wait further until a replica has the counting. If another generation or topic has become live, read
        the deployment again, and run the query for the new one. If a partition is closed and no other topic is live
        yet, the answer is that of the closed partition.

        Args:
            question: Takes the present deployment, and returns the query; called at least once for each attempt.
            after: Stream ID to wait for, in the partitions whose `position_commands` the query has (see
                `ReadBarrier.guard`): a query without any, such as a search, does not wait. `None` does not wait.
            timeout: Most seconds to wait for `after`.
            together: Whether the query shares a pipeline with concurrent reads. Then its `parse` must not return
                another query, and its `atomic` has no effect.

        Raises:
            EventError: `after` is not a stream ID, or an argument of the query is invalid.
            ConfigurationError: the question needs published rules, and there are none.
            FlushTimeout: the entries up to `after` were not counted within `timeout`, or with the durability `replica`
                no replica had the counting within it.
            KeyLost: a partition that is read has lost a key.
            NodeUnreachable: every partition that the question needs is on a node that does not answer.

        Any error of `deployment` and `run` is raised too.
        """
        barrier = ReadBarrier(after, timeout)
        replicas = ReplicaBarrier(barrier.is_counted) if after is not None and self._on_replica else None
        lost: dict[int, str] = {}
        while True:
            deployment = (await self.deployment()).lacking(lost)
            query = barrier.guard(within_reach(question, deployment, self._inner.locate))
            run = self._together.run if together else self.run
            answer = await run(checked(query, deployment))
            if answer is REPLACED:
                if (await self.reload()).layout != deployment.layout:
                    lost.clear()
                    continue
                # A partition is closed, and no other topic is live yet; or it has lost a key.
                answer = await self.run(unless_lost(query, deployment))
                if (await self.reload()).layout != deployment.layout:
                    lost.clear()
                    continue
            if isinstance(answer, Unreached):
                lost |= answer.beyond(deployment)
                self._remembered.lose(deployment.lacking(lost))
            elif answer is not None:
                if replicas is None or await self.run(replicas.query(deployment.layout, partitions_in(query))):
                    return answer
                await asyncio.sleep(barrier.await_replica())
            else:
                await asyncio.sleep(barrier.pause())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
