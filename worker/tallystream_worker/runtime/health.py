"""A worker's own health: whether it counts, and whether a restart would help."""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from prometheus_client.core import Metric

    from tallystream_worker.runtime.supervisor import PartitionHealth

SILENT: Final = 60.0
"""Seconds without a pass begun, after which a thread counts as hung: each wait in a pass is bounded far below."""

LATE: Final = 30.0
"""Seconds without a pass completed, after which a partition is not ready."""


class HealthProbe:
    """Watches the threads that count; also a Prometheus collector of what it sees.

    Args:
        health: Returns how each partition's thread is, such as `lambda: pool.health`.
    """

    def __init__(self, health: Callable[[], Sequence[PartitionHealth]]) -> None:
        self._health = health

    def liveness(self) -> tuple[HTTPStatus, bytes]:
        """Answer 200 unless a thread hangs: whatever the state of Redis, else a restart would not help."""
        return _answer("alive", self.hung())

    def readiness(self) -> tuple[HTTPStatus, bytes]:
        """Answer 200 while every partition is counted; else 503 with what each one's problem is."""
        return _answer("ready", self.problems())

    def hung(self) -> list[str]:
        """Return what is to be said of each thread that hangs."""
        now = time.monotonic()
        hung = [each.partition for each in self._health() if now - each.tried > SILENT]
        return [f"partition {number} hangs: no pass began for {SILENT:.0f} s" for number in hung]

    def problems(self) -> list[str]:
        """Return what is to be said of each partition that is not counted."""
        now = time.monotonic()
        reasons = []
        for each in self._health():
            if each.problem is not None:
                reasons.append(f"partition {each.partition}: {each.problem}")
            elif now - each.passed > LATE:
                reasons.append(f"partition {each.partition}: no pass was completed for {now - each.passed:.0f} s")
        return reasons

    def collect(self) -> Iterable[Metric]:
        """Yield a partition's state as metric families."""
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
        for each in self._health():
            up.add_metric([str(each.partition)], each.problem is None)
            passed.add_metric([str(each.partition)], wall + each.passed)
            if each.hot_subject is not None:
                hottest.add_metric([str(each.partition)], each.hot_subject.share)
        yield from (up, passed, hottest)


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
