"""Metrics for Prometheus: the ledger as they are in Redis, read at each scrape, and what this process measures."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import structlog
from litestar import Response, get
from litestar.di import NamedDependency
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from redis.exceptions import RedisError

from tallystream.aio import Totals
from tallystream.errors import ConfigurationError
from tallystream.reading.alerts import FiringAlerts, query_alerts
from tallystream.reading.ledger import Ledger, query_ledger
from tallystream.rules.metrics import Rules
from tallystream_worker.service.server_stats import ServerStats, query_server_stats

TEXT_FORMAT: Final = "text/plain; version=0.0.4"
"""Prometheus' text format; the charset is added where it is sent."""


@dataclass(frozen=True)
class ExtraMetrics:
    """What else `/metrics` shows: the registry of the workers that run in this process."""

    registry: CollectorRegistry | None


@get("/metrics", tags=["metrics"], summary="Metrics for Prometheus", media_type=TEXT_FORMAT)
async def metrics(totals: NamedDependency[Totals], extra: NamedDependency[ExtraMetrics]) -> Response[bytes]:
    """Return the text format; without Redis, what is left of it and `tallystream_redis_up 0`."""
    collector = LedgerCollector(None, None)
    try:
        deployment = await totals.deployment()
        ledger, vitals = (
            await totals.run(query_ledger(deployment.layout)),
            await totals.run(query_server_stats(deployment.layout)),
        )
        firing = None
        if deployment.declared is not None:
            firing = await totals.run(query_alerts(deployment.layout, deployment.declared, time.time()))
        collector = LedgerCollector(ledger, vitals, deployment.declared, firing)
    except (RedisError, ConfigurationError) as error:
        structlog.get_logger().warning("service.ledger_unavailable", problem=str(error) or type(error).__name__)
    text = generate_latest(collector)
    if extra.registry is not None:
        text += generate_latest(extra.registry)
    return Response(text, media_type=TEXT_FORMAT)


class LedgerCollector:
    """The ledger as metric families. Labels are metrics, rules and partitions, all declared: never subjects.

    The metric `""` stands for entries whose metric is not known: they could not be read, or name an undeclared one.
    """

    def __init__(
        self,
        ledger: Ledger | None,
        vitals: ServerStats | None,
        rules: Rules | None = None,
        firing: FiringAlerts | None = None,
    ) -> None:
        self._firing = firing
        self._ledger = ledger
        self._rules = rules
        self._vitals = vitals

    def collect(self) -> Iterable[Metric]:
        """Yield the families."""
        yield _gauge("redis_up", "1 if Redis answered this scrape, else 0.", 0 if self._ledger is None else 1)
        if self._ledger is not None:
            yield from _of_events(self._ledger, self._rules)
            yield from _of_partitions(self._ledger)
        if self._vitals is not None:
            yield from _of_vitals(self._vitals)
        if self._firing is not None and self._firing.counts:
            yield from _of_alerts(self._firing)


def _of_events(ledger: Ledger, rules: Rules | None) -> Iterable[Metric]:
    # A counter that is there from the start with 0: from nothing to 5 is no increase to Prometheus.
    declared = dict.fromkeys(rules.metric, 0) if rules is not None else {}
    appended = _counter("events_appended", "Events that were appended to the streams.")
    appended.add_metric([], ledger.appended)
    yield appended
    for outcome, what in (
        ("counted", "were counted"),
        ("duplicate", "had been counted before"),
        ("late", "came too late and were set aside"),
        ("late-counted", "came too late and were counted all the same; they are among the counted"),
        ("dead", "were parked, because they cannot be counted"),
        ("trimmed", "were trimmed away before they were counted"),
        ("dropped", "were parked and then dropped, by an operator or for want of room; they are among the dead"),
        ("retracted", "were taken back by a retraction"),
    ):
        family = _counter(f"events_{outcome.replace('-', '_')}", f"Events that {what}.", "metric")
        for metric, events in (declared | dict(ledger.by_metric(outcome))).items():
            family.add_metric([metric], events)
        yield family
    rejected = _counter("events_rejected", "Events that a rule rejected.", "metric", "rule")
    decided = {(name, rule): 0 for name, metric in (rules.metric if rules else {}).items() for rule in metric.rejecting}
    for labels, events in (decided | dict(ledger.by_metric_and_rule("rejected"))).items():
        rejected.add_metric(labels, events)
    yield rejected
    totals = _gauge(
        "counted_amount", "Sum of all counters of a metric; falls where amounts are negative.", None, "metric"
    )
    for metric, amount in ledger.totals.items():
        totals.add_metric([metric], amount)
    yield totals
    sketched = _gauge(
        "sketched_amount",
        "Sum of what is kept in a metric's sketch, where values are estimates. If the metric has max_subjects, "
        "anything but 0 means that it has come to them; falls where amounts are negative.",
        None,
        "metric",
    )
    for metric, amount in ledger.by_metric("sketched").items():
        sketched.add_metric([metric], amount)
    yield sketched
    exact = _gauge(
        "exact_subjects", "Subjects with a counter of their own, of metrics with max_subjects.", None, "metric"
    )
    for metric, subjects in ledger.by_metric("subjects").items():
        exact.add_metric([metric], subjects)
    yield exact
    # No sample rather than a guess: what waiting entries hold is not known.
    yield _gauge(
        "unaccounted_events",
        "Appended events that nothing became of: must be 0. Absent while entries wait.",
        ledger.unaccounted,
    )


