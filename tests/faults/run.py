"""Runs one row with one seed, and says what came of it."""

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
    """What came of a row with a seed; events, where nothing else is said.

    Attributes:
        row: The row's number.
        seed: The seed.
        faults: How often each fault was injected.
        confirmed: What producers were told is in the stream.
        unknown: What they were not told of.
        refused: What a full buffer refused, and said so.
        lost: Confirmed, and not in the totals.
        allowed: Why that is what the row allows; empty: it is not.
        doubled: In the totals, and emitted by nobody.
        unaccounted: What the books miss.
        drain: Seconds from healing until nothing waited.
        seconds: Of the whole run.
        looks: How often pairs were looked at meanwhile.
        failures: What did not hold.
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
        """Return it as what JSON can hold."""
        return asdict(self)


def run(row: Row, seed: int, fork_server: ForkServer) -> Result:
    """Run a row's scenario with what a seed draws, and check everything that it claims."""
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
        except AssertionError as error:  # of `until`: what had to become true did not
            result.failures.append(Failure("D", str(error) + _outputs(world)))
        except Exception:  # noqa: BLE001  # one broken scenario must not end a run of thousands
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
    balance = checks.balance(account, totals, besides=world.besides, loss=world.loss)
    result.lost, result.doubled, result.allowed = balance.lost, balance.doubled, world.loss
    result.unaccounted, unaccounted = checks.books(world.totals())
    result.failures += balance.failures + unaccounted
    # Where a pair may lie in two entries and entries may be lost, one half may be.
    if "P" in row.checks and (world.watch.pairs or not world.loss):
        result.failures += checks.pairs(totals, besides=world.besides)
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
