"""Measure the gain of a second worker process when the server is not the limit; needs psutil.

Run: `python -m benchmarks.workers`.

Almost all work of the load is folding: an entry has events of ten subjects and a thousand different minutes, so the
producer cannot sum them, and a batch changes only ten counters. A backlog is drained by one process and by two, in
turn. Two workers and a server need three cores. On fewer cores, the rate is limited by the cores, but the processor
time still shows the gain: with a core for each, two workers have twice the rate if an event costs as much as with one.
"""

import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import redis
from rich.console import Console
from rich.table import Table

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.producing.producer import Producer
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream_worker.server.embedded import EmbeddedServer

from .processes import TOTALS_ONLY, program
from .server import until

_EVENTS = 600_000
_PARTITIONS = 8
_ROUNDS = 3
_MINUTES = 1000


def measure(workers: int) -> tuple[float, float, float, float]:
    """Drain a backlog with a number of worker processes, and return four figures.

    They are the events a second, the microseconds of the workers and of the server for each event, and the processor
    time of the least busy worker as a fraction of the mean.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(EmbeddedServer(folder / "data"))
        client = connect(server.url)
        stack.callback(client.close)
        Deployment.create_or_load(client, _PARTITIONS)
        os.environ["TALLYSTREAM_REDIS_PARTITIONS"] = str(_PARTITIONS)
        processes = []
        for number in range(workers):
            command = ("worker", "--redis", server.url, "--config", str(TOTALS_ONLY), "--name", f"w{number}")
            running = stack.enter_context(program(*command, log=folder / f"{number}.log"))
            processes.append(psutil.Process(running.process.pid))
        until(lambda: _blocked(client) >= workers * _PARTITIONS, "every thread to wait")
        for process in processes:
            process.suspend()
        with Producer(server.url, linger=5.0, buffer_bytes=2**30) as producer:
            now = time.time()
            for number in range(_EVENTS):
                producer.emit("view", f"article:{number % 10}", at=now - number // 10 % _MINUTES * 60)
            producer.flush(300)
        of_server = psutil.Process(server.pid)
        spent, began = [_spent(each) for each in (of_server, *processes)], time.perf_counter()
        for process in processes:
            process.resume()
        with Totals(server.url) as totals:
            until(lambda: totals.run(query_ledger(totals.deployment.layout)).waiting == 0, "the end", interval=0.05)
        seconds = time.perf_counter() - began
        theirs, *ours = (_spent(each) - before for each, before in zip((of_server, *processes), spent, strict=True))
        share = min(ours) / statistics.mean(ours)
    return _EVENTS / seconds, sum(ours) / _EVENTS * 1e6, theirs / _EVENTS * 1e6, share


def _blocked(client: redis.Redis) -> int:
    return int(client.info("clients")["blocked_clients"])


def _spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> int:
    """Measure one worker and two in three rounds, and print the medians."""
    found: dict[int, list[tuple[float, float, float, float]]] = {1: [], 2: []}
    for _ in range(_ROUNDS):
        for workers, samples in found.items():
            samples.append(measure(workers))
    table = Table("workers", "events/s", "workers, us an event", "server, us an event", "least busy worker, of mean")
    medians = {workers: list(map(statistics.median, zip(*rows, strict=True))) for workers, rows in found.items()}
    for workers, (rate, ours, theirs, share) in medians.items():
        table.add_row(str(workers), f"{rate:,.0f}", f"{ours:.2f}", f"{theirs:.2f}", f"{share:.0%}")
    console = Console()
    console.print(table)
    console.print(
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}: {medians[2][0] / medians[1][0]:.2f} times the "
        f"rate of one; by processor time, {2 * medians[1][1] / medians[2][1]:.2f} times with a core for each"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
