"""Case e: a worker drains streams that were filled before it started; with totals only, unless a case names rules."""

from pathlib import Path

from tallystream import Producer
from tallystream.storage.keys import Layout

from .counting import check_exact, stream_bytes, wait_for_first_read, wait_until_counted
from .load import LOADS, METRIC
from .measure import RATE, Sample, peak_memory_mib, script_milliseconds, server_cpu_seconds
from .processes import SHIPPED, TOTALS_ONLY, worker
from .server import Arena

_PIPELINE = 1_000


def zipf(arena: Arena) -> Sample:
    """Measure a drain of events of 100,000 subjects, of which a few have most of the events."""
    return _drain(arena, "zipf")


def zipf_shipped_rules(arena: Arena) -> Sample:
    """Measure a drain of the events of `zipf` under the shipped rules: totals, windows and leaderboards."""
    return _drain(arena, "zipf", SHIPPED)


def hot(arena: Arena) -> Sample:
    """Measure a drain of events that all have one subject."""
    return _drain(arena, "hot")


def uniform(arena: Arena) -> Sample:
    """Measure a drain of events that are distributed evenly over 1,000,000 subjects."""
    return _drain(arena, "uniform")


def plain(arena: Arena) -> Sample:
    """Measure a drain of plain entries of one event each: the load of case d, with the tallystream worker."""
    return _drain(arena, "plain")


def _drain(arena: Arena, kind: str, rules: Path = TOTALS_ONLY) -> Sample:
    subjects = _subjects(arena, kind)
    n = len(subjects)
    if kind not in arena.logs:
        fill = _fill_plain if kind == "plain" else _fill
        fill(arena, subjects)
        arena.save_as(kind)
    arena.restore(kind)
    stream = stream_bytes(arena.client)
    with worker(arena.url, arena.scratch, rules) as counting:
        cpu = server_cpu_seconds(arena.client)
        started = wait_for_first_read(arena, counting)
        finished = wait_until_counted(arena, n, counting)
        figures = {
            RATE: n / (finished - started),
            **script_milliseconds(arena.client),
            "server_cpu_us_per_event": (server_cpu_seconds(arena.client) - cpu) / n * 1e6,
            "stream_bytes_per_event": stream / n,
        }
        if (memory := peak_memory_mib(counting.process.pid)) is not None:
            figures["worker_peak_mib"] = memory
    check_exact(arena, subjects)
    return Sample(figures)


def _subjects(arena: Arena, kind: str) -> list[str]:
    if kind == "plain":
        return LOADS["zipf"](arena.events(300_000, 100_000))
    return LOADS[kind](arena.events(5_000_000, 1_000_000))


def _fill(arena: Arena, subjects: list[str]) -> None:
    """Append the load with the real producer."""
    with Producer(arena.url) as producer:
        for subject in subjects:
            producer.emit(METRIC, subject)
        producer.flush(timeout=300)


def _fill_plain(arena: Arena, subjects: list[str]) -> None:
    """Append each event as a plain entry, without the producer."""
    layout = Layout()
    for first in range(0, len(subjects), _PIPELINE):
        pipeline = arena.client.pipeline(transaction=False)
        for subject in subjects[first : first + _PIPELINE]:
            pipeline.xadd(layout.keys_of(subject).stream, {"metric": METRIC, "subject": subject})
        pipeline.execute()
