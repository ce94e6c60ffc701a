"""The command line of the fault suite: `python -m tests.faults`, or `make faults SEEDS=200`.

It runs the scenario of each chosen row with each seed, and prints and writes a report.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tallystream
import tallystream_worker
from tests.faults import report
from tests.faults.fork_server import ForkServer
from tests.faults.rows import ROWS
from tests.faults.run import Result, run


def main() -> int:
    """Run the chosen rows and seeds, print and write the report, and return the exit status: 0 if no check failed."""
    asked = _arguments()
    chosen = sorted(ROWS) if asked.rows == "all" else [int(number) for number in asked.rows.split(",")]
    rows = [number for number in chosen if not ROWS[number].lacks]
    for number in chosen:
        if ROWS[number].lacks:
            print(f"SKIPPED: {ROWS[number].lacks}")
            if "CI" in os.environ:
                return 1
    first = secrets.randbelow(10**6) if asked.seed is None else asked.seed
    seeds = range(first, first + asked.seeds)
    print(f"rows {asked.rows}, seeds {seeds[0]} to {seeds[-1]}, {asked.jobs} at a time", flush=True)
    began = time.monotonic()
    results: list[Result] = []
    with ForkServer() as fork_server, ThreadPoolExecutor(asked.jobs) as lanes:
        todo = [(number, seed) for seed in seeds for number in rows]
        try:
            for result in lanes.map(lambda one: run(ROWS[one[0]], one[1], fork_server), todo):
                results.append(result)
                _say(result, len(results), len(todo), verbose=asked.verbose)
                if any(failure.check in asked.stop for failure in result.failures):
                    break
        except KeyboardInterrupt:
            print(f"interrupted after {len(results):,} of {len(todo):,}: finishing the scenarios that run", flush=True)
        lanes.shutdown(cancel_futures=True)
    print(report.text(results))
    print(f"in {time.monotonic() - began:,.0f} s; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(
        report.document(
            results,
            packages=[tallystream.__file__, tallystream_worker.__file__],
            rows=asked.rows,
            first_seed=first,
            seeds=asked.seeds,
            seconds=time.monotonic() - began,
        )
    )
    return 1 if any(result.failures for result in results) else 0


def _say(result: Result, done: int, of: int, *, verbose: bool) -> None:
    if result.failures:
        print(f"FAILED row {result.row} ({ROWS[result.row].name}), seed {result.seed}", flush=True)
        for failure in result.failures:
            print(f"    {failure}")
        print(f"    repeat: make faults ROWS={result.row} SEED={result.seed}", flush=True)
    elif verbose:
        drain = "-" if result.drain is None else f"{result.drain:.2f}"
        print(
            f"row {result.row} seed {result.seed}: {result.seconds:.2f} s, drain {drain}, {result.faults}", flush=True
        )
    elif done % 50 == 0:
        print(f"{done:,} of {of:,}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Inject faults; check the totals.")
    parser.add_argument("--rows", default="all", help="row numbers, separated by commas; default all")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds for each row")
    parser.add_argument("--seed", type=int, default=None, help="the first seed; default: drawn, and printed")
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), help="scenarios that run at once")
    parser.add_argument("--json", type=Path, default=Path("build/faults.json"), help="file for the report")
    parser.add_argument(
        "--stop", metavar="CHECKS", default="", help="stop at the first failure of one of these checks, e.g. BPD"
    )
    parser.add_argument("--verbose", action="store_true", help="print a line for each scenario")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
