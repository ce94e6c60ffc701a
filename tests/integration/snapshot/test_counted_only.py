"""After a restore of a snapshot that is newer than the archive, some entries exist only as counters, and this is named.

Their events stay in the totals. An audit and `verify` state what they cannot prove, and find no difference; a rebuild
refuses to leave the events out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tallystream import Producer
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, StreamError
from tallystream.rules.metrics import Metric, Rules
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.cli.generation import build
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.rebuild.rebuild import propose
from tallystream_worker.settings.settings import RedisSettings, Settings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tallystream_worker.verify.verify import verify
from tests.harness import Harness
from tests.rewind import copy_of, go_back

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM: Final = Path(sys.executable).with_name("tallystream")


class World:
    """A partition with a snapshot that is newer than its archive, restored after its server lost the events of both."""

    def __init__(self, harness: Harness, folder: Path, database: Database) -> None:
        self.harness, self.client, self.database = harness, harness.client, database
        self.store = Store(str(folder / "archive"))
        self.running = Producer(harness.url)

    def emit(self) -> None:
        """Emit 10 events by a producer that then ends, and one by the running producer, each in an entry; count all."""
        with Producer(self.harness.url, linger=0) as producer:
            for _ in range(10):
                producer.emit("view", "a", actor="u")
                producer.flush()
        self.running.emit("view", "a")
        self.running.flush()
        self.harness.drain()

    def archive(self) -> None:
        """Archive every entry."""
        Archive(self.client, self.store, Deployment.load(self.client)).run_once(settled=0)

    def take(self) -> None:
        """Take a snapshot."""
        Snapshotter(self.client, self.database, Deployment.load(self.client)).run_once()

    def check(self, totals: int) -> None:
        """Check the total, and that neither an audit nor `verify` finds a difference, with and without a snapshot."""
        assert self.harness.totals() == {("view", "a"): totals}
        deployment = Deployment.load(self.client)
        try:
            differences = audit(self.client, deployment, deployment.rules, sources=Sources(self.store)).differences
        except ConfigurationError as error:
            assert "cannot compare any counter" in str(error)  # noqa: PT017  # some can be compared in other worlds
        else:
            assert differences == []
        found = audit(self.client, deployment, deployment.rules, sources=Sources(self.store, self.database))
        assert (found.differences, found.scopes[0].base) == ([], "snapshot")
        for snapshot in (None, self.database):
            report = verify(self.client, "tally", Sources(self.store, snapshot))
            assert (report.findings, report.failed) == ({}, [])
            (limit,) = [each.text for each in report.limits if "exist only as counters" in each.text]
            assert limit.startswith(self.harness.layout.keys[0].stream)


@pytest.fixture(params=["emptied", "put-back"])
def world(request, server, tmp_path: Path) -> Iterator[World]:
    """Provide a restored world; the server was emptied, or put back to older data and got events after that."""
    rules = Rules({"view": Metric(windows=("hour",))})
    with (
        Harness(server.url, rules=rules, partitions=1) as harness,
        closing(Database(str(tmp_path / "snapshot.sqlite"))) as database,
    ):
        found = World(harness, tmp_path, database)
        found.emit()
        older = copy_of(found.client)
        found.emit()
        found.archive()
        found.emit()
        found.take()
        if request.param == "emptied":
            found.client.flushall()
        else:
            go_back(found.client, older)
        restore(found.client, database, partial(entries, found.store), force=request.param != "emptied")
        yield found
        found.running.close()


@pytest.mark.parametrize("archived", [False, True])
def test_entries_that_exist_only_as_counters_are_no_difference(world, archived):
    """The range is named before and after the archiver writes the file that follows it, and after another restore."""
    if archived:
        world.archive()
    world.take()
    world.check(33)
    world.emit()
    world.take()
    if archived:
        world.archive()
    world.check(44)
    world.archive()
    world.check(44)
    world.client.flushall()
    restore(world.client, world.database, partial(entries, world.store))
    world.emit()
    world.archive()
    world.take()
    world.check(55)


def test_a_rebuild_refuses_to_leave_out_what_exists_only_as_counters(world):
    """A rebuild states how many entries are gone, also after retention has trimmed the stream."""
    world.emit()
    world.archive()
    (keys,) = world.harness.layout.keys
    world.client.xtrim(keys.stream, maxlen=3, approximate=False)
    deployment = Deployment.load(world.client)
    chosen = Settings(RedisSettings(world.harness.url), rules=deployment.rules)
    generation = propose(world.client, deployment, deployment.rules)
    with pytest.raises(StreamError, match=r"11 entries are neither in the streams nor in the archive.*--accept-loss"):
        build(chosen, Deployment.load(world.client), generation, world.store.url)


@pytest.mark.parametrize("command", [["rebuild"], ["retract", "--actor", "u"]], ids=["rebuild", "retract"])
def test_entries_that_a_rebuild_left_out_are_no_counters(world, tmp_path, command):
    """After the loss is accepted, no text states that they exist as counters; after an undo, they do again."""
    world.emit()
    world.archive()

    def run(*arguments: str) -> None:
        variables = {"TALLYSTREAM_REDIS_URL": world.harness.url, "TALLYSTREAM_ARCHIVE_URL": world.store.url}
        done = subprocess.run(
            [PROGRAM, *arguments], env=os.environ | variables, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def stated() -> tuple[bool, bool]:
        report = verify(world.client, "tally", Sources(world.store))
        texts = [each.text for each in report.limits]
        return any("exist only as counters" in each for each in texts), any(
            "neither log nor counters" in each for each in texts
        )

    assert stated() == (True, False)
    run(*command, "--accept-loss")
    assert stated() == (False, True)
    run("rebuild", "--undo")
    assert stated() == (True, False)
