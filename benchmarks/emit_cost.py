"""Case g: what `emit()` costs the thread that calls it, with the sender at work and a live server."""

import time

from tallystream import Producer

from .load import METRIC, zipf
from .measure import Sample, percentile
from .server import Arena

_BATCH = 100
_PAUSE_SECONDS = 0.0005


def batches(arena: Arena) -> Sample:
    """Time batches of 100 calls with half a millisecond between them: about 150,000 events a second.

    A call's cost is its batch's time by 100, loop included. The pause lets the sender keep up, as it does
    in an app that also has other work to do; what the sender takes from the caller stays in the figure.
    """
    subjects = zipf(arena.events(500_000, 100_000))
    nanoseconds: list[float] = []
    clock = time.perf_counter_ns
    with Producer(arena.url) as producer:
        producer.emit(METRIC, subjects[0])
        producer.flush(timeout=10)
        emit = producer.emit
        for first in range(0, len(subjects), _BATCH):
            batch = subjects[first : first + _BATCH]
            started = clock()
            for subject in batch:
                emit(METRIC, subject)
            nanoseconds.append((clock() - started) / len(batch))
            time.sleep(_PAUSE_SECONDS)
    nanoseconds.sort()
    return Sample({"emit_median_ns": percentile(nanoseconds, 0.5), "emit_p99_ns": percentile(nanoseconds, 0.99)})
