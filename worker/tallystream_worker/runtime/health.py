"""The health of a worker: whether it counts every partition, and whether a restart would help."""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from prometheus_client.core import Metric

    from tallystream_worker.process.periodic import ServiceHealth
    from tallystream_worker.runtime.partition_worker import PartitionHealth

SILENT: Final = 60.0
"""Seconds without the beginning of a pass after which a thread hangs; each wait in a pass is much shorter."""

LATE: Final = 30.0
"""Seconds without a successful pass after which a partition is not ready."""


class Watched(Protocol):
    """A worker, as far as a health probe needs it."""

    @property
    def health(self) -> Sequence[PartitionHealth]:
        """The state of each partition's thread: why it does not count, and when its last passes began and succeeded."""

    @property
    def service_health(self) -> Sequence[ServiceHealth]:
        """The state of each service except the partition workers."""


class HealthProbe:
    """The liveness and readiness of a worker; also a Prometheus collector of its state: see `collect`.

    Liveness and readiness depend on the partitions that the worker serves only: a restart does not repair a full disk
    of the archive, and a snapshot or an audit may take long.

    Args:
        worker: The worker to check.
    """

    def __init__(self, worker: Watched) -> None:
        self._worker = worker

    def liveness(self) -> tuple[HTTPStatus, bytes]:
        """Return status 200, or 503 if the thread of a partition hangs, and a JSON body, with the reasons if 503.

        A thread hangs if it has not begun a pass for more than 60 seconds. A pass that fails, for example because Redis
        does not answer, counts as begun.
        """
        return _answer("alive", self.hung())

    def readiness(self) -> tuple[HTTPStatus, bytes]:
        """Return status 200, or 503 if a partition has a problem, and a JSON body, with the reasons if 503.

        See `problems` for what counts as one.
        """
        return _answer("ready", self.problems())

    def hung(self) -> list[str]:
        """Return one message for each partition whose thread has not begun a pass for more than 60 seconds."""
        now = time.monotonic()
        hung = [each.partition for each in self._worker.health if now - each.tried > SILENT]
        return [f"partition {number} hangs: no pass has begun for {SILENT:.0f} s" for number in hung]

    def problems(self) -> list[str]:
        """Return one message for each partition with a problem, or without a successful pass for over 30 seconds.

        A partition whose first pass has not ended has the problem `starting`.
        """
        now = time.monotonic()
        reasons = []
        for each in self._worker.health:
            if each.problem is not None:
                reasons.append(f"partition {each.partition}: {each.problem}")
            elif now - each.passed > LATE:
                reasons.append(f"partition {each.partition}: no pass has succeeded for {now - each.passed:.0f} s")
        return reasons

    def collect(self) -> Iterable[Metric]:
        """Yield five Prometheus metric families, with one sample for each partition or service.

        By partition: whether it is counted, the time of its last successful pass, whether it has lost a key, and the
        share of its `hot_subject`, if it has one. By service: whether its last pass succeeded.
        """
        up = GaugeMetricFamily(
            "tallystream_partition_up", "1 while this worker counts the partition, else 0.", labels=["partition"]
        )
        passed = GaugeMetricFamily(
            "tallystream_last_pass_timestamp_seconds", "Time of the last successful pass.", labels=["partition"]
        )
        lost = GaugeMetricFamily(
            "tallystream_key_lost",
            "1 while the partition is not counted because one of its keys was deleted or evicted, else 0.",
            labels=["partition"],
        )
        hottest = GaugeMetricFamily(
            "tallystream_hot_subject_ratio",
            "Share of the partition's events, 0 to 1, of its hot subject; tallystream status names the subject.",
            labels=["partition"],
        )
        wall = time.time() - time.monotonic()
        for each in self._worker.health:
            up.add_metric([str(each.partition)], each.problem is None)
            passed.add_metric([str(each.partition)], wall + each.passed)
            lost.add_metric([str(each.partition)], each.lost_key is not None)
            if each.hot_subject is not None:
                hottest.add_metric([str(each.partition)], each.hot_subject.share)
        services = GaugeMetricFamily(
            "tallystream_service_up",
            "1 if the last pass of a service other than counting succeeded, else 0.",
            labels=["service"],
        )
        for service in self._worker.service_health:
            services.add_metric([service.name], service.problem is None)
        yield from (up, passed, lost, hottest, services)


class HealthProbes:
    """The health probes of several namespaces as one, with the methods `liveness` and `readiness` of `HealthProbe`.

    Args:
        probes: The probes by namespace.
    """

    def __init__(self, probes: Mapping[str, HealthProbe]) -> None:
        self._vigils = probes

    def liveness(self) -> tuple[HTTPStatus, bytes]:
        """Return status 200, or 503 if the thread of a partition in any namespace hangs, and a JSON body."""
        return _answer("alive", [f"{name}: {hung}" for name, each in self._vigils.items() for hung in each.hung()])

    def readiness(self) -> tuple[HTTPStatus, bytes]:
        """Return status 200, or 503 if a partition of any namespace has a problem, and a JSON body.

        See `HealthProbe.problems` for what counts as one.
        """
        return _answer("ready", [f"{name}: {why}" for name, each in self._vigils.items() for why in each.problems()])


class WaitingProbe:
    """The health of a worker that waits for its data, with the methods `liveness` and `readiness` of `HealthProbe`."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        """Why the worker waits; the caller sets it."""

    def liveness(self) -> tuple[HTTPStatus, bytes]:
        """Return status 200 and a JSON body."""
        return _answer("alive", [])

    def readiness(self) -> tuple[HTTPStatus, bytes]:
        """Return status 503, and a JSON body with `reasons`; if they are empty, with the reason `starting`."""
        return _answer("ready", self.reasons or ["starting"])


def _answer(state: str, reasons: list[str]) -> tuple[HTTPStatus, bytes]:
    if reasons:
        return HTTPStatus.SERVICE_UNAVAILABLE, json.dumps({"status": f"not {state}", "reasons": reasons}).encode()
    return HTTPStatus.OK, json.dumps({"status": state}).encode()
