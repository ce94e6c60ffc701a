"""Compare this tree with another checkout, case by case: `python -m benchmarks.compare ../before`.

The other checkout needs its own environment (`uv sync --group bench` there). Each run is a separate process, and the
runs alternate (here, there, there, here, and so on), so that other load on the machine affects both. The ratio of a
pair is the rate here divided by the rate there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .measure import RATE
from .suite import CASES

_HERE = Path(__file__).parents[1]
_LESS_IS_BETTER = ("emit_median_ns", "visible_p50_ms")


def main() -> int:
    """Run the pairs and print the ratios; return 1 if every ratio of a case is below `--bar`, otherwise 0."""
    arguments = _parse()
    groups = arguments.only.split(",") if arguments.only else sorted({case.group for case in CASES if case.ours})
    ratios: dict[str, list[float]] = {}
    console = Console(stderr=True)
    for group in groups:
        for pair in range(arguments.pairs):
            trees = [_HERE, arguments.before.resolve()]
            with console.status(f"{group}: pair {pair + 1} of {arguments.pairs}"):
                found = {tree: _run(tree, group, arguments) for tree in (trees if pair % 2 == 0 else trees[::-1])}
            here, there = (found[tree] for tree in trees)
            for name in here.keys() & there.keys():
                ratios.setdefault(name, []).append(here[name] / there[name])
    rows = [_row(name, each) for name, each in sorted(ratios.items())]
    if arguments.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        _print(rows, arguments)
    return int(any(row["highest"] < arguments.bar for row in rows))


def _run(tree: Path, group: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one round of a group in a checkout; return a figure for each case, of which a higher one is better."""
    command = [str(tree / ".venv" / "bin" / "python"), "-m", "benchmarks", "--only", group, "--repeats", "1", "--json"]
    command += ["--server", arguments.server] + ["--quick"] * arguments.quick
    done = subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    measured = {}
    for case in json.loads(done.stdout)["cases"]:
        if case.get("skipped"):
            continue
        figure = _figure(case)
        if figure is not None:
            measured[f"{group}. {case['name']} ({case['load']})"] = figure
    return measured


def _figure(case: dict[str, Any]) -> float | None:
    figures = case["figures"]
    for name in _LESS_IS_BETTER:
        if name in figures:
            return 1.0 / float(figures[name]["median"])
    rate = figures.get(RATE)
    return None if rate is None else float(rate["median"])


def _row(name: str, ratios: list[float]) -> dict[str, Any]:
    return {
        "case": name,
        "pairs": len(ratios),
        "median": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def _print(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    table = Table(title=f"Ratios of this tree to {arguments.before}; above 1 is faster here")
    for heading in ("case", "pairs", "median", "lowest", "highest", ""):
        table.add_column(heading)
    for row in rows:
        slower = "slower" if row["highest"] < arguments.bar else ""
        figures = (f"{row[name]:.3f}" for name in ("median", "lowest", "highest"))
        table.add_row(row["case"], str(row["pairs"]), *figures, slower)
    Console().print(table)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description="Compare this tree with another checkout, case by case, in interleaved pairs.",
        epilog="Example: python -m benchmarks.compare ../before --only e,f --pairs 7",
    )
    parser.add_argument("before", type=Path, help="the other checkout, with an environment in .venv")
    parser.add_argument("--only", help="letters of the cases, such as e,f (default: all of tallystream)")
    parser.add_argument("--pairs", type=int, default=7, help="number of pairs for each case (default 7)")
    parser.add_argument("--bar", type=float, default=0.95, help="a case is slower if all its ratios are below")
    parser.add_argument("--server", choices=("valkey", "redis"), default="valkey")
    parser.add_argument("--quick", action="store_true", help="small loads")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
