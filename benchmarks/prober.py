"""The process of case h: emits 10,000 events a second, some of them marked, and polls for the marked ones.

Usage: python -m benchmarks.prober URL SECONDS
Prints the milliseconds from emit to visible of every marked event, one a line.
"""

import sys
import time

from tallystream import Producer
from tallystream.reading.totals import Totals

from .load import METRIC, zipf

_TICK_SECONDS = 0.001
_EVENTS_PER_TICK = 10
_TICKS_PER_MARKER = 10


def main() -> None:
    """Emit on a fixed schedule, whatever the answers: a slow moment is sampled as often as a quick one."""
    url, seconds = sys.argv[1], float(sys.argv[2])
    ticks = int(seconds / _TICK_SECONDS)
    subjects = iter(zipf(ticks * _EVENTS_PER_TICK))
    waiting: dict[str, float] = {}
    latencies: list[float] = []
    with Totals(url) as totals, Producer(url) as producer:
        begun = time.monotonic()
        for tick in range(ticks):
            for _ in range(_EVENTS_PER_TICK):
                producer.emit(METRIC, next(subjects))
            if tick % _TICKS_PER_MARKER == 0:
                marker = f"marker:{tick}"
                waiting[marker] = time.monotonic()
                producer.emit(METRIC, marker)
            _collect(totals, waiting, latencies)
            time.sleep(max(0.0, begun + (tick + 1) * _TICK_SECONDS - time.monotonic()))
        deadline = time.monotonic() + 30
        while waiting and time.monotonic() < deadline:
            _collect(totals, waiting, latencies)
    if waiting:
        sys.exit(f"{len(waiting)} marked events were not visible within 30 s")
    print("\n".join(f"{latency * 1000:.3f}" for latency in latencies))


def _collect(totals: Totals, waiting: dict[str, float], latencies: list[float]) -> None:
    """Ask for every marked event that is still awaited and note how long the visible ones took."""
    if not waiting:
        return
    values = totals.get_many([(marker, METRIC) for marker in waiting]).values
    now = time.monotonic()
    latencies.extend(now - waiting.pop(marker) for (marker, _), value in values.items() if value)


if __name__ == "__main__":
    main()
