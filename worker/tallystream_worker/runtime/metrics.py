"""The Prometheus metrics of workers and audits, and the port that serves them."""

from __future__ import annotations

import threading
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import Counter, Gauge, Histogram, make_wsgi_app
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tallystream.errors import ConfigurationError
from tallystream_worker.process.listen_address import warn_if_metrics_are_exposed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from wsgiref.types import StartResponse, WSGIEnvironment

    from prometheus_client import CollectorRegistry

    from tallystream_worker.counting.outcome import BatchResult
    from tallystream_worker.runtime.health import HealthProbe, HealthProbes, WaitingProbe


MAX_PORT: Final = 65_535
"""The largest port number."""


class WorkerMetrics:
    """Records the results of batches and the deliveries of alerts as Prometheus metrics; thread-safe.

    These metrics measure the work of one worker. The counted events are in Redis, and the read service exports them.

    Args:
        registry: The registry to add the metrics to.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._batches = Counter("tallystream_batches", "Batches that were applied.", registry=registry)
        self._stale = Counter(
            "tallystream_batches_conflicted",
            "Stale batches: another worker had applied some of their entries, so they were folded again.",
            registry=registry,
        )
        self._events = Histogram(
            "tallystream_batch_events",
            "Events in an applied batch.",
            registry=registry,
            buckets=(1, 10, 100, 1_000, 10_000, 100_000, 1_000_000),
        )
        self._keys = Histogram(
            "tallystream_batch_keys",
            "Counters that an applied batch changed.",
            registry=registry,
            buckets=(1, 10, 100, 300, 1_000, 2_000, 3_000, 4_000, 6_000, 10_000, 30_000),
        )
        self._seconds = Histogram(
            "tallystream_apply_seconds",
            "Duration of an apply call in seconds, network included.",
            registry=registry,
            buckets=(0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.025, 0.05, 0.1, 0.5, 2.5),
        )

        self._notifications = Counter(
            "tallystream_alert_notifications",
            "Attempts to deliver a notification: delivered, failed (it will be tried again), or abandoned.",
            ["alert", "outcome"],
            registry=registry,
        )

    def delivered(self, alert: str, outcome: str) -> None:
        """Count one attempt to deliver a notification of an alert.

        `outcome` is `delivered` (also if the alert has no webhook), `failed` (the delivery will be tried again) or
        `abandoned`.
        """
        self._notifications.labels(alert, outcome).inc()

    def __call__(self, outcome: BatchResult) -> None:
        """Record one applied batch: its events, `keys` and `seconds`, and how often it was stale."""
        self._batches.inc()
        self._stale.inc(outcome.stale)
        self._events.observe(outcome.events)
        self._keys.observe(outcome.keys)
        self._seconds.observe(outcome.seconds)


class AuditMetrics:
    """The result of the last audit as Prometheus metrics; until the first audit ends, the differences are NaN.

    Args:
        registry: The registry to add the metrics to.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._differences = Gauge(
            "tallystream_audit_differences",
            "Differences that the last audit found; must be 0. There may be more than compared counters.",
            registry=registry,
        )
        self._differences.set(float("nan"))
        self._counters = Gauge(
            "tallystream_audit_counters", "Counters that the last audit compared.", registry=registry
        )
        self._timestamp = Gauge(
            "tallystream_audit_timestamp_seconds", "End of the last audit; 0 before the first.", registry=registry
        )

    def note(self, differences: int, counters: int) -> None:
        """Record an audit that ends now: the number of differences, and of the counters that were compared."""
        self._differences.set(differences)
        self._counters.set(counters)
        self._timestamp.set_to_current_time()


class ByNamespace(Collector):
    """Collects the Prometheus metrics of several registries; adds the label `namespace` to each sample that lacks it.

    Args:
        registries: By namespace, its registry.
    """

    def __init__(self, registries: Mapping[str, CollectorRegistry]) -> None:
        self._registries = registries

    def collect(self) -> Iterable[Metric]:
        """Return each Prometheus metric family once, with the samples of all registries.

        Each sample gets the label `namespace`; a sample that already has this label keeps it.
        """
        families: dict[str, Metric] = {}
        for namespace, registry in self._registries.items():
            for found in registry.collect():
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                family.samples += [
                    sample._replace(labels={"namespace": namespace, **sample.labels}) for sample in found.samples
                ]
        return families.values()


def serve_metrics(
    registry: CollectorRegistry, host: str, port: int, probe: HealthProbe | HealthProbes | WaitingProbe | None = None
) -> WSGIServer:
    """Serve the Prometheus metrics of a registry over HTTP in a background thread.

    It ends with the process, or when the caller calls `shutdown` of the result; then `server_close` frees the port.
    Every path except those of `probe` has the metrics. Logs a warning if the address is not loopback.

    Args:
        registry: The registry.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free port, which is `server_port` of the result.
        probe: Answers `/healthz` and `/readyz` with its liveness and readiness; `None` to serve metrics only.

    Returns:
        The running server.

    Raises:
        ConfigurationError: the port is out of range, or the server cannot listen on the address.
    """
    if not 0 <= port <= MAX_PORT:
        raise ConfigurationError(f"--metrics-port: must be 0 to {MAX_PORT:,}, not {port:,}")
    metrics = make_wsgi_app(registry)

    def app(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        checks = {} if probe is None else {"/healthz": probe.liveness, "/readyz": probe.readiness}
        check = checks.get(environ["PATH_INFO"])
        if check is None:
            exported: Iterable[bytes] = metrics(environ, start)
            return exported
        status, body = check()
        start(f"{status.value} {status.phrase}", [("Content-Type", "application/json")])
        return [body]

    try:
        server = make_server(host, port, app, _Server, handler_class=_Silent)
    except OSError as error:
        raise ConfigurationError(
            f"metrics: cannot listen on {host} port {port} ({error.strerror}); choose another with --metrics-port"
        ) from None
    warn_if_metrics_are_exposed(host, server.server_port)
    threading.Thread(target=server.serve_forever, name="tallystream-metrics", daemon=True).start()
    return server


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
        """Do nothing, so that scrapes are not logged."""
