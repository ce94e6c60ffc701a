"""After a restore, a verification finds no fault, and the remedy that it names for a later fault mends that fault."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tallystream import Producer
from tallystream.deployment import Deployment
from tallystream.reading.totals import Totals
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.integration.verify.test_verify import World, emit_each, names, world
from tests.rewind import copy_of, go_back

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["world"]  # the fixture


def emit(world: World, *, is_counted: bool = True) -> None:
    """Append events of every metric, also decided ones; count them, or leave them uncounted."""
    with Producer(world.harness.url, linger=0) as producer:
        for number in range(20):
            emit_each(producer, number)
            if number % 4 == 0:
                producer.decide("call", f"k{number % 3}")
        producer.flush(10)
    if is_counted:
        world.harness.drain("closer", claim_idle=0)


def snapshot(world: World) -> None:
    """Take a snapshot."""
    Snapshotter(world.client, world.database, Deployment.load(world.client)).run_once()


def counted(world: World) -> None:
    """Every entry is counted and in the snapshot."""
    emit(world)
    snapshot(world)


def uncounted(world: World) -> None:
    """Some entries are not counted at the moment of the snapshot."""
    emit(world, is_counted=False)
    snapshot(world)
    world.harness.drain("closer", claim_idle=0)


def later(world: World) -> None:
    """Some entries are appended after the snapshot."""
    snapshot(world)
    emit(world)


def trimmed(world: World) -> None:
    """Old entries are gone from the stream at the moment of the snapshot."""
    removed = world.client.xtrim(world.keys.stream, maxlen=2, approximate=False)
    world.client.hincrby(world.keys.ledger, "entries:retired", removed)
    counted(world)


def emptied(world: World, _: dict[bytes, bytes]) -> None:
    """The server loses everything."""
    world.client.flushall()


def stream_lost(world: World, _: dict[bytes, bytes]) -> None:
    """The stream is deleted."""
    world.client.delete(world.keys.stream)


def partition_lost(world: World, _: dict[bytes, bytes]) -> None:
    """A partition loses every key."""
    world.client.delete(*world.client.scan_iter(f"{world.keys.prefix}*"))


def older(world: World, before: dict[bytes, bytes]) -> None:
    """The server goes back to older data."""
    go_back(world.client, before)


def nothing(_world: World, _: dict[bytes, bytes]) -> None:
    """The server loses nothing."""


@pytest.mark.parametrize("loss", [emptied, stream_lost, partition_lost, older, nothing])
@pytest.mark.parametrize("state", [counted, uncounted, later, trimmed])
def test_nothing_is_found_after_a_restore_without_an_archive(
    world: World, state: Callable[[World], None], loss: Callable[[World, dict[bytes, bytes]], None]
) -> None:
    """After a restore without an archive, nothing is found: at once, after later events, and after the next snapshot.

    The stream lacks the entries of the restored snapshot, but none that come after it.
    """
    before = copy_of(world.client)
    state(world)
    loss(world, before)
    restore(world.client, world.database, force=True)
    for step in (lambda: None, lambda: emit(world), lambda: snapshot(world)):
        step()
        report = world.verify(archive=False)
        assert (names(report), report.failed) == (set(), [])
        assert [each for each in report.proofs if each.check == "snapshot"]


def test_a_snapshot_is_behind_if_entries_are_removed_after_its_restore(world: World) -> None:
    """If another client removes entries that were appended after the restore, a second restore would lack them."""
    counted(world)
    emptied(world, {})
    restore(world.client, world.database, force=True)
    emit(world)
    world.client.hincrby(
        world.keys.ledger, "entries:retired", world.client.xtrim(world.keys.stream, maxlen=2, approximate=False)
    )
    assert names(world.verify(archive=False)) == {"snapshot.behind"}


@pytest.mark.parametrize("is_archived", [False, True])
def test_a_counter_that_is_wrong_after_a_restore_is_mended_by_the_named_command(
    world: World, tmp_path: Path, *, is_archived: bool
) -> None:
    """If entries are gone and a total is wrong, the remedy is the command that works, and it keeps the good copy.

    Without an archive, a rebuild would be refused, and a whole snapshot would copy the wrong total. So the remedy is a
    restore. With an archive, it is a rebuild with that archive.
    """
    world.copy() if is_archived else counted(world)
    emptied(world, {})
    restore(world.client, world.database, force=True)
    emit(world)
    if is_archived:
        world.copy()
    key = world.keys.total("call", "k1")
    right = int(world.client.get(key))
    world.client.incrby(key, 100)
    report = world.verify(archive=is_archived)
    assert names(report) == {"counters.differ"}
    remedy = report.remedy(report.findings["counters.differ"])
    words = remedy.partition(" (")[0].split()
    if is_archived:
        assert remedy == f"tallystream rebuild --archive {world.store.url}"
    else:
        assert words == ["tallystream", "restore", "--force"]
        assert "First copy the snapshot" in remedy
        assert "an automatic one" in remedy
        assert "snapshot --whole replaces all" in remedy
    environment = {**os.environ, "TALLYSTREAM_REDIS_URL": world.harness.url}
    environment |= {"TALLYSTREAM_SNAPSHOT_URL": str(world.folder / "snapshot.sqlite")}
    program = Path(sys.executable).with_name(words[0])
    done = subprocess.run([program, *words[1:]], env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    with closing(Totals(world.harness.url)) as totals:
        assert totals.get("k1", "call").value == right
    assert names(world.verify(archive=is_archived)) == set()
