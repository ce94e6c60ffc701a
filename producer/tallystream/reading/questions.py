"""Questions: one function for each read, shared by `Totals` for threads and `Totals` for asyncio.

A question takes the current deployment and returns a query. While a reader waits for a position, it asks the question
again with the deployment of that moment, because another generation may have become live.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tallystream.reading.actor_rules import Limit, Uniques, Votes, query_limit, query_uniques, query_votes
from tallystream.reading.alerts import Alerts, query_alert_page
from tallystream.reading.counters import (
    Counter,
    CounterTotal,
    CounterTotals,
    Reading,
    SubjectTotals,
    query_counters,
    query_subject,
    query_total,
    query_totals,
)
from tallystream.reading.leaderboards import Leaderboard, query_top
from tallystream.reading.ledger import Ledger, LedgerSummary, query_ledger
from tallystream.reading.search import FoundSubjects, query_subjects
from tallystream.reading.series import RollingSum, Series, query_rolling, query_series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tallystream.deployment import Deployment
    from tallystream.reading.query import Answer, Query

    Question = Callable[[Deployment], Query[Answer]]


def get(subject: str, metric: str) -> Question[CounterTotal]:
    """Return the question for one total."""
    return lambda deployment: query_total(deployment.layout, deployment.declared, subject, metric)


def get_many(counters: Iterable[Counter]) -> Question[CounterTotals]:
    """Return the question for many totals as one answer, with the largest of their errors."""
    wanted = list(counters)
    return lambda deployment: query_totals(deployment.layout, deployment.declared, wanted)


def read(counters: Iterable[Counter]) -> Question[Reading]:
    """Return the question for many totals, each with its error; metrics need not be declared."""
    wanted = list(counters)
    return lambda deployment: query_counters(deployment.layout, wanted, deployment.declared)


def of(subject: str, metrics: Iterable[str] | None) -> Question[SubjectTotals]:
    """Return the question for the totals and ratios of a subject; `metrics` is `None` for every declared one."""
    wanted = None if metrics is None else list(metrics)
    return lambda deployment: query_subject(deployment.layout, deployment.rules, subject, wanted)


def series(subject: str, metric: str, window: str, last: int) -> Question[Series]:
    """Return the question for a counter's last `last` buckets of a window."""
    return lambda deployment: query_series(
        deployment.layout, deployment.rules, subject, metric, window, last, time.time()
    )


def rolling_sum(subject: str, metric: str, over: str) -> Question[RollingSum]:
    """Return the question for a counter's sum over a duration `over` that ends now."""
    return lambda deployment: query_rolling(deployment.layout, deployment.rules, subject, metric, over, time.time())


def top(metric: str, window: str | None, n: int | None, offset: int) -> Question[Leaderboard]:
    """Return the question for `n` places of a leaderboard, after the first `offset` of them."""
    return lambda deployment: query_top(
        deployment.layout, deployment.rules, metric, n, window, offset=offset, now=time.time()
    )


def limit(subject: str, metric: str) -> Question[Limit]:
    """Return the question for how much of a subject's limit is used in the current bucket."""
    return lambda deployment: query_limit(deployment.layout, deployment.rules, subject, metric, time.time())


def votes(subject: str, metric: str) -> Question[Votes]:
    """Return the question for the votes for a subject."""
    return lambda deployment: query_votes(deployment.layout, deployment.rules, subject, metric)


def uniques(subject: str, metric: str, over: str | None) -> Question[Uniques]:
    """Return the question for the number of a subject's different actors in a bucket or a duration `over`."""
    return lambda deployment: query_uniques(deployment.layout, deployment.rules, subject, metric, over, time.time())


def ledger() -> Question[LedgerSummary]:
    """Return the question for the outcomes of all events."""
    return lambda deployment: query_ledger(deployment.layout).then(Ledger.summary)


def alerts(n: int, offset: int) -> Question[Alerts]:
    """Return the question for the declared alerts, and `n` firing ones after the first `offset`."""
    return lambda deployment: query_alert_page(deployment.layout, deployment.rules, time.time(), n, offset)


def search(prefix: str, n: int) -> Question[FoundSubjects]:
    """Return the question for at most `n` subjects on leaderboards whose name begins with `prefix`."""
    return lambda deployment: query_subjects(deployment.layout, deployment.rules, prefix, n)
