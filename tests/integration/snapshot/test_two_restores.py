"""Two restores of one server never write at the same time, and a killed one can be repeated at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tallystream import Producer
from tallystream.deployment import Deployment
from tallystream.rules.metrics import Metric, Rules
from tallystream_worker.process import failpoints
from tallystream_worker.process.failpoints import RESTORE_PLACES, VARIABLE
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.restore_lock import LEASE, RestoreLock, RestoreOvertaken
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tallystream_worker.verify.verify import verify
from tests.harness import Harness
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = Path(sys.executable).with_name("tallystream")
RULES = Rules({"view": Metric(windows=("hour",), top=5), "vote": Metric(once="forever")})


class World:
    """A server with two partitions, and a snapshot of half of its events."""

    def __init__(self, harness: Harness, database: Database) -> None:
        self.harness, self.client, self.database = harness, harness.client, database
        for turn in range(2):
            with Producer(harness.url, entry_events=10) as producer:
                for n in range(500):
                    producer.emit("view", f"s{n % 50}")
                    producer.emit("vote", f"s{n % 7}", actor=f"u{n}", amount=1 - 2 * turn)
            harness.drain()
            if turn == 0:
                Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once()
        self.totals = harness.totals()

    def command(self, **environment: str) -> subprocess.Popen[str]:
        """Start a process that restores."""
        command = [PROGRAM, "restore", self.database.place, "--force", "--json", "--redis", self.harness.url]
        return subprocess.Popen(
            command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def check(self) -> None:
        """Check that the totals are right, and that a verification finds nothing."""
        assert self.harness.totals() == self.totals
        report = verify(self.client, "tally", Sources())
        assert (report.findings, report.failed) == ({}, [])
        assert self.client.exists(self.harness.layout.restore_lock) == 0


@pytest.fixture
def world(server, tmp_path) -> Iterator[World]:
    """Provide a world."""
    with (
        Harness(server.url, rules=RULES, partitions=2) as harness,
        closing(Database(str(tmp_path / "snapshot.sqlite"))) as database,
    ):
        yield World(harness, database)


def test_two_processes_restore_at_the_same_time(world):
    """At least one of two processes restores; the other one does so later, or is refused, and names the first."""
    for _ in range(2):
        both = [world.command(), world.command()]
        printed = [process.communicate()[1] for process in both]
        refused = [text for process, text in zip(both, printed, strict=True) if process.returncode]
        assert len(refused) < 2, printed
        for text in refused:
            assert "another restore is running (process " in " ".join(text.split())
            assert any(f"process {process.pid} on " in text for process in both)
        world.check()


def test_a_running_restore_is_named(world):
    """While a process holds the lock, a restore is refused, and nothing is changed."""
    before = {key: world.client.dump(key) for key in world.client.scan_iter()}
    with RestoreLock(world.client, world.harness.layout) as lock:
        with pytest.raises(RestoreOvertaken, match=rf"is running \(process {os.getpid()} on .*, since 20.* UTC\)"):
            restore(world.client, world.database, force=True)
        assert world.client.get(lock.key) == lock.value.encode()
    assert {key: world.client.dump(key) for key in world.client.scan_iter()} == before
    restore(world.client, world.database, force=True)
    world.check()


@pytest.mark.parametrize("place", RESTORE_PLACES)
def test_a_killed_restore_is_repeated_at_once(world, place):
    """The same command waits until the lock of the killed process expires, and then restores from the start."""
    killed = world.command(**{VARIABLE: place})
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    again = world.command()
    assert again.communicate(timeout=LEASE + 30) is not None
    assert again.returncode == 0
    world.check()


def test_a_stopped_restore_writes_nothing_after_a_takeover(world):
    """A process that was stopped for longer than its lock lasts ends with an error when it continues."""
    stopped = world.command()
    until(lambda: world.client.hexists("tally:meta", "restoring"), what="the restore")
    stopped.send_signal(signal.SIGSTOP)
    later = world.command()
    assert (later.communicate()[1], later.returncode) == ("", 0)
    world.check()
    stopped.send_signal(signal.SIGCONT)
    text = " ".join(stopped.communicate()[1].split())
    assert stopped.returncode == 1, text
    assert "another restore has taken over, because this one had stopped for more than 5 seconds" in text
    world.check()


@pytest.mark.parametrize(
    ("place", "turn", "then"),
    [
        ("after-load", 1, "finished"),
        ("after-load", 2, "interrupted"),
        ("after-graft", 1, "interrupted"),
        ("after-graft", 2, "finished"),
        ("after-partition", 1, "finished"),
        ("after-partition", 2, "finished"),
        ("after-partition", 2, "interrupted"),
    ],
)
def test_no_write_of_a_restore_is_made_after_a_takeover(world, monkeypatch, place, turn, then):
    """A restore that pauses at any step, and is overtaken, changes nothing, even if the later one is interrupted."""
    reached: list[str] = []
    kept: dict[bytes, bytes | None] = {}

    def reach(at: str) -> None:
        reached.append(at)
        if reached.count(place) == turn and at == place and not kept:
            kept[b""] = None
            world.client.delete(world.harness.layout.restore_lock)  # as if it had expired
            with suppress(KeyboardInterrupt):
                restore(world.client, world.database, force=True, progress=interrupt)
            kept.update(state())

    def interrupt(_part: object) -> None:
        if then == "interrupted":
            raise KeyboardInterrupt

    def state() -> dict[bytes, bytes | None]:
        return {key: world.client.dump(key) for key in world.client.scan_iter()}

    monkeypatch.setattr(failpoints, "reach", reach)
    with pytest.raises(RestoreOvertaken, match="has taken over"):
        restore(world.client, world.database, force=True)
    kept.pop(b"")
    assert state() == kept
    restore(world.client, world.database, force=True)
    world.check()


def test_a_lock_that_expires_too_late_is_not_waited_for(world):
    """If the server's clock was set back, the lock of a killed process would last for longer than any other."""
    world.client.set(world.harness.layout.restore_lock, "x 1796000000 4711 gone", px=3_600_000)
    waited: list[str] = []
    began = time.monotonic()
    restore(world.client, world.database, force=True, waiting=waited.append)
    assert time.monotonic() - began < 2 * LEASE + 30
    assert waited == ["process 4711 on gone, since 2026-11-30 00:53:20 UTC"]
    world.check()


def test_a_lock_that_expired_is_taken_again(world):
    """A restore that was stopped for longer than its lock lasts continues if no other one has begun meanwhile."""
    lock = world.harness.layout.restore_lock

    def later(_topic: int) -> dict[int, int]:
        world.client.delete(lock)
        return {}

    restore(world.client, world.database, force=True, later=later, progress=lambda _: world.client.delete(lock))
    world.check()
