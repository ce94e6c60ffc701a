"""Case g: the cost of `emit()` for the calling thread, while the sender delivers events to a real server."""

import time

from tallystream import Producer

from .load import METRIC, zipf
from .measure import Sample, percentile
from .server import Arena

_BATCH = 100
_PAUSE_SECONDS = 0.0005


def batches(arena: Arena) -> Sample:
    """Return the median and p99 of the nanoseconds of a call, from batches of 100 calls.

    The time of a call is that of its batch divided by 100, loop included. Half a millisecond passes between batches,
    which gives about 150,000 events a second. As in an app with other work to do, this lets the sender keep up; the
    time that the sender takes from the caller is in the figure.
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
