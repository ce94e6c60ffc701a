"""The soak: a sustained load with random faults, in which no event may be lost and memory must stay flat.

Run: `python -m tests.faults.soak`, or `make soak MINUTES=10`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream_worker.server.errors import EmbeddedServerError
from tests.faults import checks
from tests.faults.fork_server import ForkServer
from tests.faults.memory import Memory, is_flat
from tests.faults.world import World
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.fork_server import Child

SUBJECTS = 10_000
PRODUCERS = 2
WORKERS = 2
RETENTION = {"age": "1h", "bytes": 8 * 2**20}
"""The retention of each partition: a stream reaches this size within seconds, and is then trimmed to it."""


class Soak:
    """One run of the soak.

    Args:
        world: The world to run in; nothing may be started in it yet.
        seconds: The length of the load in seconds.
        rate: The load of all producers together, in events a second.
    """

    def __init__(self, world: World, seconds: float, rate: float) -> None:
        self._world, self._seconds, self._rate = world, seconds, rate
        self._workers: list[Child] = []
        self._producers: list[Child] = []

    def run(self) -> dict[str, Any]:
        """Run the load with random faults, wait until everything is counted, and return the report."""
        world = self._world
        world.serve("--auto-aof-rewrite-min-size", "16mb", kind="valkey")
        world.watch.sums = False
        self._paths = [world.proxy(), world.proxy()]  # of the producers, of the workers
        self._workers = [self._worker(number) for number in range(WORKERS)]
        self._producers = [self._producer(number) for number in range(PRODUCERS)]
        memory = Memory(self._roles)
        memory.start()
        began = time.monotonic()
        while (left := began + self._seconds - time.monotonic()) > 0:
            time.sleep(min(left, world.chance.uniform(1.0, 5.0)))
            if began + self._seconds - time.monotonic() > 1.0:
                self._inject()
        memory.stop()
        drain = self._drain()
        return self._report(memory, drain)

    def _worker(self, number: int) -> Child:
        url = self._paths[1].url
        return self._world.worker(f"w{number}", url=url, claim_idle=2.0, max_keys=3000, retention=RETENTION)

    def _producer(self, number: int) -> Child:
        ledger = str(self._world.folder / f"ledger-{number}.json")
        arguments = {"url": self._paths[0].url, "ledger": ledger, "seed": self._world.chance.getrandbits(32)}
        return self._world.process("steady", **arguments, rate=self._rate / PRODUCERS, subjects=SUBJECTS)

    def _roles(self) -> Iterator[tuple[str, int]]:
        yield from (("worker", child.pid) for child in self._workers)
        yield from (("producer", child.pid) for child in self._producers)
        with contextlib.suppress(EmbeddedServerError):  # the server is being restarted
            yield "server", self._world.server.pid

    def _inject(self) -> None:
        world = self._world
        number = world.chance.randrange(WORKERS)
        match world.chance.choice(["kill", "stop", "cut", "cut", "restart", "flush"]):
            case "kill":
                world.kill(self._workers[number])
                self._workers[number] = self._worker(number)
            case "stop":
                self._workers[number].signal(signal.SIGSTOP)
                time.sleep(world.chance.uniform(0.2, 3.0))
                self._workers[number].signal(signal.SIGCONT)
                world.inject("SIGSTOP of a worker")
            case "cut":
                world.chance.choice(self._paths).cut()
                world.inject("cut connections")
            case "restart":
                world.server.stop()
                world.inject("restart of the server")
                world.restart_server()
            case "flush":
                world.harness.client.script_flush()
                world.inject("SCRIPT FLUSH")

    def _drain(self) -> float:
        """Stop the producers and wait until everything is counted; return the seconds this took."""
        world, began = self._world, time.monotonic()
        for child in self._producers:
            child.signal(signal.SIGTERM)
        for child in self._producers:
            status = world.ends(child, 180)
            world.expect(status == 0, f"{child.name} ended with {status}: {child.said()[-2000:]}")
        until(lambda: checks.rests(world.harness.client, world.harness.layout), 120, what="rest")
        world.watch.stop()
        return time.monotonic() - began

    def _report(self, memory: Memory, drain: float) -> dict[str, Any]:
        world = self._world
        told = [json.loads(path.read_text()) for path in sorted(world.folder.glob("ledger-*.json"))]
        expected: Counter[str] = Counter()
        for one in told:
            expected.update(one["sums"])
        totals = {counter: total for counter, total in world.harness.totals().items() if total}
        off = [totals.get((metric, s), 0) - n for metric in checks.PAIR for s, n in expected.items()]
        with Totals(world.server.url) as reader:
            unaccounted = reader.run(query_ledger(reader.deployment.layout)).unaccounted
        seconds = max(one["seconds"] for one in told)
        events = 2 * sum(expected.values())
        thirds = {role: {"middle": round(a, 1), "last": round(b, 1)} for role, (a, b) in memory.thirds().items()}
        growing = [role for role, (a, b) in memory.thirds().items() if not is_flat(a, b)]
        lost, doubled = -sum(n for n in off if n < 0), sum(n for n in off if n > 0)
        watched = [str(failure) for failure in world.watch.failures]
        return {
            "held": not (lost or doubled or unaccounted or growing or watched),
            "seconds": round(seconds, 1),
            "events": events,
            "events_per_second": round(events / seconds),
            "faults": dict(world.faults),
            "lost": lost,
            "doubled": doubled,
            "unaccounted": unaccounted,
            "drain_seconds": round(drain, 2),
            "resident_mib": thirds,
            "growing": growing,
            "watch": watched,
            "looks_at_pairs": world.watch.looks,
            "resent_entries": sum(one["statistics"]["resent_entries"] for one in told),
        }


def soak(seconds: float, rate: float, seed: int) -> dict[str, Any]:
    """Run a soak with a load of `rate` events a second for `seconds`; return its report."""
    with (
        ForkServer() as fork_server,
        tempfile.TemporaryDirectory(prefix="tally-soak-", ignore_cleanup_errors=True) as folder,
        World(Path(folder), random.Random(f"soak/{seed}"), fork_server) as world,
    ):
        return Soak(world, seconds, rate).run() | {"seed": seed, "rate": rate}


def text(report: dict[str, Any]) -> str:
    """Return the report as text."""
    sizes = ", ".join(f"{role} {third['middle']} -> {third['last']}" for role, third in report["resident_mib"].items())
    verdict = "passed" if report["held"] else " ".join(["FAILED", *report["growing"], *report["watch"]])
    return (
        f"{report['events']:,} events in {report['seconds']:,} s: {report['events_per_second']:,} events/s"
        f" ({report['rate']:,.0f} wanted), {sum(report['faults'].values())} faults {report['faults']}"
        f"\nlost {report['lost']:,}, doubled {report['doubled']:,}, unaccounted {report['unaccounted']:,};"
        f" {report['looks_at_pairs']:,} readings of the pairs; drained in {report['drain_seconds']} s"
        f"\nresident MiB, middle third -> last third: {sizes}"
        f"\n{verdict}"
    )


def main() -> int:
    """Run the soak that the options describe, print and write its report; return 0 if every check passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description="A sustained load with faults.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=100_000, help="events a second")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--json", type=Path, default=Path("build/soak.json"))
    asked = parser.parse_args()
    print(f"seed {asked.seed}: {asked.minutes:g} minutes at {asked.rate:,.0f} events/s", flush=True)
    report = soak(60 * asked.minutes, asked.rate, asked.seed)
    print(text(report))
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(report, indent=2))
    return 0 if report["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
