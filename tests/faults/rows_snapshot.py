"""The row of the fault table in which a snapshot is killed, or its database is locked or missing."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tallystream.deployment import Deployment
from tallystream_worker.process.failpoints import SNAPSHOT_PLACES
from tallystream_worker.snapshot.database import Database, SnapshotError
from tallystream_worker.snapshot.drill import drill
from tallystream_worker.snapshot.point_in_time import SILENCE, ViewLost
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.faults.failure import ExpectationFailed
from tests.faults.processes import RULES
from tests.faults.table import row
from tests.faults.world import PATIENCE
from tests.harness import Harness
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TypeVar

    from tests.faults.fork_server import Child
    from tests.faults.world import World

    T = TypeVar("T")

LOCK_TIMEOUT = 0.2
"""Seconds for which a snapshot waits for a database that another process has locked."""


@dataclass(frozen=True)
class Place:
    """The folder of a snapshot database, and its path and URL."""

    folder: Path

    @property
    def file(self) -> Path:
        """The path of the SQLite file."""
        return self.folder / "snapshot.sqlite"

    @property
    def url(self) -> str:
        """The URL of the database, with the lock timeout."""
        return f"sqlite:///{self.file}?timeout={LOCK_TIMEOUT}"


@row(33, "snapshot killed; database down", "B P D M R")
def snapshot_dies(world: World) -> None:
    """The database of a killed snapshot, with a replay of later entries, gives every value; the next one does alone."""
    world.serve()
    world.crowd(pause=0.02)
    retention = None
    if world.chance.random() < 0.3:  # trim the stream to little more than the last snapshot needs
        retention, world.replays = {"bytes": 1, "backlog_bytes": 0}, False
    world.worker("a", retention=retention)
    place = Place(world.folder / "kept")
    place.folder.mkdir()
    world.flow(50)
    for _ in range(world.chance.randint(2, 4)):
        world.chance.choice([_killed_somewhere, _killed_somewhere, _killed_any_time, _locked, _away])(world, place)
        world.flow(20)
        hasten(world)
        _drill(world, place)
    world.heal()
    world.flow(50)
    world.afterwards.append(lambda _: _again(world, place))


def _killed_somewhere(world: World, place: Place) -> None:
    """Let a process that takes snapshots die at a random step: a separate process, or a worker with snapshots."""
    step = world.chance.choice(SNAPSHOT_PLACES)
    point = f"{step}:{world.chance.randint(1, 6)}"
    if world.chance.random() < 0.5:
        victim = _snapshots(world, place, failpoint=point)
    else:
        victim = world.worker("b", failpoint=point, snapshot={"url": place.url, "every": 0.1})
    world.dies(victim, f"killed {step}")


def _killed_any_time(world: World, place: Place) -> None:
    victim = _snapshots(world, place)
    world.pause(0, 0.6)
    world.kill(victim)


def _locked(world: World, place: Place) -> None:
    """Lock the database until a snapshot process logs a failure, then unlock it and wait for a snapshot."""
    with contextlib.closing(sqlite3.connect(place.file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        victim = _snapshots(world, place)
        world.until(lambda: "task.failed" in victim.said(), "the log line about the locked database")
        world.inject("database locked")
        other.execute("ROLLBACK")
    _works_again(world, victim)


def _away(world: World, place: Place) -> None:
    """Move the database away until a snapshot process logs a failure, then move it back and wait for a snapshot."""
    elsewhere = place.folder.rename(world.folder / "elsewhere")
    victim = _snapshots(world, place)
    world.until(lambda: "task.failed" in victim.said(), "the log line about the missing database")
    world.inject("database away")
    elsewhere.rename(place.folder)
    _works_again(world, victim)


def _works_again(world: World, victim: Child) -> None:
    # An earlier fault may have left a view open, which the server removes after `SILENCE`.
    world.until(lambda: "task.recovered" in victim.said(), "the next snapshot", PATIENCE + SILENCE / 1000)
    world.kill(victim)


def _snapshots(world: World, place: Place, *, failpoint: str | None = None) -> Child:
    return world.process("snapshots", failpoint=failpoint, url=world.url, place=place.url, every=0.1)


def hasten(world: World) -> None:
    """In nine of ten cases, expire the consistent view that a killed snapshot left open, instead of waiting for it."""
    if world.chance.random() < 0.9:
        for keys in world.harness.layout.keys:
            for name in ("cut", "cut:before", "cut:copied"):
                world.harness.client.pexpire(keys.ledger.removesuffix("ledger") + name, 1)


def _drill(world: World, place: Place) -> None:
    """Check that the database, with a replay of the later entries, gives the counters of now."""
    with contextlib.closing(Database(place.url)) as database:
        if not database.facts():
            return  # the first snapshot was not complete
        try:
            verdict = held(
                lambda: drill(world.harness.client, database, Deployment.create_or_load(world.harness.client))
            )
        except SnapshotError as error:  # the entries that it needs were trimmed
            raise ExpectationFailed(str(error)) from error
    world.inject("drill")
    told = f"{verdict.differing} of {verdict.compared} values differ: {verdict.differences[:3]}"
    world.expect(verdict.compared and not verdict.differing, told)


def _again(world: World, place: Place) -> None:
    """Check that two new snapshots are equal, and that a restore of the second gives the present counters."""
    with contextlib.closing(Database(place.url)) as database:
        first, second = (_taken(world, database) for _ in range(2))
        world.expect(first == second, f"two snapshots of the same counters differ: {sorted(first ^ second)[:6]}")
        with Harness(world.start_server("restored").url, rules=RULES) as other:
            other.client.flushall()
            parts = restore(other.client, database).parts
            world.expect(not any(part.missing for part in parts), f"a restore misses events: {parts}")
            for name, live, restored in (
                ("totals", world.harness.totals(), other.totals()),
                ("ledgers", world.harness.ledger(), other.ledger()),
            ):
                off = {each: (live.get(each, 0), restored.get(each, 0)) for each in live.keys() | restored.keys()}
                off = {each: both for each, both in off.items() if both[0] != both[1]}
                world.expect(not off, f"{name} differ after a restore (live, restored): {dict(list(off.items())[:5])}")


def _taken(world: World, database: Database) -> set[str]:
    """Take a snapshot; return its counters: all rows but the positions, and but the ledger fields `entries:...`.

    The positions of two snapshots differ, and trimming changes these fields.
    """
    deployment = Deployment.create_or_load(world.harness.client)
    held(lambda: Snapshotter(world.harness.client, database, deployment).run_once())
    return {
        f"{table.name} {row}"
        for partition in range(deployment.layout.partitions)
        for table, rows in database.read(partition)
        for row in rows
        if table.name != "positions" and not (table.name == "ledger" and row.field.startswith("entries:"))
    }


def held(take: Callable[[], T]) -> T:
    """Call `take` until it does not raise `ViewLost`, i.e. until the view of a killed snapshot has expired."""

    def taken() -> T | None:
        with contextlib.suppress(ViewLost):
            return take()
        return None

    return until(taken, SILENCE / 1000 + 10, 0.2, "a consistent view")
