"""The route of Prometheus metrics: the ledger, read from Redis at each scrape, and those of workers in this process."""

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
from tallystream.client.error_text import text_of
from tallystream.errors import ConfigurationError, KeyLost, StreamError
from tallystream.reading.alerts import FiringAlerts, query_alerts
from tallystream.reading.ledger import Ledger, PartitionLedger, query_ledger
from tallystream.rules.metrics import Rules
from tallystream_worker.service.server_stats import ServerStats, query_server_stats

TEXT_FORMAT: Final = "text/plain; version=0.0.4"
"""Media type of the Prometheus text format, without the charset."""


@dataclass(frozen=True)
class ExtraMetrics:
    """The metrics of the workers in this process, which `/metrics` returns after those that it reads from Redis."""

    registry: CollectorRegistry | None
    """The registry of the workers in this process; `None` if there are none."""


@get("/metrics", tags=["metrics"], summary="Metrics for Prometheus", media_type=TEXT_FORMAT)
async def metrics(totals: NamedDependency[Totals], extra: NamedDependency[ExtraMetrics]) -> Response[bytes]:
    """Return the metrics as text.

    If Redis cannot be read, the status is 200 too, and the metrics are `tallystream_redis_up 0`, and those of the
    workers in this process if there are any; so it is if the stored deployment was deleted or is of another release, or
    a restore has not finished. If a partition has lost a key, the metrics of the ledger and of the alerts are left out,
    because they may be wrong. If a node of a cluster does not answer, the metrics of its partitions are left out, and
    so are the numbers of events and of firing alerts in all partitions; `tallystream_partition_unreachable` is 1 for
    each of its partitions.
    """
    try:
        collector = await _read(totals)
    except (RedisError, ConfigurationError, StreamError) as error:
        structlog.get_logger().warning("service.ledger_unavailable", problem=text_of(error))
        collector = LedgerCollector(None, None)
    text = generate_latest(collector)
    if extra.registry is not None:
        text += generate_latest(extra.registry)
    return Response(text, media_type=TEXT_FORMAT)


async def _read(totals: Totals) -> "LedgerCollector":
    deployment = await totals.deployment()
    layout, rules = deployment.layout, deployment.declared
    vitals = await totals.run(query_server_stats(layout))
    try:
        ledger = await totals.ask(lambda found: query_ledger(found.layout))
        firing = None
        if rules is not None:
            firing = await totals.ask(lambda found: query_alerts(found.layout, found.rules, found.now, found.removed))
    except KeyLost as error:
        structlog.get_logger().warning("service.ledger_unavailable", problem=text_of(error))
        return LedgerCollector(None, vitals)
    return LedgerCollector(ledger, vitals, rules, firing)


