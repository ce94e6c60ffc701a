"""The command line of the benchmarks: run the cases, print the table, and write results.json and results.svg."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from . import chart, costs, report, suite
from .measure import Skipped
from .server import running

_HERE = Path(__file__).parent
_GROUPS = sorted({case.group for case in suite.CASES})


def main() -> int:
    """Run the chosen cases, print and write their results, and return the exit status.

    A full run without `--into` also measures the constants of `tallystream plan`.
    """
    arguments = _parse()
    cases = [case for case in suite.CASES if case.group in arguments.only]
    progress = Console(stderr=True)
    try:
        with (
            running(arguments.server, quick=arguments.quick) as arena,
            progress.status("starting") as status,
        ):
            outcomes = list(suite.run(arena, cases, arguments.repeats, status.update))
            results = report.document(arena.client, outcomes, repeats=arguments.repeats, quick=arguments.quick)
    except Skipped as reason:
        progress.print(f"Cannot run the benchmark: {reason}")
        return 1
    except KeyboardInterrupt:
        progress.print("Interrupted; no results were written.")
        return 130
    text = json.dumps(results, indent=2)
    if arguments.json:
        sys.stdout.write(text + "\n")
    else:
        report.print_tables(Console(), results)
    partial = arguments.quick or len(cases) < len(suite.CASES)
    folder: Path | None = arguments.into or (None if partial else _HERE)
    if folder is not None:
        (folder / "results.json").write_text(text + "\n", encoding="utf-8")
        chart.draw(results, folder / "results.svg")
        progress.print(f"Written: {folder / 'results.json'} and {folder / 'results.svg'}")
    if not partial and arguments.into is None:
        with progress.status("costs") as status:
            costs.write(costs.collect(status.update))
        progress.print(f"Written: {costs.TARGET}, the constants of `tallystream plan`")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Count events in different ways on one server, and compare the rates.",
        epilog="Example: python -m benchmarks --quick --only a,c,e",
    )
    parser.add_argument("--quick", action="store_true", help="small loads, whose figures are not fit to quote")
    parser.add_argument(
        "--only", type=_groups, default=_GROUPS, metavar="a,b", help=f"cases out of {','.join(_GROUPS)}"
    )
    parser.add_argument("--repeats", type=_at_least_one, default=3, help="number of rounds over all cases (default 3)")
    parser.add_argument(
        "--server",
        choices=("valkey", "redis"),
        default="valkey",
        help="valkey from the wheel (default), or redis-server on PATH",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument(
        "--into",
        type=_folder,
        help="folder for results.json and results.svg (default: benchmarks/ after a full run, else none)",
    )
    return parser.parse_args()


def _groups(text: str) -> list[str]:
    chosen = [part.strip() for part in text.split(",")]
    unknown = [part for part in chosen if part not in _GROUPS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no case {unknown[0]!r}: the cases are {', '.join(_GROUPS)}")
    return chosen


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder")
    return Path(text)


if __name__ == "__main__":
    sys.exit(main())
