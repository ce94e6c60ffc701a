"""Reads counters from threads; `tallystream.aio.Totals` has the same verbs, to be awaited.

Queries ask for positions first and values after: the values are complete up to the position, or further. Nothing here
writes: a reader needs no right to.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from redis.exceptions import OutOfMemoryError

from tallystream.client.connect import DEFAULT_URL, connect
from tallystream.reading import questions
from tallystream.reading.deployment_cache import DeploymentCache, query_deployment
from tallystream.reading.freshness import ReadBarrier
from tallystream.reading.query import Answer, Query

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
    from tallystream.reading.questions import Question
    from tallystream.reading.search import FoundSubjects
    from tallystream.reading.series import RollingSum, Series


class Totals:
    """Reads counters; safe across threads. A counter that nothing was counted for is 0.

    Every answer is a frozen struct that says how good it is: complete up to the stream ID `as_of`, but for `lag`
    entries that are not counted yet (`None`: not known), and off by at most `error`. HTTP and the command line encode
    the same structs. Every read but the ledger's, the alerts' and the search takes two settings:

        after: A stream ID, such as `Decision.id`. The answer waits until everything up to it is counted in the
            partitions that are read, so it has the caller's own writes.
        timeout: Seconds to wait for that.

    Every read can raise these:

        EventError: a subject, a metric, a range or a stream ID that cannot be; `field` names which.
        ConfigurationError: no worker has published its metrics yet, or what is stored here disagrees with `partitions`
            or with this release's layout.
        FlushTimeout: `after` was not counted within `timeout`.
        redis.RedisError: the server cannot be read.

    Args:
        url: Where Redis or Valkey is.
        partitions: The number of partitions, if the caller wants it checked.
        namespace: The first part of every key.
    """

    def __init__(self, url: str = DEFAULT_URL, *, partitions: int | None = None, namespace: str = "tally") -> None:
        self._client = connect(url)
        self._partitions = partitions
        self._namespace = namespace
        self._remembered = DeploymentCache()

    @property
    def deployment(self) -> Deployment:
        """What is stored here, at most a second old; see `query_deployment`."""
        remembered = self._remembered
        return remembered.get() or remembered.put(
            self.run(query_deployment(remembered.expected(self._partitions), self._namespace))
        )

    def get(self, subject: str, metric: str, *, after: str | None = None, timeout: float = 5.0) -> CounterTotal:
        """Return one total, in `value`.

        What a floor is declared for is shown no lower, and what has no counter of its own is estimated: too high by at
        most `error`, never too low. Before a worker has published its metrics, every counter is 0.
        """
        return self._ask(questions.get(subject, metric), after, timeout)

    def get_many(self, counters: Iterable[Counter], *, after: str | None = None, timeout: float = 5.0) -> CounterTotals:
        """Return many totals, each once, in the order asked; `values` has them by subject and metric.

        Args:
            counters: Pairs of a subject and a metric.
            after: See the class.
            timeout: See the class.
        """
        return self._ask(questions.get_many(counters), after, timeout)

    def of(
        self,
        subject: str,
        metrics: Iterable[str] | None = None,
        *,
        after: str | None = None,
        timeout: float = 5.0,
    ) -> SubjectTotals:
        """Return a subject's totals by metric, and the declared ratios of them.

        Args:
            subject: Whose.
            metrics: Which; `None` for every declared one. A ratio needs all its metrics among them.
            after: See the class.
            timeout: See the class.
        """
        return self._ask(questions.of(subject, metrics), after, timeout)

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
        """Return a counter's latest buckets, oldest first, up to the one that lies around now.

        Args:
            subject: Whose.
            metric: One with this window declared.
            window: `minute`, `hour`, `day` or `month`, in the time zone that the rules declare.
            last: How many buckets, 1 to 1,000.
            after: See the class.
            timeout: See the class.
        """
        return self._ask(questions.series(subject, metric, window, last), after, timeout)

    def sum(
        self, subject: str, metric: str, over: str, *, after: str | None = None, timeout: float = 5.0
    ) -> RollingSum:
        """Return a counter's sum over a range that ends now, from the fewest whole buckets that cover it.

        Args:
            subject: Whose.
            metric: One with windows declared.
            over: A duration, such as `90s`, `15m`, `8h` or `7d`; at most `4000d`, and at most 1,000 buckets.
            after: See the class.
            timeout: See the class.
        """
        return self._ask(questions.rolling_sum(subject, metric, over), after, timeout)

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
        """Return the subjects with the most, largest first.

        Args:
            metric: One with `top` declared.
            window: `None` for all time; a window such as `day` for its bucket now; or a duration such as `7d`.
            n: How many, at most the metric's `top`; `None` for 10, or for all if fewer are kept.
            offset: How many places to leave out; `next` of the answer is the next page's. Between two pages counting
                goes on, and subjects change places.
            after: See the class.
            timeout: See the class.
        """
        return self._ask(questions.top(metric, window, n, offset), after, timeout)

    def limit(self, subject: str, metric: str, *, after: str | None = None, timeout: float = 5.0) -> Limit:
        """Return how much of a subject's limit is used now, what remains, and at which second it begins again."""
        return self._ask(questions.limit(subject, metric), after, timeout)

    def votes(self, subject: str, metric: str, *, after: str | None = None, timeout: float = 5.0) -> Votes:
        """Return a subject's score, and the votes for and against it; the metric must count once per actor."""
        return self._ask(questions.votes(subject, metric), after, timeout)

    def uniques(
        self,
        subject: str,
        metric: str,
        over: str | None = None,
        *,
        after: str | None = None,
        timeout: float = 5.0,
    ) -> Uniques:
        """Return an estimate of a subject's different actors; `error` is its standard error, as a share.

        Args:
            subject: Whose.
            metric: One with `unique` declared.
            over: A duration such as `7d`, rounded up to whole buckets; `None` for the metric's own window as it is now.
            after: See the class.
            timeout: See the class.
        """
        return self._ask(questions.uniques(subject, metric, over), after, timeout)

    def ledger(self) -> LedgerSummary:
        """Return what became of every event, by partition and in all: each partition's figures are of one moment."""
        return self._ask(questions.ledger())

    def alerts(self, n: int = 100, offset: int = 0) -> Alerts:
        """Return the declared alerts, and `n` firing ones (0 to 1,000), the latest first, after the first `offset`."""
        return self._ask(questions.alerts(n, offset))

    def search(self, prefix: str, n: int = 10) -> FoundSubjects:
        """Return at most `n` (1 to 50) subjects of the all-time leaderboards that begin so, largest first."""
        return self._ask(questions.search(prefix, n))

    def read(self, counters: Iterable[Counter], *, after: str | None = None, timeout: float = 5.0) -> Reading:
        """Return many totals, each with its error, and the position of each partition; any metric may be asked for."""
        return self._ask(questions.read(counters), after, timeout)

    def run(self, query: Query[Answer]) -> Answer:
        """Send a query, and those that its replies lead to; return what the replies mean."""
        while True:
            with self._client.pipeline(transaction=query.atomic) as pipeline:
                for command in query.commands:
                    pipeline.execute_command(*command)
                try:
                    replies = pipeline.execute(raise_on_error=False)
                except OutOfMemoryError:
                    if not query.atomic:
                        raise
                    query = query.without_transaction()
                    continue
            answer = query.parse(replies)
            if not isinstance(answer, Query):
                return answer
            query = answer

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def _ask(self, question: Question[Answer], after: str | None = None, timeout: float = 0.0) -> Answer:
        barrier = ReadBarrier(after, timeout)
        while (answer := self.run(barrier.guard(question(self.deployment)))) is None:
            time.sleep(barrier.pause())
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
