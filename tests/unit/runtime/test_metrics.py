"""Tests of the metrics of a worker."""

from __future__ import annotations

import contextlib
import urllib.request
from typing import TYPE_CHECKING

import pytest
import structlog
from prometheus_client import CollectorRegistry

from tallystream.errors import ConfigurationError
from tallystream_worker.counting.outcome import BatchResult
from tallystream_worker.runtime.metrics import WorkerMetrics, serve_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from wsgiref.simple_server import WSGIServer


def outcome(**changes: object) -> BatchResult:
    """Return the result of one batch."""
    fields = {"partition": 0, "entries": 2, "counted": {"view": 40}, "dead": {"reason": 2}, "keys": 7}
    return BatchResult(**fields | {"seconds": 0.003, "stale": 0} | changes)  # type: ignore[arg-type]


def test_outcomes_become_samples() -> None:
    """Each applied batch adds its events, counters, seconds and conflicts."""
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    metrics(outcome())
    metrics(outcome(stale=2, keys=2000, seconds=0.5))
    value = registry.get_sample_value
    assert value("tallystream_batches_total") == 2
    assert value("tallystream_batches_conflicted_total") == 2
    assert value("tallystream_batch_events_sum") == 84
    assert value("tallystream_batch_keys_sum") == 2007
    assert value("tallystream_apply_seconds_sum") == pytest.approx(0.503)
    assert value("tallystream_apply_seconds_bucket", {"le": "0.01"}) == 1


@pytest.mark.parametrize(("host", "warnings"), [("127.0.0.1", 0), ("localhost", 0), ("0.0.0.0", 1)])  # noqa: S104
def test_metrics_that_others_can_read_are_warned_of(host: str, warnings: int) -> None:
    """On an address that is not loopback, a line warns of metrics without a token; on loopback there is none."""
    with structlog.testing.capture_logs() as said:
        server = serve_metrics(CollectorRegistry(), host, 0)
    server.shutdown()
    server.server_close()
    assert [line["host"] for line in said] == [host] * warnings
    assert all("--metrics-host" in line["action"] for line in said)


@contextlib.contextmanager
def served(registry: CollectorRegistry) -> Iterator[WSGIServer]:
    """Serve a registry until the block ends."""
    server = serve_metrics(registry, "127.0.0.1", 0)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def test_a_worker_has_a_port_of_its_own() -> None:
    """The metrics are served over HTTP on the port of the worker; a port in use is an error."""
    registry = CollectorRegistry()
    WorkerMetrics(registry)(outcome())
    with served(registry) as server:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
            assert b"tallystream_batches_total 1.0" in answer.read()
        with pytest.raises(ConfigurationError, match=r"cannot listen on 127\.0\.0\.1 port \d+ .*--metrics-port"):
            serve_metrics(registry, "127.0.0.1", server.server_port)
    with pytest.raises(ConfigurationError, match=r"--metrics-port: must be 0 to 65,535, not 99,999"):
        serve_metrics(registry, "127.0.0.1", 99_999)
