"""From a file to counted: lines of an access log, and rows of Parquet, each read by `tallystream ingest`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

PROGRAM = Path(sys.executable).parent / "tallystream"
LINES = 500_000


def access_log(path: Path) -> None:
    """Write a log: paths by a Zipf law, 5,000 hosts, a day."""
    chosen = random.Random(1)
    weights = [1 / rank**1.05 for rank in range(1, 20_001)]
    paths = chosen.choices(range(20_000), weights, k=LINES)
    with path.open("w") as file:
        for number, page in enumerate(paths):
            hour, rest = divmod(number * 86_400 // LINES, 3600)
            file.write(
                f"10.0.{number % 20}.{chosen.randrange(250)} - - [17/May/2015:{hour:02}:{rest // 60:02}:{rest % 60:02} "
                f'+0000] "GET /page/{page} HTTP/1.1" 200 10 "-" "Mozilla/5.0"\n'
            )


def parquet(path: Path) -> None:
    """Write as many rows of plain views."""
    chosen = random.Random(2)
    weights = [1 / rank**1.05 for rank in range(1, 20_001)]
    subjects = [f"article:{page}" for page in chosen.choices(range(20_000), weights, k=2 * LINES)]
    times = [1_763_900_000 + row * 86_400 // (2 * LINES) for row in range(2 * LINES)]
    pq.write_table(pa.table({"subject": subjects, "at": times}), path)


def main() -> None:
    """Print what each took, from the start of the command to counted."""
    with TemporaryDirectory() as folder:
        log, rows = Path(folder) / "access.log", Path(folder) / "events.parquet"
        access_log(log)
        parquet(rows)
        up = subprocess.Popen(
            [PROGRAM, "up", "--data", Path(folder) / "data", "--port", "0"], stderr=subprocess.PIPE, text=True
        )
        try:
            assert up.stderr is not None  # noqa: S101
            url = next(line.split()[1] for line in up.stderr if line.startswith("server "))
            for name, file in (("log", log), ("parquet", rows)):
                began = time.perf_counter()
                command = [PROGRAM, "ingest", file, "--wait", "--json", "--redis", url]
                found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                seconds = time.perf_counter() - began
                print(f"{name:10} {found['events']:>9,} rows in {seconds:.2f} s: {found['events'] / seconds:,.0f}/s")
        finally:
            up.terminate()
            up.wait()


if __name__ == "__main__":
    main()
