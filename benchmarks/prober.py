"""The process of case h: it emits 10,000 events a second, marks some of them, and polls for the marked ones.

Usage: python -m benchmarks.prober URL SECONDS
It prints, for each marked event, a line with the milliseconds from `emit` until the event was visible.
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
    """Emit and poll for `SECONDS`, then print the latencies; exit with an error if a marked event is not visible.

    Events are emitted on a fixed schedule, so that slow moments are sampled as often as fast ones.
    """
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
    """Read all marked events that were not visible before; move those that are visible now to `latencies`."""
    if not waiting:
        return
    values = totals.get_many([(marker, METRIC) for marker in waiting]).values
    now = time.monotonic()
    latencies.extend(now - waiting.pop(marker) for (marker, _), value in values.items() if value)


if __name__ == "__main__":
    main()
