"""Check that the fault suite catches each mutant of the product, by the check that the mutant breaks.

Run: `python -m tests.faults.check_mutants`, or `make mutants`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import pytest

from tests.faults.mutants import MUTANTS, Mutant, MutationError

BUILD: Final = Path("build/mutants")
SEEDS: Final = 12
"""The number of seeds for each row; several, because a race does not go wrong every time."""

EXAMPLES: Final = 20
"""The number of examples that a property test draws against a mutant: more than in each run of the tests."""

PATIENCE: Final = 300.0
"""The most seconds that the suite may take for a mutant."""


class Survived(Exception):
    """The fault suite did not fail on a mutant, or only by another check than the one that the mutant breaks."""


def bite(mutant: Mutant, seed: int = 1) -> str:
    """Make a mutant and run its rows of the fault suite, or its tests, against it; return the first failure.

    Raises:
        MutationError: an edit of the mutant does not apply.
        Survived: nothing failed, or another check than the mutant's.
    """
    folder = mutant.make(BUILD / mutant.name)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder.resolve()), "."])}
    if mutant.tests:
        return _bite_tests(mutant, environment)
    found = folder / "faults.json"
    command = [sys.executable, "-m", "tests.faults", "--rows", ",".join(map(str, mutant.rows)), "--seed", str(seed)]
    command += ["--seeds", str(SEEDS), "--stop", mutant.checks, "--json", str(found)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if not found.exists():
        raise Survived(f"{mutant.name}: the suite did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(found.read_text())
    strangers = [path for path in report["run"]["packages"] if not path.startswith(str(folder.resolve()))]
    if strangers:
        raise Survived(f"{mutant.name}: the suite ran other packages than the mutant's: {strangers}")
    failures = [(one["row"], one["seed"], failure) for one in report["failed"] for failure in one["failures"]]
    for row, its_seed, failure in failures:
        if failure["check"] in mutant.checks:
            return f"row {row}, seed {its_seed}, {failure['check']}: {failure['message'][:200]}"
    told = "; ".join(f"{failure['check']}: {failure['message'][-300:]}" for _, _, failure in failures)
    raise Survived(
        f"{mutant.name}: not caught by {mutant.checks} in {report['summary']['scenarios']} scenarios; {told}"
    )


def _bite_tests(mutant: Mutant, environment: dict[str, str]) -> str:
    """Run the tests of a mutant in another temporary folder; return the first failed assertion.

    Without it, pytest would take the rights of its common folder from other users, and so from the PostgreSQL server of
    tests that run at the same time.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *mutant.tests]
    environment.setdefault("TALLYSTREAM_EXAMPLES", str(EXAMPLES))
    with tempfile.TemporaryDirectory(prefix="mutant-", ignore_cleanup_errors=True) as folder:
        command.append(f"--basetemp={folder}/t")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    failed = [line for line in done.stdout.splitlines() if line.startswith("E ")]
    if done.returncode != pytest.ExitCode.TESTS_FAILED or not failed:
        raise Survived(f"{mutant.name}: its tests ended with status {done.returncode}:\n{done.stdout[-2000:]}")
    return failed[0].removeprefix("E").strip()[:200]


def main() -> int:
    """Check all mutants, or those named on the command line; return 0 if the suite caught all of them."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.check_mutants",
        description="Break the product, and check that the fault suite fails.",
    )
    parser.add_argument("names", nargs="*", help="names of mutants; default all")
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
        except subprocess.TimeoutExpired as error:
            survivors += 1
            print(f"SURVIVED  {mutant.name}: its suite did not end in {error.timeout:.0f} s", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
