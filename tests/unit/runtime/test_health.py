"""Tests of the health probes of a worker, and of the metrics that they export."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from http import HTTPStatus

from tallystream_worker.maintenance.hot_subjects import HotSubject
from tallystream_worker.process.periodic import ServiceHealth
from tallystream_worker.runtime.health import LATE, SILENT, HealthProbe, HealthProbes
from tallystream_worker.runtime.partition_worker import PartitionHealth


@dataclass
class Watched:
    """A worker with the health that a test gives it."""

    health: list[PartitionHealth] = field(default_factory=list)
    service_health: list[ServiceHealth] = field(default_factory=list)


def partition(number: int = 0, problem: str | None = None, passed: float = 0.0, tried: float = 0.0) -> PartitionHealth:
    """Return a partition whose last pass began and ended a number of seconds ago."""
    now = time.monotonic()
    return PartitionHealth(number, problem, now - passed, now - tried, HotSubject("view", "a", 0.5, 9.0))


def test_a_worker_that_counts_is_alive_and_ready():
    """Both probes return 200 while every partition is counted."""
    probe = HealthProbe(Watched([partition(0), partition(1)]))
    assert probe.liveness() == (HTTPStatus.OK, b'{"status": "alive"}')
    assert probe.readiness() == (HTTPStatus.OK, b'{"status": "ready"}')


def test_a_partition_that_is_not_counted_is_a_reason():
    """A partition with a problem or without a recent pass makes a worker not ready, but it stays alive."""
    probe = HealthProbe(Watched([partition(0, "OOM"), partition(1, passed=LATE + 1), partition(2)]))
    status, body = probe.readiness()
    assert status == HTTPStatus.SERVICE_UNAVAILABLE
    assert [reason[:12] for reason in json.loads(body)["reasons"]] == ["partition 0:", "partition 1:"]
    assert probe.liveness()[0] == HTTPStatus.OK


def test_a_thread_that_hangs_is_not_alive():
    """A thread that begins no pass makes a worker not alive; one namespace is enough."""
    hanging = HealthProbe(Watched([partition(3, tried=SILENT + 1)]))
    status, body = HealthProbes({"shop": hanging, "blog": HealthProbe(Watched([partition()]))}).liveness()
    assert status == HTTPStatus.SERVICE_UNAVAILABLE
    assert json.loads(body)["reasons"] == ["shop: partition 3 hangs: no pass has begun for 60 s"]


def test_a_service_that_fails_shows_and_stops_nothing():
    """A failing archive is a sample of 0, and the worker stays alive and ready."""
    long_ago = time.monotonic() - 10 * SILENT
    services = [ServiceHealth("archive", "no space", long_ago, long_ago), ServiceHealth("trim", None, 0.0, 0.0)]
    probe = HealthProbe(Watched([partition()], services))
    assert probe.liveness()[0] == probe.readiness()[0] == HTTPStatus.OK
    samples = {
        (sample.name, *sample.labels.values()): sample.value for family in probe.collect() for sample in family.samples
    }
    assert samples["tallystream_service_up", "archive"] == 0
    assert samples["tallystream_service_up", "trim"] == 1
    assert samples["tallystream_partition_up", "0"] == 1
    assert samples["tallystream_key_lost", "0"] == 0
    assert samples["tallystream_hot_subject_ratio", "0"] == 0.5
