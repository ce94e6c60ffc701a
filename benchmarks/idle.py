"""Measure the cost of a worker without events to count: `python -m benchmarks.idle [PARTITIONS ...]`; needs psutil."""

import os
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError
from tallystream_worker.server.embedded import EmbeddedServer

from .processes import TOTALS_ONLY, worker
from .server import until

_SECONDS = 20


def measure(partitions: int) -> tuple[float, float, int, float]:
    """Run an idle worker for 20 s; return the percent of a core of worker and server, its threads and resident MiB."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder) / "data") as server:
        client = connect(server.url)
        layout = Deployment.create_or_load(client, partitions).layout
        os.environ["TALLYSTREAM_REDIS_PARTITIONS"] = str(partitions)
        with worker(server.url, Path(folder), TOTALS_ONLY) as running:
            until(lambda: int(client.info("clients")["blocked_clients"]) >= layout.partitions, "every thread to wait")
            ours, theirs = psutil.Process(running.process.pid), psutil.Process(server.pid)
            before, began = (_spent(ours), _spent(theirs)), time.monotonic()
            time.sleep(_SECONDS)
            elapsed = (time.monotonic() - began) / 100
            spent = (_spent(ours) - before[0]) / elapsed, (_spent(theirs) - before[1]) / elapsed
            figures = *spent, ours.num_threads(), ours.memory_info().rss / 2**20
        client.close()
    return figures


def _spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> int:
    """Measure each number of partitions, and print a table; return 2 if an argument is wrong."""
    table = Table("partitions", "worker, % of a core", "server, % of a core", "threads", "resident MiB")
    try:
        for partitions in [int(text) for text in sys.argv[1:]] or [4, 64]:
            ours, theirs, threads, resident = measure(partitions)
            table.add_row(str(partitions), f"{ours:.2f}", f"{theirs:.2f}", str(threads), f"{resident:.0f}")
    except (ValueError, ConfigurationError) as error:
        print(error, file=sys.stderr)
        return 2
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
