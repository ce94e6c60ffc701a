"""The command line of the machine: `python -m tests.scenarios`, or `make scenarios SEEDS=200`."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from tests.faults.table import faketime
from tests.scenarios import machine
from tests.scenarios.known import UNDEFINED, Known, avoid
from tests.scenarios.script import parse
from tests.scenarios.shrink import shortest
from tests.scenarios.world import Hosts

if TYPE_CHECKING:
    from tests.scenarios.machine import Played
    from tests.scenarios.script import Script

FOLDER = Path("build/scenarios")


def main() -> int:
    """Play the scripts of the chosen seeds, or one file, and return the exit status: 0 if every answer was right."""
    asked = _arguments()
    signal.signal(signal.SIGTERM, _interrupt)
    if faketime() is None:
        print("SKIPPED: the clocks need libfaketime (apt install faketime)")
        return 1 if "CI" in os.environ else 0
    avoid(
        {Known[name] for name in asked.avoid}
        | (UNDEFINED if asked.hunt else set(Known) - {Known[name] for name in asked.allow})
    )
    if asked.play is not None:
        scripts = [parse(asked.play.read_bytes())]
    else:
        first = secrets.randbelow(10**6) if asked.seed is None else asked.seed
        print(f"seeds {first} to {first + asked.seeds - 1}, {asked.jobs} at a time", flush=True)
        without = frozenset(asked.without)
        scripts = [
            machine.draw(seed, without=without, only=tuple(asked.only)) for seed in range(first, first + asked.seeds)
        ]
    began = time.monotonic()
    results = _play_all(scripts, asked)
    failed = [result for result in results if result.failure is not None]
    checks = sum(result.checks for result in results)
    steps = sum(len(result.script.steps) for result in results)
    print(f"{len(results):,} scripts, {steps:,} moves, {checks:,} answers compared, {len(failed)} scripts failed")
    print(f"in {time.monotonic() - began:,.0f} s; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return 1 if failed else 0


def _interrupt(*_: object) -> None:
    """End as on Ctrl-C, so that no server and no host is left when a time limit ends this process."""
    raise KeyboardInterrupt


def _play_all(scripts: list[Script], asked: argparse.Namespace) -> list[Played]:
    lanes: SimpleQueue[Hosts] = SimpleQueue()
    results: list[Played] = []

    def play(script: Script) -> Played:
        hosts = lanes.get()
        try:
            played = machine.play(script, hosts)
            if played.failure is not None:
                _report(played, hosts, asked)
            elif asked.verbose:
                print(f"seed {script.seed}: {played.seconds:.1f} s, {played.checks} answers", flush=True)
            return played
        finally:
            lanes.put(hosts)

    every = [Hosts() for _ in range(asked.jobs)]
    for hosts in every:
        lanes.put(hosts)
    with ThreadPoolExecutor(asked.jobs) as threads:
        try:
            results.extend(threads.map(play, scripts))
        finally:
            threads.shutdown(cancel_futures=True)
            for hosts in every:
                hosts.__exit__()
    return results


def _report(played: Played, hosts: Hosts, asked: argparse.Namespace) -> None:
    """Shorten a script that failed, store it, and print how to play it again."""
    script = played.script
    if asked.shrink and asked.play is None:
        kind = played.failure.kind if played.failure is not None else ""

        def fails(candidate: Script) -> bool:
            found = machine.play(candidate, hosts).failure
            return found is not None and found.kind == kind

        script = shortest(script, fails, asked.shrink)
        again = machine.play(script, hosts)
        played = again if again.failure is not None else played
    assert played.failure is not None
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"{script.seed}.json"
    file.write_text(script.text() + "\n")
    lines = [f"FAILED seed {script.seed}, step {played.failure.step}: {played.failure.problem}"]
    lines += [f"    {line}" for line in script.text().splitlines()]
    hunt = " --hunt" if asked.hunt else ""
    chosen = [("--allow", asked.allow), ("--avoid", asked.avoid), ("--without", asked.without), ("--only", asked.only)]
    options = hunt + "".join(f" {name} {' '.join(values)}" for name, values in chosen if values)
    lines.append(f'    repeat: make scenarios SEED={script.seed} ARGS="{options.strip()}"')
    lines.append(f'    the script: make scenarios ARGS="--play {file}{hunt}"')
    print("\n".join(lines), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios", description="Play scenarios; check all answers.")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--seed", type=int, default=None, help="the first seed; default: drawn, and printed")
    parser.add_argument("--play", type=Path, default=None, help="play this script, instead of seeds")
    parser.add_argument("--jobs", type=int, default=2, help="scenarios at once")
    parser.add_argument(
        "--shrink", type=float, default=120, help="seconds for shortening a script that fails; 0: do not"
    )
    parser.add_argument("--hunt", action="store_true", help="do not avoid known faults")
    parser.add_argument("--allow", nargs="*", default=[], help="known faults that are not avoided, by name")
    parser.add_argument("--avoid", nargs="*", default=[], help="with --hunt: known faults that are avoided, by name")
    what = "left out: moves, settings of metrics, fields of events, zones; doubles: windows that are listed twice"
    parser.add_argument("--only", nargs="*", default=[], help="moves that a script has, and the staples")
    parser.add_argument("--without", nargs="*", default=[], help=what)
    parser.add_argument("--verbose", action="store_true", help="print a line for each script")
    return parser.parse_args()
