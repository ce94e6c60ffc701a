"""A worker's own health: whether it counts, and whether a restart would help."""

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
"""Seconds without a pass begun, after which a thread counts as hung: each wait in a pass is bounded far below."""

LATE: Final = 30.0
"""Seconds without a pass completed, after which a partition is not ready."""


class Watched(Protocol):
    """What a probe looks at: a worker."""

    @property
    def health(self) -> Sequence[PartitionHealth]:
        """The state of each partition."""

    @property
    def service_health(self) -> Sequence[ServiceHealth]:
        """The state of each service beside the partition workers."""


class HealthProbe:
    """Tells whether a worker is alive and ready; also a Prometheus collector of the state of its services.

    Only the partition workers make a worker hang or not ready: no restart mends a full disk under the archive, and a
    snapshot or an audit may take long.

    Args:
        worker: Which.
    """

    def __init__(self, worker: Watched) -> None:
        self._worker = worker

    def liveness(self) -> tuple[HTTPStatus, bytes]:
        """Answer 200 unless a thread hangs: whatever the state of Redis, else a restart would not help."""
        return _answer("alive", self.hung())

    def readiness(self) -> tuple[HTTPStatus, bytes]:
        """Answer 200 while every partition is counted; else 503 with what each one's problem is."""
        return _answer("ready", self.problems())

    def hung(self) -> list[str]:
        """Return what is to be said of each thread that hangs."""
        now = time.monotonic()
        hung = [each.partition for each in self._worker.health if now - each.tried > SILENT]
        return [f"partition {number} hangs: no pass began for {SILENT:.0f} s" for number in hung]

    def problems(self) -> list[str]:
        """Return what is to be said of each partition that is not counted."""
        now = time.monotonic()
        reasons = []
        for each in self._worker.health:
            if each.problem is not None:
                reasons.append(f"partition {each.partition}: {each.problem}")
            elif now - each.passed > LATE:
                reasons.append(f"partition {each.partition}: no pass was completed for {now - each.passed:.0f} s")
        return reasons

    def collect(self) -> Iterable[Metric]:
        """Yield the state of the partitions and services as metric families."""
        up = GaugeMetricFamily(
            "tallystream_partition_up", "1 while this worker counts the partition, else 0.", labels=["partition"]
        )
        passed = GaugeMetricFamily(
            "tallystream_last_pass_timestamp_seconds", "When the last pass was completed.", labels=["partition"]
        )
        hottest = GaugeMetricFamily(
            "tallystream_hot_subject_ratio",
            "Part of the partition's events, 0 to 1, that one subject gets; tallystream status names it.",
            labels=["partition"],
        )
        wall = time.time() - time.monotonic()
        for each in self._worker.health:
            up.add_metric([str(each.partition)], each.problem is None)
            passed.add_metric([str(each.partition)], wall + each.passed)
            if each.hot_subject is not None:
                hottest.add_metric([str(each.partition)], each.hot_subject.share)
        services = GaugeMetricFamily(
            "tallystream_service_up",
            "1 while the last pass of a service beside the counting succeeded, else 0.",
            labels=["service"],
        )
        for service in self._worker.service_health:
            services.add_metric([service.name], service.problem is None)
        yield from (up, passed, hottest, services)


class HealthProbes:
    """The probes of several namespaces as one.

    Args:
        probes: By namespace.
    """

    def __init__(self, probes: Mapping[str, HealthProbe]) -> None:
        self._vigils = probes

    def liveness(self) -> tuple[HTTPStatus, bytes]:
        """Answer 200 unless a thread of any of them hangs."""
        return _answer("alive", [f"{name}: {hung}" for name, each in self._vigils.items() for hung in each.hung()])

    def readiness(self) -> tuple[HTTPStatus, bytes]:
        """Answer 200 while every partition of all of them is counted."""
        return _answer("ready", [f"{name}: {why}" for name, each in self._vigils.items() for why in each.problems()])


def _answer(state: str, reasons: list[str]) -> tuple[HTTPStatus, bytes]:
    if reasons:
        return HTTPStatus.SERVICE_UNAVAILABLE, json.dumps({"status": f"not {state}", "reasons": reasons}).encode()
    return HTTPStatus.OK, json.dumps({"status": state}).encode()
