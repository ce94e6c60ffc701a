"""Rows of the fault table in which an operator changes rules, or restores counters, while events arrive."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from typing import TYPE_CHECKING

from tallystream.deployment import Deployment
from tallystream.reading.totals import Totals
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.snapshot.database import Database
from tests.faults.checks import happened
from tests.faults.processes import RULES, changed
from tests.faults.proof import prove, rest
from tests.faults.table import row
from tests.oracle_rules import tally

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random
    from typing import Any

    from tests.faults.fork_server import Child
    from tests.faults.world import World

SEATS = 6
"""The number of subjects of the decider."""


@row(39, "rules changed under load", "B P D M R")
def rules_changed(world: World) -> None:
    """However rules are changed, no total is wrong; after a rebuild, all counters are those of the last rules."""
    world.serve()
    world.crowd(most=2, pause=0.05)
    changes: dict[str, dict[str, Any]] = {}
    world.oracle_knows -= {"vote"}  # a replay counts by the first rules; `_counted_again` compares with the last ones
    names = ["a", "b"]
    workers = {name: world.worker(name) for name in names}
    child, book = decider(world)
    world.flow(50)
    for _ in range(world.chance.randint(2, 5)):
        _change(changes, world.chance)
        for name in names:  # until the second restart, the two workers have different rules
            world.kill(workers[name], world.chance.choice([signal.SIGTERM, signal.SIGKILL]))
            workers[name] = world.worker(name, changes=changes)
            world.flow(world.chance.randint(0, 40))
        world.inject("rules changed")
    world.heal()
    world.flow(50)
    ends(world, child)
    world.afterwards.append(lambda _: decisions_count(world, book))
    world.afterwards.append(lambda _: _counted_again(world, changes))


def _change(changes: dict[str, dict[str, Any]], chance: Random) -> None:
    """Add, raise, lower or remove one rule of one metric, or of both metrics of a pair."""
    metric, field, values = chance.choice(
        [
            ("view like", "windows", [["hour"], ["hour", "day"], ["minute", "hour"], ["hour", "day", "month"]]),
            ("view like", "top", [0, 3, 5, 20]),
            ("view", "floor", [None, 0, 2]),
            ("vote", "unique", [None, "hour", "day"]),
            ("vote", "windows", [[], ["day"], ["hour", "day"]]),
            ("vote", "once", [None, "hour", "day", "forever"]),
            ("seat", "limit", [5, 20, 40]),
            ("seat", "ids", [None, "hour", "day"]),
        ]
    )
    for name in metric.split():
        before = changes.get(name, {}).get(field, getattr(RULES.metric[name], field))
        other = [value for value in values if value != (list(before) if isinstance(before, tuple) else before)]
        changes.setdefault(name, {})[field] = chance.choice(other) if name != "like" else changes["view"][field]


def _counted_again(world: World, changes: dict[str, dict[str, Any]]) -> None:
    """Check that the rebuilt counters are those of the entries by the last rules."""
    rest(world)
    child = world.process("count_again", url=world.url)
    status = world.ends(child)
    world.expect(status == 0, f"the rebuild ended with {status}: {child.said()[-1500:]}")
    prove(world)
    expected = tally(happened(world.harness.client, world.harness.layout), changed(changes).metric).totals
    with Totals(world.url) as totals:
        votes = {subject for metric, subject in expected if metric == "vote"}
        for metric, subject in [("seat", f"s{number}") for number in range(SEATS)] + [("vote", s) for s in votes]:
            found, right = totals.get(subject, metric).value, expected.get((metric, subject), 0)
            world.expect(found == right, f"{metric} of {subject}: {found} after a rebuild, {right} by the oracle")


@row(40, "restore while all processes run", "B P D R")
def restored_beside_all(world: World) -> None:
    """A restore of an older snapshot, while every process runs, ends with the same totals, and counts nothing twice."""
    world.serve()
    world.crowd(most=2, pause=0.05)
    archive = str(world.folder / "archive")
    store = Store(archive)
    world.worker("a", archive={"url": archive, "every": 0.3})
    world.worker("b")
    deciding, book = decider(world)
    world.flow(50)
    snapshot = str(world.folder / "snapshot.sqlite")
    taker = world.process("snapshots", url=world.url, place=snapshot, every=0.1)
    with contextlib.closing(Database(snapshot)) as database:
        world.until(database.facts, "a complete snapshot")
    taker.signal(signal.SIGTERM)
    world.ends(taker)
    for _ in range(world.chance.randint(1, 2)):
        world.flow(world.chance.randint(20, 200))
        with world.unwatched():
            child = world.process("bring_back", url=world.url, place=snapshot)
            if world.chance.random() < 0.3:  # the restore is killed, and repeated
                world.pause(0.2, 1.5)
                child.signal(signal.SIGKILL)
                world.ends(child)
                world.inject("SIGKILL of a restore")
                child = world.process("bring_back", url=world.url, place=snapshot)
            status = world.ends(child)
            world.expect(status == 0, f"the restore ended with {status}: {child.said()[-1500:]}")
        world.inject("restore under load")
        world.flow(50)
    world.heal()
    world.flow(50)
    ends(world, deciding)
    world.afterwards.append(lambda _: decisions_count(world, book))
    world.afterwards.append(lambda _: _is_proved(world, store))


def _is_proved(world: World, store: Store) -> None:
    """Check that every counter is what the streams give, and that the archive has every entry."""
    rest(world)
    Archive(world.harness.client, store, Deployment.create_or_load(world.harness.client)).run_once(settled=0)
    prove(world, archive=store)


def decider(world: World, durability: str = "memory") -> tuple[Child, Path]:
    """Start a process that decides events, and return it with its journal."""
    book = world.folder / "decided"
    child = world.process(
        "decider", url=world.url, journal=str(book), seed=world.chance.getrandbits(32), subjects=SEATS, pause=0.02,
        durability=durability,
    )  # fmt: skip
    world.oracle_knows -= {"seat"}  # a replay takes decided events for counted ones; `verify` counts them again
    world.until(lambda: book.exists() and "accepted" in book.read_text(encoding="utf-8"), "an accepted event")
    return child, book


def ends(world: World, child: Child) -> None:
    """End a decider."""
    child.signal(signal.SIGTERM)
    status = world.ends(child)
    world.expect(status == 0, f"the decider ended with {status}: {child.said()[-1500:]}")


def decisions_count(world: World, book: Path) -> None:
    """Check that each accepted event is counted once, and no rejected or refused one."""
    outcomes = Counter(line for line in book.read_text(encoding="utf-8").split("\n") if line)
    totals = world.harness.totals()
    for number in range(SEATS):
        least = outcomes[f"accepted s{number}"]
        most = least + outcomes[f"unknown s{number}"]
        found = totals.get(("seat", f"s{number}"), 0)
        world.expect(least <= found <= most, f"seat of s{number}: {found}, must be {least} to {most}")
