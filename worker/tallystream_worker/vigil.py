"""A worker's own health: whether it counts, and whether a restart would help."""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prometheus_client.core import Metric

    from tallystream_worker.crew import Health

SILENT: Final = 60.0
"""Seconds without a pass begun, after which a thread counts as hung: each wait in a pass is bounded far below."""

LATE: Final = 30.0
"""Seconds without a pass completed, after which a partition is not ready."""


class Vigil:
    """Watches the threads that count; also a Prometheus collector of what it sees.

    Args:
        health: Returns how each partition's thread is, such as `lambda: crew.health`.
    """

    def __init__(self, health: Callable[[], Sequence[Health]]) -> None:
        self._health = health

    def liveness(self) -> tuple[HTTPStatus, bytes]:
        """Answer 200 unless a thread hangs: whatever the state of Redis, else a restart would not help."""
        now = time.monotonic()
        hung = [each.partition for each in self._health() if now - each.tried > SILENT]
        return _answer("alive", [f"partition {number} hangs: no pass began for {SILENT:.0f} s" for number in hung])

    def readiness(self) -> tuple[HTTPStatus, bytes]:
        """Answer 200 while every partition is counted; else 503 with what each one's problem is."""
        now = time.monotonic()
        reasons = []
        for each in self._health():
            if each.problem is not None:
                reasons.append(f"partition {each.partition}: {each.problem}")
            elif now - each.passed > LATE:
                reasons.append(f"partition {each.partition}: no pass was completed for {now - each.passed:.0f} s")
        return _answer("ready", reasons)

    def collect(self) -> Iterable[Metric]:
        """Yield a partition's state as metric families."""
        up = GaugeMetricFamily(
            "tallystream_partition_up", "1 while this worker counts the partition, else 0.", labels=["partition"]
        )
        passed = GaugeMetricFamily(
            "tallystream_last_pass_timestamp_seconds", "When the last pass was completed.", labels=["partition"]
        )
        wall = time.time() - time.monotonic()
        for each in self._health():
            up.add_metric([str(each.partition)], each.problem is None)
            passed.add_metric([str(each.partition)], wall + each.passed)
        yield from (up, passed)


def _answer(state: str, reasons: list[str]) -> tuple[HTTPStatus, bytes]:
    if reasons:
        return HTTPStatus.SERVICE_UNAVAILABLE, json.dumps({"status": f"not {state}", "reasons": reasons}).encode()
    return HTTPStatus.OK, json.dumps({"status": state}).encode()
