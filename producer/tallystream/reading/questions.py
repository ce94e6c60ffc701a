"""What each read asks: one function a verb, shared by `Totals` in threads and in asyncio.

A question makes its query from the deployment of the moment. It is asked again with the deployment of a later moment
while a reader waits for a position: another generation may count the entry by then.
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
    """Ask for one total."""
    return lambda deployment: query_total(deployment.layout, deployment.declared, subject, metric)


def get_many(counters: Iterable[Counter]) -> Question[CounterTotals]:
    """Ask for many totals."""
    wanted = list(counters)
    return lambda deployment: query_totals(deployment.layout, deployment.declared, wanted)


def read(counters: Iterable[Counter]) -> Question[Reading]:
    """Ask for many totals, each with its error."""
    wanted = list(counters)
    return lambda deployment: query_counters(deployment.layout, wanted, deployment.declared)


def of(subject: str, metrics: Iterable[str] | None) -> Question[SubjectTotals]:
    """Ask for the totals of a subject."""
    wanted = None if metrics is None else list(metrics)
    return lambda deployment: query_subject(deployment.layout, deployment.rules, subject, wanted)


def series(subject: str, metric: str, window: str, last: int) -> Question[Series]:
    """Ask for the latest buckets of a window."""
    return lambda deployment: query_series(
        deployment.layout, deployment.rules, subject, metric, window, last, time.time()
    )


def rolling_sum(subject: str, metric: str, over: str) -> Question[RollingSum]:
    """Ask for the sum over a range that ends now."""
    return lambda deployment: query_rolling(deployment.layout, deployment.rules, subject, metric, over, time.time())


def top(metric: str, window: str | None, n: int | None, offset: int) -> Question[Leaderboard]:
    """Ask for the subjects with the most."""
    return lambda deployment: query_top(
        deployment.layout, deployment.rules, metric, n, window, offset=offset, now=time.time()
    )


def limit(subject: str, metric: str) -> Question[Limit]:
    """Ask how much of a limit is used."""
    return lambda deployment: query_limit(deployment.layout, deployment.rules, subject, metric, time.time())


def votes(subject: str, metric: str) -> Question[Votes]:
    """Ask for the standing votes."""
    return lambda deployment: query_votes(deployment.layout, deployment.rules, subject, metric)


def uniques(subject: str, metric: str, over: str | None) -> Question[Uniques]:
    """Ask for the different actors."""
    return lambda deployment: query_uniques(deployment.layout, deployment.rules, subject, metric, over, time.time())


def ledger() -> Question[LedgerSummary]:
    """Ask what became of every event."""
    return lambda deployment: query_ledger(deployment.layout).then(Ledger.summary)


def alerts(n: int, offset: int) -> Question[Alerts]:
    """Ask which alerts are firing."""
    return lambda deployment: query_alert_page(deployment.layout, deployment.rules, time.time(), n, offset)


def search(prefix: str, n: int) -> Question[FoundSubjects]:
    """Ask for subjects by the beginning of their name."""
    return lambda deployment: query_subjects(deployment.layout, deployment.rules, prefix, n)
