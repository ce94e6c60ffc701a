"""Run the scenario of one row with one seed, check the system afterwards, and return the result."""

from __future__ import annotations

import random
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.faults import checks
from tests.faults.failure import ExpectationFailed, Failure
from tests.faults.world import World

if TYPE_CHECKING:
    from tests.faults.fork_server import ForkServer
    from tests.faults.table import Row


@dataclass
class Result:
    """The result of a row's scenario with a seed; figures are in events unless noted.

    Attributes:
        row: The row's number.
        seed: The seed.
        faults: The number of injections of each fault.
        confirmed: Events whose append was confirmed to their producer.
        unknown: Events whose append was not confirmed: they may be in the stream or not.
        refused: Events that a full buffer refused and reported as dropped.
        lost: Events that were confirmed but are missing from the totals.
        allowed: The reason that the row allows lost events; empty if it does not.
        doubled: Events in the totals beyond those that were emitted.
        unaccounted: Events that the ledger does not account for.
        drain: Seconds from the end of the last fault until no entry was undelivered or pending.
        seconds: Seconds that the whole run took.
        looks: The number of readings of a partition by the watch.
        failures: The checks that failed.
    """

    row: int
    seed: int
    faults: dict[str, int] = field(default_factory=dict)
    confirmed: int = 0
    unknown: int = 0
    refused: int = 0
    lost: int = 0
    allowed: str = ""
    doubled: int = 0
    unaccounted: int = 0
    drain: float | None = None
    seconds: float = 0.0
    looks: int = 0
    failures: list[Failure] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Return the result as a dictionary that can be written as JSON."""
        return asdict(self)


def run(row: Row, seed: int, fork_server: ForkServer) -> Result:
    """Run a row's scenario with the random choices of a seed, then check everything that the row claims.

    Exceptions become failures of the result, so that one broken scenario does not end a run of thousands.
    """
    result = Result(row.number, seed)
    began = time.monotonic()
    chance = random.Random(f"{row.number}/{seed}")
    with (
        tempfile.TemporaryDirectory(prefix="tally-fault-", ignore_cleanup_errors=True) as folder,
        World(Path(folder), chance, fork_server) as world,
    ):
        try:
            row.scenario(world)
            result.drain = world.settle()
            _check(row, world, result)
        except ExpectationFailed as error:
            result.failures.append(Failure("X", str(error)))
        except AssertionError as error:  # from `until`: a condition did not become true in time
            result.failures.append(Failure("D", str(error) + _outputs(world)))
        except Exception:  # noqa: BLE001  # see the docstring
            result.failures.append(Failure("error", traceback.format_exc()))
        if hasattr(world, "watch"):
            world.watch.stop()
            result.failures += world.watch.failures
            result.looks = world.watch.looks
        result.faults = dict(world.faults)
    result.seconds = time.monotonic() - began
    return result


def _check(row: Row, world: World, result: Result) -> None:
    account = world.account()
    totals = world.harness.totals()
    result.confirmed, result.unknown = 2 * account.pairs, 2 * account.unknown_pairs
    result.refused = 2 * account.refused_pairs
    balance = checks.balance(account, totals, exempt=world.exempt, loss=world.loss)
    result.lost, result.doubled, result.allowed = balance.lost, balance.doubled, world.loss
    result.unaccounted, unaccounted = checks.books(world.totals())
    result.failures += balance.failures + unaccounted
    # If a pair may be split over two entries and entries may be lost, half a pair may be lost.
    if "P" in row.checks and (world.watch.pairs or not world.loss):
        result.failures += checks.pairs(totals, exempt=world.exempt)
    hours = checks.windows(world.harness.client, world.harness.layout)
    result.failures += [
        Failure("L", f"{counter}: total {totals.get(counter, 0)}, its hours add up to {hours.get(counter, 0)}")
        for counter in sorted(hours.keys() | {counter for counter in totals if counter[0] in checks.PAIR})
        if totals.get(counter, 0) != hours.get(counter, 0)
    ][:5]
    if world.replays:
        result.failures += checks.replay(world.harness, world.empty(), world.oracle_knows, world.not_replayed)
    for demand in world.afterwards:
        demand(account)


def _outputs(world: World) -> str:
    ends = [f"\n--- {child.name}: {child.said()[-1200:]}" for child in (*world.workers, *world.producers)]
    return "".join(ends)