def _of_partitions(ledger: Ledger) -> Iterable[Metric]:
    lag = _gauge("lag_entries", "Entries that are not counted yet, pending ones included.", None, "partition")
    pending = _gauge("pending_entries", "Entries handed to a worker and not acknowledged.", None, "partition")
    oldest = _gauge("oldest_pending_age_seconds", "Age of the oldest pending entry, 0 without one.", None, "partition")
    parked = _gauge("partition_dead_entries", "Entries in the dead stream.", None, "partition")
    for partition in ledger.partitions:
        labels = [partition.stream]
        position = partition.position
        lag.add_metric(labels, float("nan") if position.lag is None else position.lag)
        pending.add_metric(labels, position.pending)
        oldest.add_metric(labels, partition.oldest_pending or 0)
        parked.add_metric(labels, partition.parked)
    yield from (lag, pending, oldest, parked)


def _of_vitals(vitals: ServerStats) -> Iterable[Metric]:
    yield _gauge("workers", "Workers that asked for entries within the last 15 seconds.", vitals.workers)
    if vitals.memory_used is not None:
        yield _gauge("redis_memory_used_bytes", "Memory that the server uses.", vitals.memory_used)
    if vitals.memory_max is not None:
        yield _gauge("redis_memory_max_bytes", "Memory that the server may use, 0 without a bound.", vitals.memory_max)
    if vitals.snapshot is not None:
        yield _gauge(
            "snapshot_timestamp_seconds", "When the latest snapshot was taken, seconds since 1970.", vitals.snapshot
        )
    if vitals.snapshot_every is not None:
        yield _gauge(
            "snapshot_interval_seconds", "Seconds from one snapshot to the next, where a worker takes them.",
            vitals.snapshot_every,
        )  # fmt: skip
    if vitals.audit is not None:
        at, counters, differences = vitals.audit
        yield _gauge("audit_timestamp_seconds", "When the workers' latest audit ended, seconds since 1970.", at)
        yield _gauge("audit_counters", "Counters that it compared.", counters)
        yield _gauge("audit_differences", "Counters that differed: must be 0.", differences)
    for name, what, values in (
        ("stream_entries", "Entries in the stream, counted ones included.", vitals.stream_entries),
        ("stream_max_entries", "Entries at which the stream takes no more.", vitals.stream_limits),
        ("dead_bytes", "Memory that parked entries take.", vitals.dead_bytes),
        ("dead_max_bytes", "Memory beyond which the oldest parked entries are dropped.", vitals.dead_limits),
    ):
        family = _gauge(name, what, None, "partition")
        for stream, value in values.items():
            family.add_metric([stream], value)
        yield family


def _of_alerts(firing: FiringAlerts) -> Iterable[Metric]:
    counts = _gauge("alerts_firing", "Subjects for which an alert is firing.", None, "alert")
    for alert, subjects in firing.counts.items():
        counts.add_metric([alert], subjects)
    waiting = _gauge("alert_outbox_entries", "Notifications that are not delivered yet.", None, "partition")
    for stream, entries in firing.waiting.items():
        waiting.add_metric([stream], entries)
    yield from (counts, waiting)


def _counter(name: str, what: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"tallystream_{name}", what, labels=labels)


def _gauge(name: str, what: str, value: float | None, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tallystream_{name}", what, value=value, labels=labels or None)
