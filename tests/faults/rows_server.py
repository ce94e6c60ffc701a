"""Rows of the fault table in which the server is killed, loses data, refuses commands or is full."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream_worker.snapshot.database import Database
from tests.faults.table import row

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.world import World

DISK = 8 * 2**20
"""Bytes of the small file system."""


@row(6, "server SIGKILL, appendfsync always", "B P D M R")
def killed_with_fsync_always(world: World) -> None:
    """After the restart of a killed server, everything that was confirmed and every total that was read is there."""
    world.serve("--appendfsync", "always")
    world.crowd()
    world.worker("a")
    for _ in range(world.chance.randint(1, 3)):
        world.flow(100)
        if world.chance.random() < 0.4:
            _rewrite_log(world)
        world.crash_server()
        world.pause(0, 0.2)
        world.restart_server()
    world.heal()
    world.flow(100)


@row(7, "server SIGKILL, everysec", "P D R")
def killed_with_everysec(world: World) -> None:
    """After the restart of a killed server, stream and counters have lost the same writes, and counting continues."""
    world.serve()
    _rewind_some(world, most=20_000)


@row(8, "AOF cut at a random byte", "P D R")
def log_cut_anywhere(world: World) -> None:
    """The server starts from the part of its file that it can read, and no half batch is in it."""
    world.serve()
    _rewind_some(world, most=10**9)


@row(17, "disk full", "B P D M R", needs="root")
def disk_full(world: World) -> None:
    """A full disk makes the server refuse whole writes, and counting continues by itself once there is space again."""
    disk = world.small_disk(DISK)
    fsync = world.chance.choice(["everysec", "everysec", "always"])
    world.serve("--appendfsync", fsync, data=disk / "data")
    world.crowd()
    world.worker()
    world.flow(100)
    for _ in range(world.chance.randint(1, 2)):
        filler = disk / "filler"
        _fill(filler)
        world.until(lambda: not _takes_writes(world), "the refusal of writes")
        world.inject(f"disk full, appendfsync {fsync}")
        world.pause(0.1, 0.5)
        filler.unlink()
        if fsync == "always":  # with this setting, the server exits when it cannot write
            world.server.kill()
            world.restart_server()
        world.heal()
        world.flow(50)


@row(18, "maxmemory, noeviction", "B P D M R")
def out_of_memory(world: World) -> None:
    """A server without memory refuses whole writes but not reads, and no waiting entry is dead-lettered."""
    world.serve()
    world.crowd()
    world.arrive(world.chance.randint(0, 400))
    # An outage must not count as a delivery, however long it is: so few are allowed that good entries would be
    # dead-lettered at once.
    world.worker("a", claim_idle=30.0, max_deliveries=world.chance.choice([1, 3, 10]))
    if world.chance.random() < 0.3:
        world.worker("b", claim_idle=30.0, max_deliveries=3)
    world.flow(50)
    for _ in range(world.chance.randint(1, 2)):
        world.harness.client.config_set("maxmemory", 1_000_000)
        world.until(lambda: not _takes_writes(world), "the refusal of writes")
        world.inject("maxmemory reached")
        world.pause(0.1, 1.5)
        with Totals(world.server.url) as totals:
            totals.get("s1", "view")
            totals.run(query_ledger(totals.deployment.layout))  # neither read raises
        world.harness.client.config_set("maxmemory", 0)
        world.heal()
        world.flow(50)


@row(19, "READONLY, LOADING", "B P D M R")
def demoted_or_loading(world: World) -> None:
    """Writes that a demoted or loading server refuses are retried until they succeed, and nothing is dead-lettered."""
    world.serve()
    world.crowd()
    world.worker("a")
    world.flow(100)
    for _ in range(world.chance.randint(1, 2)):
        if world.chance.random() < 0.6:
            world.harness.client.replicaof("127.0.0.1", 1)
            world.inject("READONLY")
            world.pause(0.1, 0.6)
            world.harness.client.replicaof("NO", "ONE")
        else:
            world.server.stop()  # not killed: with everysec that may lose writes, which is row 7
            world.server._extra = ("--key-load-delay", str(world.chance.randint(500, 3000)))
            began = time.monotonic()
            world.restart_server()
            world.inject(f"LOADING for {'more' if time.monotonic() - began > 0.3 else 'less'} than 0.3 s")
        world.heal()
        world.flow(50)
    world.expect(not world.harness.dead(), f"dead-lettered: {world.harness.dead()[:1]}")


@row(20, "SCRIPT FLUSH", "B P D M R")
def scripts_flushed(world: World) -> None:
    """After SCRIPT FLUSH, each client loads the missing script again and calls it once."""
    world.serve()
    world.crowd()
    world.worker("a")
    for _ in range(world.chance.randint(3, 20)):
        world.arrive(20)
        world.harness.client.script_flush()
        world.inject("SCRIPT FLUSH")
    world.flow(50)


@row(21, "FLUSHALL", "P D R")
def flushed(world: World) -> None:
    """A worker whose server was emptied logs an error and counts nothing until it is restarted or data is restored."""
    world.serve()
    world.crowd()
    worker = world.worker("a")
    world.flow(100)
    kept, place = world.counted(), ""
    if world.chance.random() < 0.5:
        place = _copied(world)
        world.flow(50)
    with world.watch.rewinding():
        world.harness.client.flushall()
    world.inject("FLUSHALL")
    world.loss = "FLUSHALL deleted it"
    world.until(lambda: "partition.paused" in worker.said(), "the alarm")
    world.arrive(50)
    world.expect(world.harness.totals() == {}, "the worker counted on an emptied server")
    if place:
        _bring_back(world, place, kept)
    else:
        world.kill(worker)
        world.worker("a")  # it starts to count what is there now
    world.heal()
    world.flow(50)


def _copied(world: World) -> str:
    """Start a process that takes snapshots, wait for the first complete one, and return the path of the database."""
    place = str(world.folder / "snapshot.sqlite")
    world.process("snapshots", url=world.url, place=place, every=0.1)
    with contextlib.closing(Database(place)) as database:
        world.until(database.facts, "a complete snapshot")
    return place


def _bring_back(world: World, place: str, kept: int) -> None:
    """Restore the snapshot while producers emit and a worker waits; both then continue by themselves."""
    with world.unwatched():
        child = world.process("bring_back", url=world.url, place=place)
        status = world.ends(child)
        world.expect(status == 0, f"the restore ended with {status}: {child.said()[-1500:]}")
        world.expect(world.counted() >= kept, f"{world.counted()} events are counted, but the snapshot has {kept}")
    world.inject("restore from a snapshot")
    world.replays = False  # the events before the snapshot are in no stream any more


def _rewrite_log(world: World) -> None:
    """Let the server rewrite its append-only file: a restart then reads an image of its memory and the later writes."""
    world.harness.client.bgrewriteaof()
    world.until(
        lambda: not world.harness.client.info("persistence")["aof_rewrite_in_progress"], "the end of the rewrite"
    )
    world.flow(50)
    world.inject("append-only file rewritten")


def _rewind_some(world: World, most: int) -> None:
    first, set_up = log_of(world), log_of(world).stat().st_size
    world.crowd()
    world.worker("a")
    world.loss = "the server's append-only file was cut"
    for _ in range(world.chance.randint(1, 3)):
        world.flow(100)
        with world.watch.rewinding():
            world.crash_server()
            log = log_of(world)
            least, size = set_up if log == first else 0, log.stat().st_size
            with log.open("r+b") as file:
                file.truncate(size - world.chance.randint(0, min(most, size - least)))
            world.inject("append-only file cut at a byte")
            world.restart_server()
    world.heal()
    world.flow(100)


def log_of(world: World) -> Path:
    """Return the part of the append-only file that the server writes to now."""
    files = (world.server.data / "appendonlydir").glob("*.incr.aof")
    return max(files, key=lambda file: int(file.name.split(".")[-3]))


def _takes_writes(world: World) -> bool:
    try:
        world.harness.client.set("?", 1)
    except RedisError:
        return False
    return True


def _fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
