"""Reads counters from threads; `tallystream.aio.Totals` has the same methods for asyncio.

Queries for figures read positions first and values after them: so the values are complete up to the position, or
further. Nothing here writes, so a reader needs no right to write.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

from redis.exceptions import OutOfMemoryError, RedisError

from tallystream.client.cluster.client import ClusterClient
from tallystream.client.connect import DEFAULT_URL, connect_reader
from tallystream.client.replies import is_unreachable
from tallystream.reading import questions
from tallystream.reading.deployment_cache import DeploymentCache, query_deployment, without_meta
from tallystream.reading.freshness import ReadBarrier
from tallystream.reading.query import Answer, Query
from tallystream.reading.reach import Unreached, partitions_in, within_reach
from tallystream.reading.replaced import REPLACED, checked, unless_lost
from tallystream.reading.replicas import ReplicaBarrier, awaits_replica

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import Self

    from tallystream.deployment import Deployment
    from tallystream.reading.actor_rules import Limit, Uniques, Votes
    from tallystream.reading.alerts import Alerts
    from tallystream.reading.counters import Counter, CounterTotal, CounterTotals, Reading, SubjectTotals
    from tallystream.reading.leaderboards import Leaderboard
    from tallystream.reading.ledger import LedgerSummary
    from tallystream.reading.query import Command, Question
    from tallystream.reading.search import FoundSubjects
    from tallystream.reading.series import RollingSum, Series


class Totals:
    """Reads counters; safe across threads. A counter without events is 0, or its metric's `floor` if that is above 0.

    `get`, `get_many`, `of` and `read` return totals; `series` and `sum` those of buckets and ranges; `top` and `search`
    read leaderboards; `limit`, `votes` and `uniques` read the state of a subject; `ledger` reads the outcomes of all
    events, and `alerts` the alerts that fire. Each of them waits for the server. Call `close` at the end, or use the
    object in a `with` statement.

    Every answer is a frozen struct. Except those of `ledger`, `alerts` and `search`, it states its quality: it is
    complete up to the stream ID `as_of`, `lag` entries are not counted yet (`None`: not known), and a value is wrong by
    at most `error` (`None`: not known; see `Figure` for estimates). HTTP and the command line encode the same structs.

    Every read except `ledger`, `alerts` and `search` takes two settings. With `after`, a stream ID such as
    `Decision.id`, the read waits until everything up to it is counted in the partitions that are read, or no entry is
    left to count in them; so the answer contains the entry with this ID, if it is in one of these partitions. `timeout`
    is the most seconds to wait for that.

    If nodes of a cluster do not answer, an answer lacks their partitions, and names them in `unreachable`; `after` then
    waits for the others only.

    Every read can raise these errors:

    - `EventError`: a subject, a metric, a range or a stream ID is not valid. `field` names the argument.
    - `ConfigurationError`: no worker has published the rules yet (not in `get`, `get_many`, `read` and `ledger`);
      `partitions` is not 1 to 1,024, or not the number of the stored deployment; the deployment has another layout
      version than this release, or rules that it cannot read; or the URL is that of a single server and the server is
      a node of a cluster, or the reverse.
    - `DeploymentChanged`: the data was deleted, or a restore has not finished.
    - `KeyLost`: a partition that is read has lost a key, so that figures may be too small; or the hash of the live
      topic is lost, or a field without which the deployment cannot be read.
    - `DamagedValue`: a value that describes the deployment has a form that tallystream never writes.
    - `FlushTimeout`: `after` was not counted within `timeout`, or with the durability `replica` no replica had the
      counting within it.
    - `redis.RedisError`: the server cannot be read. It is a `NodeUnreachable` if a cluster does not answer for any
      partition that is needed.

    Args:
        url: The URL of Redis or Valkey; see `connect`.
        partitions: The number of partitions that the caller expects; `None` for no expectation. Reads check it until
            one of them has found published rules. Later it is not checked: a repartition may change the number.
        namespace: The first part of every key.
        durability: With `replica`, a read with `after` also waits until a replica has the counting. The server's user
            needs the right to INFO.

    Raises:
        ConfigurationError: `url` or `durability` is invalid.
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
        self._client = connect_reader(url)
        self._partitions = partitions
        self._namespace = namespace
        self._remembered = DeploymentCache()

    @property
    def deployment(self) -> Deployment:
        """The deployment; it is read from the server unless one with rules was read within the last second.

        If none is stored, `is_stored` of the result is false. If the node of a cluster that stores its description does
        not answer, it is the one that was read last, with what the partitions on other nodes store now.

        Raises:
            ConfigurationError: this release cannot read the stored layout version or rules; the URL is that of a single
                server and the server is a node of a cluster, or the reverse; or, until a deployment with rules has been
                read, `partitions` is not 1 to 1,024 or not the stored number.
            DeploymentChanged: the stored deployment was deleted, or a restore has not finished.
            KeyLost: the hash of the live topic is lost, or a field without which the deployment cannot be read.
            DamagedValue: a field, or the live generation of a partition, has a value that tallystream never writes.
            redis.RedisError: the server cannot be read.
        """
        return self._remembered.get() or self._reload()

    def _reload(self) -> Deployment:
        remembered = self._remembered
        try:
            found = self.run(query_deployment(remembered.expected(self._partitions), self._namespace))
        except RedisError as error:
            if not self.is_cluster or not is_unreachable(error):
                raise
            found = self.run(without_meta(remembered.latest, self._namespace, error, self.locate))
        return remembered.put(found)

    def get(self, subject: str, metric: str, *, after: str | None = None, timeout: float = 5.0) -> CounterTotal:
        """Return the total of one subject and metric, in `value`; a metric that is not declared is an `EventError`.

        A total below the declared floor of its metric is shown as the floor. A counter in a sketch is estimated: in at
        least 98 % of cases it is too high by at most `error`, and it is never too low unless the metric has negative
        amounts. Before a worker has published the rules, every metric with a valid name is accepted, and its counters
        are 0. See `Totals` for `after`, `timeout` and the errors of every read.
        """
        return self.ask(questions.get(subject, metric), after, timeout)

    def get_many(self, counters: Iterable[Counter], *, after: str | None = None, timeout: float = 5.0) -> CounterTotals:
        """Return many totals, each once, in the given order; `values` has them by subject and metric.

        Args:
            counters: Pairs of a subject and a metric.
            after: A stream ID; wait until everything up to it is counted in the partitions of the counters. `None` does
                not wait.
            timeout: The most seconds to wait for `after`.

        Raises:
            EventError: a subject, a metric or `after` is not valid, or the published rules do not declare a metric.
            FlushTimeout: `after` was not counted within `timeout`, or with the durability `replica` no replica had the
                counting within it.

        The docstring of the class states the other errors.
        """
        return self.ask(questions.get_many(counters), after, timeout)

    def of(
        self,
        subject: str,
        metrics: Iterable[str] | None = None,
        *,
        after: str | None = None,
        timeout: float = 5.0,
    ) -> SubjectTotals:
        """Return a subject's totals by metric, and their declared ratios.

        Args:
            subject: The subject.
            metrics: The metrics to read; `None` for every declared one. A ratio needs all its metrics among them. A
                metric that is not declared is an `EventError`.
            after: A stream ID; wait until everything up to it is counted. `None` does not wait.
            timeout: The most seconds to wait for `after`; then `FlushTimeout` is raised.

        See `Totals` for the errors of every read.
        """
        return self.ask(questions.of(subject, metrics), after, timeout)

    def series(
        self,
        subject: str,
        metric: str,
        window: str,
        last: int = 24,
        *,
        after: str | None = None,
        timeout: float = 5.0,
    ) -> Series:
        """Return a counter's latest buckets, oldest first, up to the current bucket.

        A bucket has the value `None` if it has expired, or a change of the rules may have left events out of it.

        Args:
            subject: The subject.
            metric: A metric with this window declared; else an `EventError` is raised.
            window: `minute`, `hour`, `day` or `month`. Days and months begin at midnight in the time zone that the
                rules declare; minutes and hours are UTC.
            last: How many buckets, 1 to 1,000.
            after: A stream ID; wait until everything up to it is counted. `None` does not wait.
            timeout: The most seconds to wait for `after`; then `FlushTimeout` is raised.

        See `Totals` for the errors of every read.
        """
        return self.ask(questions.series(subject, metric, window, last), after, timeout)

    def sum(
        self, subject: str, metric: str, over: str, *, after: str | None = None, timeout: float = 5.0
    ) -> RollingSum:
        """Return a counter's sum over a range that ends now, from few whole buckets that cover it.

        The sum is exact, or within `error`, from `start` to `end` of the answer. If buckets at the beginning of the
        range have expired, or may lack events, and no coarser ones replace them, `complete` is false, and `missing` has
        the part that is not in the sum.

        Args:
            subject: The subject.
            metric: A metric with windows declared; else an `EventError` is raised.
            over: A duration, such as `90s`, `15m`, `8h` or `7d`; at most `4000d`, and at most 1,000 buckets.
            after: A stream ID; wait until everything up to it is counted. `None` does not wait.
            timeout: The most seconds to wait for `after`; then `FlushTimeout` is raised.

        See `Totals` for the errors of every read.
        """
        return self.ask(questions.rolling_sum(subject, metric, over), after, timeout)

    def top(
        self,
        metric: str,
        window: str | None = None,
        *,
        n: int | None = None,
        offset: int = 0,
        after: str | None = None,
        timeout: float = 5.0,
    ) -> Leaderboard:
        """Return the subjects with the largest values of a metric, largest first.

        Args:
            metric: A metric with `top` declared; else an `EventError` is raised.
            window: `None` for all time; a declared window such as `day` for its current bucket; or a duration such as
                `7d` that ends now.
            n: The most subjects, 1 to the metric's `top`; `None` for 10, or for the rest of a leaderboard that has
                fewer.
            offset: How many places to skip, 0 to the metric's `top` - 1; for the next page, use `next` of the answer.
                Counting continues between two pages, so subjects may change places.
            after: A stream ID; wait until everything up to it is counted. `None` does not wait.
            timeout: The most seconds to wait for `after`; then `FlushTimeout` is raised.

        See `Totals` for the errors of every read.
        """
        return self.ask(questions.top(metric, window, n, offset), after, timeout)

    def limit(self, subject: str, metric: str, *, after: str | None = None, timeout: float = 5.0) -> Limit:
        """Return how much of a subject's limit is used and remains in the current bucket, and when the bucket ends.

        Rejected events are part of `used`, so it can be larger than the limit. A bucket of a limit with `per = "total"`
        never ends: then `reset_at` is `None`.

        Args:
            subject: The subject.
            metric: A metric with a limit declared.
            after: A stream ID; wait until everything up to it is counted. `None` does not wait.
            timeout: The most seconds to wait for `after`.

        Raises:
            EventError: the metric is not declared or has no limit, or `subject` or `after` is not valid.
            FlushTimeout: `after` was not counted within `timeout`, or with the durability `replica` no replica had the
                counting within it.

        See `Totals` for the errors of every read.
        """
        return self.ask(questions.limit(subject, metric), after, timeout)

    def votes(self, subject: str, metric: str, *, after: str | None = None, timeout: float = 5.0) -> Votes:
        """Return a subject's score, and the numbers of votes for and against it.

        A metric that is not declared, or has no `once`, is an `EventError`. See `Totals` for `after`, `timeout` and the
        errors of every read.
        """
        return self.ask(questions.votes(subject, metric), after, timeout)

    def uniques(
        self,
        subject: str,
        metric: str,
        over: str | None = None,
        *,
        after: str | None = None,
        timeout: float = 5.0,
    ) -> Uniques:
        """Return an estimate of the number of a subject's different actors; `error` is its standard error, as a share.

        The actors of subjects beyond the metric's `max_subjects` are not recorded.

        Args:
            subject: The subject.
            metric: A metric with `unique` declared; else an `EventError` is raised.
            over: A duration such as `7d`, at most `4000d`, rounded up to whole buckets, at most 1,000; `None` or the
                metric's `unique` window for the current bucket of that window.
            after: A stream ID; wait until everything up to it is counted. `None` does not wait.
            timeout: The most seconds to wait for `after`; then `FlushTimeout` is raised.

        See `Totals` for the errors of every read.
        """
        return self.ask(questions.uniques(subject, metric, over), after, timeout)

    def ledger(self) -> LedgerSummary:
        """Return the numbers of events by outcome, and the lag of each partition, in entries.

        The figures of each partition are from one moment, unless the memory of the server is full. No published rules
        are needed. See `Totals` for the errors of every read.
        """
        return self.ask(questions.ledger())

    def alerts(self, n: int = 100, offset: int = 0) -> Alerts:
        """Return the declared alerts, and at most `n` firing ones (0 to 1,000), latest first, after the first `offset`.

        With `n` 0, the numbers of firing subjects may be too high: see `WatchedAlert.firing`. A number out of range is
        an `EventError`. See `Totals` for the errors of every read.
        """
        return self.ask(questions.alerts(n, offset))

    def search(self, prefix: str, n: int = 10) -> FoundSubjects:
        """Return at most `n` (1 to 50) subjects whose names begin with `prefix`, from all-time leaderboards.

        Each subject comes once, with the largest of its totals that were found, and the metric of this total; largest
        first. In each partition, the first 1,000 places of each leaderboard are searched. Upper and lower case differ.
        A prefix that is empty or with which no subject can begin, or an `n` out of range, is an `EventError`. See
        `Totals` for the errors of every read.
        """
        return self.ask(questions.search(prefix, n))

    def read(self, counters: Iterable[Counter], *, after: str | None = None, timeout: float = 5.0) -> Reading:
        """Return many totals, each with its error, and the position of each partition that was read for them.

        Metrics need not be declared, but must be valid names. See `Totals` for `after`, `timeout` and the errors of
        every read.
        """
        return self.ask(questions.read(counters), after, timeout)

    def run(self, query: Query[Answer]) -> Answer:
        """Send a query, and each further query that its `parse` returns; return the answer.

        If a server has no memory for a transaction, send its commands without one. If a node of a cluster does not
        answer, each of its commands has the error as its reply. Unlike the other reads, this does not check that the
        generation that the query reads is still live; see `tallystream.reading.replaced`.

        Raises:
            redis.RedisError: the server cannot be read.
            ConfigurationError: the URL is that of a single server and the server is a node of a cluster, or the
                reverse.

        Any error of the query's `parse` is raised too.
        """
        while True:
            replies = self._send(query.commands, atomic=query.atomic)
            refused = [n for n, reply in enumerate(replies) if isinstance(reply, OutOfMemoryError)]
            if query.atomic and refused:
                # A server without memory rejects MULTI. It also rejects appends and counting, so the figures do not
                # change between the commands.
                again = self._send([query.commands[n] for n in refused], atomic=False)
                for n, reply in zip(refused, again, strict=True):
                    replies[n] = reply
            answer = query.parse(replies)
            if not isinstance(answer, Query):
                return answer
            query = answer

    def _send(self, commands: Sequence[Command], *, atomic: bool) -> list[Any]:
        """Send commands, in a transaction if `atomic` is true; return their replies, errors among them.

        If the server has no memory for the transaction, or no node of a cluster answers, the error is each reply.

        Raises:
            redis.RedisError: the server cannot be read.
            ConfigurationError: as in `run`.
        """
        with self._client.pipeline(transaction=atomic) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            try:
                replies: list[Any] = pipeline.execute(raise_on_error=False)
            except OutOfMemoryError as error:
                if not atomic:
                    raise
                return [error] * len(commands)
            except RedisError as error:
                if not self.is_cluster or not is_unreachable(error):
                    raise
                return [error] * len(commands)
        return replies

    def close(self) -> None:
        """Close the connections to the server; a later read opens new ones."""
        self._client.close()

    @property
    def is_cluster(self) -> bool:
        """Whether the URL is that of a cluster, so that a part of the partitions may be unreachable."""
        return isinstance(self._client, ClusterClient)

    def locate(self, key: str) -> str | None:
        """Return the address, as `host:port`, of the node of a cluster that serves a key; send nothing.

        Return `None` if it is not known, or if the URL is not that of a cluster.
        """
        return self._client.node_of(key) if isinstance(self._client, ClusterClient) else None

    def ask(self, question: Question[Answer], after: str | None = None, timeout: float = 0.0) -> Answer:
        """Return the answer to a question, read from the live generation, and in part if nodes do not answer.

        If a partition is closed and no other topic is live yet, the answer is that of the closed partition.

        Args:
            question: Takes the deployment, and returns the query; called at least once for each attempt.
            after: A stream ID; wait until everything up to it is counted. `None` does not wait.
            timeout: The most seconds to wait for `after`.

        Raises:
            NodeUnreachable: every partition that the question needs is on a node that does not answer.

        The other errors are those of every read: see the class.
        """
        barrier = ReadBarrier(after, timeout)
        replicas = ReplicaBarrier(barrier.is_counted) if after is not None and self._on_replica else None
        lost: dict[int, str] = {}
        while True:
            deployment = self.deployment.lacking(lost)
            query = barrier.guard(within_reach(question, deployment, self.locate))
            answer = self.run(checked(query, deployment))
            if answer is REPLACED:
                if self._reload().layout != deployment.layout:
                    lost.clear()
                    continue
                # A partition is closed, and no other topic is live yet; or it has lost a key.
                answer = self.run(unless_lost(query, deployment))
                if self._reload().layout != deployment.layout:
                    lost.clear()
                    continue
            if isinstance(answer, Unreached):
                lost |= answer.beyond(deployment)
                self._remembered.lose(deployment.lacking(lost))
            elif answer is not None:
                if replicas is None or self.run(replicas.query(deployment.layout, partitions_in(query))):
                    return answer
                time.sleep(barrier.await_replica())
            else:
                time.sleep(barrier.pause())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
