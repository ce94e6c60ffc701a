"""Rows of the fault table in which the server goes back to earlier data, while workers archive and take snapshots."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING

from tallystream.deployment import Deployment
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import ArchiveError, Store
from tallystream_worker.snapshot.database import Database, SnapshotError
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.faults.proof import prove, rest
from tests.faults.rows_server import log_of
from tests.faults.rows_snapshot import hasten, held
from tests.faults.table import row

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.journal import Account
    from tests.faults.world import World


@row(37, "AOF cut, with archive and snapshots", "P D R")
def log_cut_beside_copies(world: World) -> None:
    """If the server loses the end of its log, the archive and the snapshot follow the new log; nothing is doubled."""
    world.serve()
    world.crowd(most=2, pause=0.05)
    store = _copying_workers(world)
    first, least = log_of(world), log_of(world).stat().st_size
    world.loss = "the server's append-only file was cut"
    for _ in range(world.chance.randint(1, 2)):
        world.flow(100)
        if world.chance.random() < 0.5:
            _archive(world, store)  # also entries that the server loses now
        with world.watch.rewinding():
            world.crash_server()
            log = log_of(world)
            size = log.stat().st_size
            with log.open("r+b") as file:
                file.truncate(world.chance.randint(least if log == first else 0, size))
            world.inject("append-only file cut at a byte")
            world.restart_server()
        world.flow(50)
    world.heal()
    world.flow(100)
    world.afterwards.append(lambda account: _copies_are_right(world, store, account))


@row(38, "older RDB restored", "P D R")
def older_data(world: World) -> None:
    """If an older RDB file is loaded, producers send again what they keep, and every other lost entry is reported."""
    world.serve()
    world.crowd(most=2, pause=0.05)
    store = None
    if world.chance.random() < 0.5:
        store = _copying_workers(world)
    else:
        world.worker("a")
        world.worker("b")
    world.loss = "an older RDB file was loaded"
    for _ in range(world.chance.randint(1, 2)):
        world.flow(50)
        kept = _keep(world)
        world.flow(world.chance.randint(20, 500))
        if store is not None and world.chance.random() < 0.5:
            _archive(world, store)
        _put_back(world, kept)
        world.flow(50)
    world.heal()
    world.flow(100)
    world.afterwards.append(lambda account: _copies_are_right(world, store, account))


def _copying_workers(world: World) -> Store:
    """Start two workers, one of which archives and takes snapshots; wait until each partition was archived once."""
    archive, snapshot = str(world.folder / "archive"), str(world.folder / "snapshot.sqlite")
    world.worker("a", archive={"url": archive, "every": 0.1}, snapshot={"url": snapshot, "every": 0.2})
    world.worker("b")
    world.flow(200)
    store = Store(archive)
    _archive(world, store)
    partitions = range(world.harness.layout.partitions)
    world.until(lambda: all(store.newest(number) for number in partitions), "a file for each partition")
    with contextlib.closing(Database(snapshot)) as database:
        world.until(database.facts, "a complete snapshot")
    return store


def _archive(world: World, store: Store) -> None:
    """Archive all entries, also those that the server may still lose.

    If the worker sets aside the same files at this moment, archive again.
    """

    def archived() -> bool:
        with contextlib.suppress(ArchiveError):
            Archive(world.harness.client, store, Deployment.create_or_load(world.harness.client)).run_once(settled=0)
            return True
        return False

    world.until(archived, "a pass of the archive")


def _keep(world: World) -> Path:
    """Copy the data of the server, as a backup does; return the file."""
    world.harness.client.bgsave()
    world.until(lambda: not world.harness.client.info("persistence")["rdb_bgsave_in_progress"], "the RDB file")
    return shutil.copy(world.server.data / "dump.rdb", world.folder / "kept.rdb")


def _put_back(world: World, kept: Path) -> None:
    """Kill the server, and start it with older data, as an operator does who restores a backup of the server."""
    with world.watch.rewinding():
        world.crash_server()
        shutil.rmtree(world.server.data / "appendonlydir")
        shutil.copy(kept, world.server.data / "dump.rdb")
        before, world.server._extra = world.server._extra, ("--appendonly", "no")
        world.restart_server()
        world.server._extra = before
        world.harness.client.config_set("appendonly", "yes")
        world.inject("older RDB file loaded")


def _copies_are_right(world: World, store: Store | None, account: Account) -> None:
    """Check that lost events were reported, that the archive has each entry once, and that `verify` finds nothing."""
    totals = world.harness.totals()
    missing = sum(account.confirmed.values()) - sum(n for (metric, _), n in totals.items() if metric == "view")
    lost = sum(statistics["lost_entries"] for statistics in account.statistics)
    world.expect(lost or missing <= 0, f"{missing} views are lost, and no producer reported lost entries")
    rest(world)
    # A lost entry that is not sent again is a gap in the numbers of its producer. If it was archived, it is set aside.
    allowed = ("log.gap", "archive.skips", "archive.set_aside") if lost else ()
    if store is None:
        prove(world, allowed=allowed)
        return
    _archive(world, store)
    for number, keys in enumerate(world.harness.layout.keys):
        archived = [entry.id for entry in entries(store, number)]
        expected = [id_.decode() for id_, _ in world.harness.client.xrange(keys.stream)]
        world.expect(archived == expected, f"{keys.stream}: {len(archived)} archived entries, {len(expected)} expected")
    snapshot = str(world.folder / "snapshot.sqlite")
    with contextlib.closing(Database(snapshot)) as database:
        snapshotter = Snapshotter(world.harness.client, database, Deployment.create_or_load(world.harness.client))
        hasten(world)
        try:
            held(snapshotter.run_once)
        except SnapshotError:  # it has entries that the server has lost
            world.inject("loss accepted")
            held(lambda: snapshotter.run_once(accept_loss=True))
    prove(world, archive=store, snapshot=snapshot, allowed=allowed)
