"""Measure the cost of 500 readers of live updates for the worker, and the time from `emit()` until a reader is updated.

Usage: python -m benchmarks.live_readers [--quick]

The same backlog is drained in pairs, without readers and with 500 readers that follow the overview, all in separate
processes. The median of the pairs' ratios is the share of its rate that the worker keeps. On a busy machine, the
processor time of worker and server means more than the rate. Then, at a steady rate of events, the processor time of
the read service is measured with one reader and with many, and the time until a reader gets an event.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection

import psutil

from tallystream import Producer
from tallystream.subscribe import follow

from .counting import wait_for_first_read, wait_until_counted
from .load import METRIC, zipf
from .measure import percentile, server_cpu_seconds
from .processes import SHIPPED, Running, module, program, worker
from .server import Arena, running, until

READERS = 500
PAIRS = 7
PORT = 18_080
OVERVIEW = "/v1/live?overview=true&top=all"
PATTERN = "/v1/live?subject=article:*"


def main() -> None:
    """Run the three measurements, and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    with running("valkey", quick=quick) as arena:
        _cost(arena)
        arena.clear()
        _processor(arena)
        arena.clear()
        for readers in (0, READERS):
            _way(arena, readers)
            arena.clear()


def _cost(arena: Arena) -> None:
    """Drain a backlog without and with readers, in pairs of alternating order, and print the ratios."""
    subjects = zipf(arena.events(4_000_000, 500_000))
    with worker(arena.url, arena.scratch, SHIPPED) as counting:  # it publishes the rules
        until(lambda: bool(arena.client.hget("tally:meta", "rules")), "the rules")
        counting.check()
    with Producer(arena.url) as producer:
        for subject in subjects:
            producer.emit(METRIC, subject)
        producer.flush(300)
    arena.save_as("backlog")
    ratios, costs = [], []
    for pair in range(2 if arena.quick else PAIRS):
        rates, spent = {}, {}
        for readers in (0, READERS) if pair % 2 else (READERS, 0):
            arena.restore("backlog")
            with serving(arena), _reading(arena, readers), worker(arena.url, arena.scratch, SHIPPED) as counting:
                started = wait_for_first_read(arena, counting)
                before = _spent(arena, counting)
                rates[readers] = len(subjects) / (wait_until_counted(arena, len(subjects), counting) - started)
                spent[readers] = _spent(arena, counting) - before
        ratios.append(rates[READERS] / rates[0])
        costs.append(spent[READERS] / spent[0])
        print(
            f"worker alone {rates[0]:,.0f} events/s, with {READERS} readers {rates[READERS]:,.0f}: {ratios[-1]:.3f}; "
            f"processor time {spent[0]:.2f} s, {spent[READERS]:.2f} s: {costs[-1]:.3f}"
        )
    print(
        f"medians of {len(ratios)} pairs: rate {statistics.median(ratios):.3f}, "
        f"processor time of worker and server {statistics.median(costs):.3f}"
    )


def _spent(arena: Arena, counting: Running) -> float:
    """Return the processor seconds that the worker and the server have used."""
    return sum(psutil.Process(counting.process.pid).cpu_times()[:2]) + server_cpu_seconds(arena.client)


def _processor(arena: Arena) -> None:
    """Print the processor time of the read service at 2,000 events a second, for one reader and for many."""
    seconds = 3 if arena.quick else 15
    for readers, path in ((1, OVERVIEW), (READERS, OVERVIEW), (1, PATTERN), (READERS, PATTERN)):
        with (
            worker(arena.url, arena.scratch, SHIPPED),
            serving(arena) as service,
            Producer(arena.url) as producer,
            _reading(arena, readers, path),
        ):
            process = psutil.Process(service.process.pid)
            before, began = sum(process.cpu_times()[:2]), time.monotonic()
            for subject in zipf(seconds * 2_000):
                producer.emit(METRIC, subject)
                time.sleep(0.0004)
            spent = (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began)
        print(f"read service, {readers} readers of {path}: {spent * 1000:.0f} ms of processor time a second")
        arena.clear()


def _way(arena: Arena, readers: int) -> None:
    """Print the time from `emit()` of marked events until a reader gets them, at 2,000 events a second."""
    seconds = 3 if arena.quick else 20
    with worker(arena.url, arena.scratch, SHIPPED) as counting, serving(arena), _reading(arena, readers) as crowd:
        emitted: dict[str, float] = {}
        took: list[float] = []
        watching = threading.Event()
        done = threading.Event()

        def watch() -> None:
            for update in follow(f"http://127.0.0.1:{PORT}", metric=METRIC, subject="marker:*"):
                watching.set()
                now = time.monotonic()
                took.extend(now - emitted[subject] for subject, _ in update.values if subject in emitted)
                if len(took) >= len(emitted) and done.is_set():
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        watching.wait(30)
        load = iter(zipf(seconds * 2_000))
        with Producer(arena.url) as producer:
            for tick in range(seconds * 100):
                for subject, _ in zip(load, range(20), strict=False):
                    producer.emit(METRIC, subject)
                marker = f"marker:{tick}"
                emitted[marker] = time.monotonic()
                producer.emit(METRIC, marker)
                time.sleep(0.01)
            done.set()
            producer.emit(METRIC, "marker:0")
        watcher.join(10)
        counting.check()
        milliseconds = sorted(each * 1000 for each in took[: len(emitted)])
        print(
            f"emit to reader, {readers} others: p50 {percentile(milliseconds, 0.5):.0f} ms, "
            f"p99 {percentile(milliseconds, 0.99):.0f} ms over {len(milliseconds)}; others: {crowd()}"
        )


@contextmanager
def serving(arena: Arena) -> Iterator[Running]:
    """Run the read service until the block ends, and yield the process when it answers."""
    with program("serve", "--redis", arena.url, "--port", str(PORT), log=arena.scratch / "serve.log") as service:
        until(lambda: _answers(service), "the read service")
        yield service


def _answers(service: Running) -> bool:
    service.check()
    connection = HTTPConnection("127.0.0.1", PORT, timeout=1)
    try:
        connection.request("GET", "/v1/overview")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextmanager
def _reading(arena: Arena, readers: int, path: str = OVERVIEW):  # noqa: ANN202  # yields a function that returns the readers' rate
    with ExitStack() as stack:
        if not readers:
            yield lambda: "none"
            return
        arguments = ("127.0.0.1", str(PORT), str(readers), path)
        crowd = stack.enter_context(module("live_clients", *arguments, scratch=arena.scratch))
        crowd.wait_for_line("reading")

        def say() -> str:
            crowd.say("")
            return crowd.finish().split("\n")[1]

        yield say


if __name__ == "__main__":
    main()