class LedgerCollector:
    """A Prometheus collector of the ledger and the server statistics.

    Labels are metrics, rules, alerts and partitions, never subjects, so the number of samples is bounded. The metric
    `""` is for events whose metric is not known.

    Args:
        ledger: The ledger; `None` if it cannot be read, or if a partition has lost a key.
        vitals: The server statistics; `None` if they, or the stored deployment, cannot be read.
        rules: The declared rules; `None` if there are none.
        firing: The firing alerts; `None` if they were not read.
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
        """Yield the Prometheus metric families of the ledger, statistics and alerts that are not `None`.

        The first is always `tallystream_redis_up`: 1 if there are statistics, else 0. If the ledger has unreachable
        partitions, the families of events (with the amounts and subjects) and `tallystream_alerts_firing` are left out,
        because their sums lack these partitions. Without a declared alert, there are no families of alerts. Nothing is
        read from Redis.
        """
        yield _gauge("redis_up", "1 if this scrape could read from Redis, else 0.", 0 if self._vitals is None else 1)
        whole = self._ledger is None or not self._ledger.unreachable
        if self._ledger is not None:
            if whole:  # a sum without a partition would look like a counter that was reset
                yield from _of_events(self._ledger, self._rules)
            yield from _of_partitions(self._ledger)
        if self._vitals is not None:
            yield from _of_vitals(self._vitals)
        if self._firing is not None and self._firing.counts:
            yield from _of_alerts(self._firing, whole=whole)


def _of_events(ledger: Ledger, rules: Rules | None) -> Iterable[Metric]:
    # Export each counter from the start with 0: Prometheus sees no increase in a counter that begins at 5.
    declared = dict.fromkeys(rules.metric, 0) if rules is not None else {}
    appended = _counter("events_appended", "Events that were appended to the streams.")
    appended.add_metric([], ledger.appended)
    yield appended
    for outcome, what in (
        ("counted", "were counted"),
        ("duplicate", "had been counted before"),
        ("late", "came too late and were not counted"),
        ("late-counted", "came late, and were not left out for this; each also has another outcome, such as counted"),
        ("dead", "were dead-lettered, because they cannot be counted"),
        ("trimmed", "were trimmed before they were counted"),
        ("dropped", "were dead-lettered and then dropped, by an operator or to make room; they are among the dead"),
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
    totals = _gauge("counted_amount", "Sum of all counters of a metric; falls if amounts are negative.", None, "metric")
    for metric, amount in ledger.totals.items():
        totals.add_metric([metric], amount)
    yield totals
    sketched = _gauge(
        "sketched_amount",
        "Sum of the amounts in the sketch of a metric, whose values are estimates. If the metric has max_subjects, any "
        "value but 0 means that it has reached them; falls if amounts are negative.",
        None,
        "metric",
    )
    for metric, amount in ledger.by_metric("sketched").items():
        sketched.add_metric([metric], amount)
    yield sketched
    exact = _gauge("exact_subjects", "Subjects with an exact counter, of metrics with max_subjects.", None, "metric")
    for metric, subjects in ledger.by_metric("subjects").items():
        exact.add_metric([metric], subjects)
    yield exact
    # No sample while entries wait: the number of events in them is unknown.
    yield _gauge(
        "unaccounted_events",
        "Appended events without any outcome; must be 0. Absent while entries wait.",
        ledger.unaccounted,
    )


def _of_partitions(ledger: Ledger) -> Iterable[Metric]:
    lag = _gauge("lag_entries", "Entries that are not counted yet, pending ones included.", None, "partition")
    pending = _gauge("pending_entries", "Entries delivered to a worker and not acknowledged.", None, "partition")
    oldest = _gauge(
        "oldest_pending_age_seconds",
        "Age of the oldest pending entry; 0 if none is pending, NaN if its stream ID is ahead of the server's clock.",
        None,
        "partition",
    )
    ahead = _gauge(
        "stream_ids_ahead_seconds",
        "How far stream IDs are ahead of the server's clock, because it was set back; 0 if they are not.",
        None,
        "partition",
    )
    dead = _gauge("partition_dead_entries", "Dead letters of the partition.", None, "partition")
    for partition in ledger.partitions:
        labels = [partition.stream]
        position = partition.position
        lag.add_metric(labels, float("nan") if position.lag is None else position.lag)
        pending.add_metric(labels, position.pending)
        oldest.add_metric(labels, _age(partition))
        ahead.add_metric(labels, partition.ids_ahead)
        dead.add_metric(labels, partition.dead)
    away = _gauge(
        "partition_unreachable", "1 while the node of the partition does not answer, else 0.", None, "partition"
    )
    for stream in [partition.stream for partition in ledger.partitions]:
        away.add_metric([stream], 0)
    for each in ledger.unreachable:
        away.add_metric([each.stream], 1)
    yield from (lag, pending, oldest, dead, ahead, away)


def _age(partition: PartitionLedger) -> float:
    if partition.oldest_pending is None:
        return float("nan") if partition.position.pending else 0
    return partition.oldest_pending


def _of_vitals(vitals: ServerStats) -> Iterable[Metric]:
    yield _gauge("workers", "Workers that read entries within the last 15 seconds.", vitals.workers)
    if vitals.memory_used is not None:
        yield _gauge("redis_memory_used_bytes", "Memory that the server uses.", vitals.memory_used)
    if vitals.memory_max is not None:
        yield _gauge("redis_memory_max_bytes", "Memory that the server may use; 0 without a bound.", vitals.memory_max)
    if vitals.evicted is not None:
        evicted = _counter("redis_evicted_keys", "Keys that the server has evicted since it started; must be 0.")
        evicted.add_metric([], vitals.evicted)
        yield evicted
    if vitals.snapshot is not None:
        yield _gauge("snapshot_timestamp_seconds", "Time of the last snapshot in seconds since 1970.", vitals.snapshot)
    if vitals.snapshot_every is not None:
        yield _gauge(
            "snapshot_interval_seconds", "Seconds between two snapshots; absent if no worker takes them.",
            vitals.snapshot_every,
        )  # fmt: skip
    if vitals.audit is not None:
        at, counters, differences = vitals.audit
        yield _gauge("audit_timestamp_seconds", "End of the last audit of a worker in seconds since 1970.", at)
        yield _gauge("audit_counters", "Counters that the last audit compared.", counters)
        yield _gauge(
            "audit_differences",
            "Differences that the last audit found; must be 0. There may be more than compared counters.",
            differences,
        )
    if vitals.verified is not None:
        at, faults, failed = vitals.verified
        yield _gauge("verify_timestamp_seconds", "End of the last verification by a worker in seconds since 1970.", at)
        yield _gauge("verify_faults", "Kinds of faults that the last verification found; must be 0.", faults)
        yield _gauge("verify_unchecked", "Checks that the last verification could not make.", failed)
    yield _gauge(
        "archive_lost_entries",
        "Entries in files *.parquet.lost of the archive that no producer had sent again; 0 when they are moved away.",
        vitals.archive_lost,
    )
    if vitals.step is not None:
        yield _gauge("clock_step_seconds", "The last step of a server's clock: above 0 if ahead.", vitals.step.seconds)
        yield _gauge("clock_step_timestamp_seconds", "The server's time after that step.", vitals.step.at)
    for name, what, values in (
        ("partition_workers", "Workers that read the partition within the last 15 seconds.", vitals.serving),
        ("stream_entries", "Entries in the stream, counted ones included.", vitals.stream_entries),
        ("stream_max_entries", "Entries at which the stream accepts no more.", vitals.stream_limits),
        ("dead_bytes", "Memory that the dead letters take.", vitals.dead_bytes),
        ("dead_max_bytes", "Memory above which the oldest dead letters are dropped.", vitals.dead_limits),
    ):
        family = _gauge(name, what, None, "partition")
        for stream, value in values.items():
            family.add_metric([stream], value)
        yield family


def _of_alerts(firing: FiringAlerts, *, whole: bool) -> Iterable[Metric]:
    counts = _gauge("alerts_firing", "Subjects for which an alert is firing.", None, "alert")
    for alert, subjects in firing.counts.items():
        counts.add_metric([alert], subjects)
    silent = _gauge(
        "alert_silent", "1 if an alert changes no state, because part of its range cannot be read.", None, "alert"
    )
    for alert in firing.counts:
        silent.add_metric([alert], int(alert in firing.silent))
    waiting = _gauge("alert_outbox_entries", "Notifications that are not delivered yet.", None, "partition")
    for stream, entries in firing.waiting.items():
        waiting.add_metric([stream], entries)
    yield from (counts, silent, waiting) if whole else (silent, waiting)


def _counter(name: str, what: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"tallystream_{name}", what, labels=labels)


def _gauge(name: str, what: str, value: float | None, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tallystream_{name}", what, value=value, labels=labels or None)
