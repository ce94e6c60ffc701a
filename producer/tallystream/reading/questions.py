"""One function for each read, shared by `Totals` for threads and `Totals` for asyncio; each returns a `Question`.

A `Question` is a function that takes the current deployment and returns a query. While a reader waits for a stream ID,
it calls the function again with the deployment of that moment, because another generation may have become live.
If an argument is not valid, the call of the `Question` raises `EventError`. If no rules are published, `get`,
`get_many` and `read` accept any metric, `ledger` needs none, and the others raise `ConfigurationError`.
"""

from __future__ import annotations

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
    from collections.abc import Iterable

    from tallystream.reading.query import Question


def get(subject: str, metric: str) -> Question[CounterTotal]:
    """Return the `Question` (deployment -> query) for one total.

    The call of the `Question` raises `EventError` if the subject is not valid, or the metric is not valid or, once
    rules are published, not declared.
    """
    return lambda deployment: query_total(deployment.layout, deployment.declared, subject, metric, deployment.removed)


def get_many(counters: Iterable[Counter]) -> Question[CounterTotals]:
    """Return the `Question` (deployment -> query) for many totals as one answer, with the largest of their errors.

    The call of the `Question` raises `EventError` if a subject is not valid, or a metric is not valid or, once rules
    are published, not declared.
    """
    wanted = list(counters)
    return lambda deployment: query_totals(deployment.layout, deployment.declared, wanted, deployment.removed)


def read(counters: Iterable[Counter]) -> Question[Reading]:
    """Return the `Question` (deployment -> query) for many totals, each with its error; metrics may be undeclared.

    The call of the `Question` raises `EventError` if a subject or the name of a metric is not valid.
    """
    wanted = list(counters)
    return lambda deployment: query_counters(deployment.layout, wanted, deployment.declared, deployment.removed)


def of(subject: str, metrics: Iterable[str] | None) -> Question[SubjectTotals]:
    """Return the `Question` (deployment -> query) for the totals of a subject, and for their declared ratios.

    The call of the `Question` raises `EventError` if the subject is not valid or a metric is not declared, and
    `ConfigurationError` if no rules are published.

    Args:
        subject: The subject.
        metrics: The metrics to read; `None` for all declared metrics. A ratio needs all its metrics among them.
    """
    wanted = None if metrics is None else list(metrics)
    return lambda deployment: query_subject(deployment.layout, deployment.rules, subject, wanted, deployment.removed)


def series(subject: str, metric: str, window: str, last: int) -> Question[Series]:
    """Return the `Question` (deployment -> query) for a counter's latest buckets of a window, `last` of them.

    The call of the `Question` raises `EventError` if the subject is not valid, the metric is not declared or lacks the
    window, or `last` is not 1 to 1,000; and `ConfigurationError` if no rules are published.
    """
    return lambda deployment: query_series(
        deployment.layout, deployment.rules, subject, metric, window, last, deployment.now, deployment.removed
    )


def rolling_sum(subject: str, metric: str, over: str) -> Question[RollingSum]:
    """Return the `Question` (deployment -> query) for a counter's sum over a duration `over`, such as `8h`, up to now.

    The sum is that of the whole buckets that cover the duration. So it may begin earlier and end later, or begin later
    if buckets are not kept: `start`, `end` and `complete` of the answer state this.

    The call of the `Question` raises `EventError` if the subject is not valid, the metric is not declared or has no
    windows, or `over` is not valid or too long; and `ConfigurationError` if no rules are published.
    """
    return lambda deployment: query_rolling(
        deployment.layout, deployment.rules, subject, metric, over, deployment.now, deployment.removed
    )


def top(metric: str, window: str | None, n: int | None, offset: int) -> Question[Leaderboard]:
    """Return the `Question` (deployment -> query) for `n` places of a leaderboard, after its first `offset` places.

    The call of the `Question` raises `EventError` if an argument does not fit the declared metric, or the metric is not
    declared; and `ConfigurationError` if no rules are published.

    Args:
        metric: A metric with `top` declared.
        window: `None` for all time; a window such as `day` for its current bucket; or a duration such as `7d` that ends
            now.
        n: The most places, 1 to the metric's `top`; `None` for 10, or for the rest of a shorter leaderboard.
        offset: How many places to skip, 0 to the metric's `top` - 1.
    """
    return lambda deployment: query_top(
        deployment.layout,
        deployment.rules,
        metric,
        n,
        window,
        offset=offset,
        now=deployment.now,
        removed=deployment.removed,
    )


def limit(subject: str, metric: str) -> Question[Limit]:
    """Return the `Question` (deployment -> query) for how much of a subject's limit is used in the current bucket.

    The call of the `Question` raises `EventError` if the subject is not valid, or the metric is not declared or has no
    limit; and `ConfigurationError` if no rules are published.
    """
    return lambda deployment: query_limit(
        deployment.layout, deployment.rules, subject, metric, deployment.now, deployment.removed
    )


def votes(subject: str, metric: str) -> Question[Votes]:
    """Return the `Question` (deployment -> query) for a subject's score, and its votes for and against.

    The call of the `Question` raises `EventError` if the subject is not valid, or the metric is not declared or has no
    `once`; and `ConfigurationError` if no rules are published.
    """
    return lambda deployment: query_votes(deployment.layout, deployment.rules, subject, metric, deployment.removed)


def uniques(subject: str, metric: str, over: str | None) -> Question[Uniques]:
    """Return the `Question` (deployment -> query) for an estimate of the number of a subject's different actors.

    They are those in the whole buckets that cover a duration `over` that ends now, such as `7d`. If `over` is `None`,
    `""` or the metric's `unique` window, they are those in the current bucket of that window.

    The call of the `Question` raises `EventError` if the subject or `over` is not valid, or the metric is not declared
    or has no `unique`; and `ConfigurationError` if no rules are published.
    """
    return lambda deployment: query_uniques(
        deployment.layout, deployment.rules, subject, metric, over, deployment.now, deployment.removed
    )


def ledger() -> Question[LedgerSummary]:
    """Return the `Question` (deployment -> query) for the outcomes of all events, and the lag of each partition.

    It needs no published rules.
    """
    return lambda deployment: query_ledger(deployment.layout).then(Ledger.summary)


def alerts(n: int, offset: int) -> Question[Alerts]:
    """Return the `Question` (deployment -> query) for the declared alerts, and a page of those that fire.

    The call of the `Question` raises `EventError` if `n` or `offset` is out of range, and `ConfigurationError` if no
    rules are published.

    Args:
        n: The most firing alerts, 0 to 1,000.
        offset: How many firing alerts to skip, at least 0; the latest come first.
    """
    return lambda deployment: query_alert_page(
        deployment.layout, deployment.rules, deployment.now, n, offset, deployment.removed
    )


def search(prefix: str, n: int) -> Question[FoundSubjects]:
    """Return the `Question` (deployment -> query) for at most `n` subjects of all-time leaderboards, by prefix.

    Their names begin with `prefix`. Each subject comes once, with the largest of its totals that were found, and the
    metric of this total; largest first.

    The call of the `Question` raises `EventError` if `prefix` is empty or no subject can begin with it, or `n` is not 1
    to 50; and `ConfigurationError` if no rules are published.
    """
    return lambda deployment: query_subjects(deployment.layout, deployment.rules, prefix, n, deployment.removed)
