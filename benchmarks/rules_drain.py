"""Cases r: a worker drains metrics with rules, and threads call `decide()`."""

import random
import threading
import time
from pathlib import Path

from tallystream import Producer
from tallystream.reading.ledger import OUTCOMES, query_ledger
from tallystream.reading.totals import Totals

from .load import zipf
from .measure import RATE, Sample, script_milliseconds
from .processes import worker
from .server import Arena, until

RULES = Path(__file__).with_name("rules.toml")
_THREADS = 16


def windows(arena: Arena) -> Sample:
    """Measure a drain of views that are counted in a total, an hour and a day."""
    subjects = zipf(arena.events(3_000_000, 1_000_000))
    with Producer(arena.url) as producer:
        for subject in subjects:
            producer.emit("view", subject)
        producer.flush(300)
    return _drained(arena, len(subjects))


def votes(arena: Arena) -> Sample:
    """Measure a drain of votes of 100,000 users on 100,000 posts."""
    subjects = zipf(arena.events(400_000, 100_000))
    draw = random.Random(1)
    with Producer(arena.url) as producer:
        for subject in subjects:
            producer.emit("vote", subject, draw.choice((1, 1, -1)), actor=f"user:{draw.randrange(100_000)}")
        producer.flush(300)
    return _drained(arena, len(subjects))


def limits(arena: Arena) -> Sample:
    """Measure a drain of calls of 100,000 keys, each with a limit of 1,000 an hour."""
    subjects = zipf(arena.events(2_000_000, 500_000))
    with Producer(arena.url) as producer:
        for subject in subjects:
            producer.emit("call", subject)
        producer.flush(300)
    return _drained(arena, len(subjects))


def decisions(arena: Arena) -> Sample:
    """Measure the rate and latency of `decide()` on a limit, called by 16 threads while a worker runs."""
    subjects = zipf(arena.events(32_000, 16_000))
    seconds: list[float] = []
    with worker(arena.url, arena.scratch, RULES) as counting, Producer(arena.url) as producer:
        with Totals(arena.url) as totals:
            until(lambda: totals.deployment.declared is not None, "the worker to publish its rules")
        counting.check()

        def ask(mine: list[str]) -> None:
            for subject in mine:
                began = time.perf_counter()
                producer.decide("call", subject)
                seconds.append(time.perf_counter() - began)

        threads = [threading.Thread(target=ask, args=(subjects[n::_THREADS],)) for n in range(_THREADS)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - began
    seconds.sort()
    return Sample(
        {
            RATE: len(subjects) / elapsed,
            "verdict_p50_ms": seconds[len(seconds) // 2] * 1000,
            "verdict_p99_ms": seconds[len(seconds) * 99 // 100] * 1000,
        }
    )


def _drained(arena: Arena, events: int) -> Sample:
    arena.settle()
    with Totals(arena.url) as totals:
        layout = totals.deployment.layout
        with worker(arena.url, arena.scratch, RULES) as counting:

            def settled() -> int:
                counting.check()
                books = totals.run(query_ledger(layout))
                return sum(books.events[outcome] for outcome in OUTCOMES)

            until(lambda: settled() > 0, "the first batch")
            first, began = settled(), time.perf_counter()
            until(lambda: settled() >= events, "everything to be counted", interval=0.02)
            elapsed = time.perf_counter() - began
            figures = script_milliseconds(arena.client)
        assert totals.run(query_ledger(layout)).unaccounted == 0  # noqa: S101  # the figure of a wrong count is worthless
    return Sample({RATE: (events - first) / elapsed, **figures})
