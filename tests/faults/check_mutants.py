"""The fault suite must catch each mutant of the product, for the right reason.

Run: `python -m tests.faults.check_mutants`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tests.faults.mutants import MUTANTS, Mutant, MutationError

BUILD: Final = Path("build/mutants")
SEEDS: Final = 12
"""The most seeds for each row that a mutant may survive: a race is not lost every time."""

PATIENCE: Final = 300.0


class Survived(Exception):
    """The suite did not catch a mutant, or not for what is wrong with it."""


def bite(mutant: Mutant, seed: int = 1) -> str:
    """Make a mutant and run its rows against it; return what caught it.

    Raises:
        MutationError: it cannot be made.
        Survived: it was not caught.
    """
    folder = mutant.make(BUILD / mutant.name)
    found = folder / "faults.json"
    command = [sys.executable, "-m", "tests.faults", "--rows", ",".join(map(str, mutant.rows)), "--seed", str(seed)]
    command += ["--seeds", str(SEEDS), "--stop", mutant.checks, "--json", str(found)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder.resolve()), "."])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if not found.exists():
        raise Survived(f"{mutant.name}: the suite did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(found.read_text())
    strangers = [path for path in report["run"]["packages"] if not path.startswith(str(folder.resolve()))]
    if strangers:
        raise Survived(f"{mutant.name}: not the mutant was run, but {strangers}")
    failures = [(one["row"], one["seed"], failure) for one in report["failed"] for failure in one["failures"]]
    for row, its_seed, failure in failures:
        if failure["check"] in mutant.checks:
            return f"row {row}, seed {its_seed}, {failure['check']}: {failure['message'][:200]}"
    told = "; ".join(f"{failure['check']}: {failure['message'][-300:]}" for _, _, failure in failures)
    raise Survived(
        f"{mutant.name}: not caught by {mutant.checks} in {report['summary']['scenarios']} scenarios; {told}"
    )


def main() -> int:
    """Try all mutants, or those that are named; return 0 if all were caught."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.check_mutants",
        description="Break the product; see whether the fault suite notices.",
    )
    parser.add_argument("names", nargs="*", help="mutants; default all")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not asked.names or mutant.name in asked.names]
    survivors = 0
    for mutant in chosen:
        try:
            print(f"caught    {mutant.name:<28} {bite(mutant, asked.seed)}", flush=True)
        except (Survived, MutationError) as error:
            survivors += 1
            print(f"SURVIVED  {error}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
