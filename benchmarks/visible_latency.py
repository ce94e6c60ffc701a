"""Case h: the time from `emit()` until a reader sees the event, while 10,000 events arrive each second."""

from tallystream import Producer

from .counting import wait_until_counted
from .load import METRIC
from .measure import Sample, percentile
from .processes import module, worker
from .server import Arena


def probe(arena: Arena) -> Sample:
    """Run the prober while a worker counts, and return the median and p99 of its latencies."""
    with worker(arena.url, arena.scratch) as counting:
        with Producer(arena.url) as producer:
            producer.emit(METRIC, "warm-up")
        wait_until_counted(arena, 1, counting)
        with module("prober", arena.url, str(arena.events(10, 3)), scratch=arena.scratch) as probing:
            milliseconds = sorted(float(line) for line in probing.finish().split())
    return Sample({"visible_p50_ms": percentile(milliseconds, 0.5), "visible_p99_ms": percentile(milliseconds, 0.99)})
