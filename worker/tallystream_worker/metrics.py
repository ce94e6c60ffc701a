"""What a worker measures about itself: a subscriber of outcomes, and a port of its own to read them from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram, start_http_server

from tallystream.errors import ConfigurationError

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry

    from tallystream_worker.outcome import Outcome


class WorkerMetrics:
    """Turns outcomes into Prometheus metrics; safe across threads.

    What is counted is in Redis, and the read service exports it; here is only how the work is done.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._batches = Counter("tallystream_batches", "Batches that were applied.", registry=registry)
        self._stale = Counter(
            "tallystream_stale_batches",
            "Batches that came too late, because another worker had applied part of them, and were folded again.",
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
            "Counters that an applied batch touched.",
            registry=registry,
            buckets=(1, 10, 100, 300, 1_000, 2_000, 3_000, 4_000, 6_000, 10_000, 30_000),
        )
        self._seconds = Histogram(
            "tallystream_apply_seconds",
            "Seconds that an apply call took, the way there and back included.",
            registry=registry,
            buckets=(0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.025, 0.05, 0.1, 0.5, 2.5),
        )

    def __call__(self, outcome: Outcome) -> None:
        """Take note of one applied batch."""
        self._batches.inc()
        self._stale.inc(outcome.stale)
        self._events.observe(outcome.events)
        self._keys.observe(outcome.keys)
        self._seconds.observe(outcome.seconds)


def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> WSGIServer:
    """Serve a registry on a port of its own, in the background; port 0 takes a free one, the server's `server_port`.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigurationError(
            f"metrics: cannot listen on {host} port {port} ({error.strerror}); choose another with --metrics-port"
        ) from None
    return server
