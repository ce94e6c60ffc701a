"""Case f: a producer, the server and a worker run at once, each in its own process, until everything is counted."""

import time

from .counting import check_exact, wait_until_counted
from .load import zipf
from .measure import RATE, Sample, peak_memory_mib
from .processes import module, worker
from .server import Arena


def produce_and_count(arena: Arena) -> Sample:
    """Return the rate from the first `emit` to the last count; the worker already waits for entries at the start."""
    subjects = zipf(arena.events(2_000_000, 300_000))
    n = len(subjects)
    with (
        worker(arena.url, arena.scratch) as counting,
        module("emitter", arena.url, str(n), scratch=arena.scratch) as emitting,
    ):
        emitting.wait_for_line("ready")
        started = time.monotonic()
        emitting.say("go")
        finished = wait_until_counted(arena, n, counting)
        memory = peak_memory_mib(counting.process.pid)
        emitting.finish()
    check_exact(arena, subjects)
    figures = {RATE: n / (finished - started)}
    return Sample(figures if memory is None else {**figures, "worker_peak_mib": memory})
