"""Measure `tallystream ingest` on the lines of an access log and on rows of Parquet, until all events are counted.

    python -m benchmarks.ingest_files [LINES]

It also prints the processor time of each process, which depends less on other load than the rate does.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.http_load import cpu_seconds

PROGRAM = Path(sys.executable).parent / "tallystream"
LINES = 500_000


def access_log(path: Path, lines: int) -> None:
    """Write an access log of one day with this number of lines, 5,000 hosts, and paths drawn by Zipf's law."""
    chosen = random.Random(1)
    weights = [1 / rank**1.05 for rank in range(1, 20_001)]
    paths = chosen.choices(range(20_000), weights, k=lines)
    with path.open("w") as file:
        for number, page in enumerate(paths):
            hour, rest = divmod(number * 86_400 // lines, 3600)
            file.write(
                f"10.0.{number % 20}.{chosen.randrange(250)} - - [17/May/2015:{hour:02}:{rest // 60:02}:{rest % 60:02} "
                f'+0000] "GET /page/{page} HTTP/1.1" 200 10 "-" "Mozilla/5.0"\n'
            )


def parquet(path: Path, rows: int) -> None:
    """Write a Parquet file of rows with a subject and a time, with 20,000 subjects drawn by Zipf's law."""
    chosen = random.Random(2)
    weights = [1 / rank**1.05 for rank in range(1, 20_001)]
    subjects = [f"article:{page}" for page in chosen.choices(range(20_000), weights, k=rows)]
    times = [1_763_900_000 + row * 86_400 // rows for row in range(rows)]
    pq.write_table(pa.table({"subject": subjects, "at": times}), path)


def main() -> None:
    """Ingest both files, and print for each the time from the start of the command until all events are counted."""
    lines = int(sys.argv[1]) if len(sys.argv) > 1 else LINES
    with TemporaryDirectory() as folder:
        log, rows = Path(folder) / "access.log", Path(folder) / "events.parquet"
        access_log(log, lines)
        parquet(rows, 2 * lines)
        up = subprocess.Popen(
            [PROGRAM, "up", "--data", Path(folder) / "data", "--port", "0"], stderr=subprocess.PIPE, text=True
        )
        try:
            assert up.stderr is not None  # noqa: S101
            url = next(line.split()[1] for line in up.stderr if line.startswith("server "))
            for name, file in (("log", log), ("parquet", rows)):
                _ingest(name, file, url, psutil.Process(up.pid))
        finally:
            up.terminate()
            up.wait()


def _ingest(name: str, file: Path, url: str, up: psutil.Process) -> None:
    processes = {"worker": up, "server": next(child for child in up.children() if "server" in child.name())}
    before = {who: cpu_seconds(process) for who, process in processes.items()}
    reader, began = _of_children(), time.perf_counter()
    command = [PROGRAM, "ingest", file, "--wait", "--json", "--redis", url]
    events = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["events"]
    seconds = time.perf_counter() - began
    spent = {"reader": _of_children() - reader}
    spent |= {who: cpu_seconds(process) - before[who] for who, process in processes.items()}
    shares = ", ".join(f"{who} {each / events * 1e6:.2f}" for who, each in spent.items())
    print(f"{name:10} {events:>9,} rows in {seconds:.2f} s: {events / seconds:,.0f}/s; us of processor a row: {shares}")


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
