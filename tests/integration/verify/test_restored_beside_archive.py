"""After a restore of a snapshot that is older or newer than the archive, each event counts once, and nothing is wrong.

A server goes back to older data; then an archiver may run, before or only after the restore.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import duckdb
import pytest

from tallystream import Producer
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError
from tallystream.rules.metrics import Metric, Rules
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.process.moments import format_moment
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tallystream_worker.verify.verify import verify
from tests.harness import Harness
from tests.paths import ROOT
from tests.rewind import copy_of, go_back
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM: Final = Path(sys.executable).with_name("tallystream")


class World:
    """A partition with a snapshot and an archive.

    Attributes:
        harness: Its server.
        database: Its snapshot.
        folder: The folder of both.
        store: Its archive.
    """

    def __init__(self, harness: Harness, folder: Path, database: Database) -> None:
        self.harness, self.client, self.folder, self.database = harness, harness.client, folder, database
        self.store = Store(str(folder / "archive"))
        self.taken = 0

    def emit(self, subject: str, events: int, producer: Producer | None = None) -> None:
        """Emit events of a subject, each in an entry, by a producer or by one that then ends; count them."""
        with closing(Producer(self.harness.url, linger=0)) as ended:
            for _ in range(events):
                (producer or ended).emit("view", subject)
                (producer or ended).flush()
        self.harness.drain("closer", claim_idle=0)

    def archive(self) -> None:
        """Archive every entry."""
        Archive(self.client, self.store, Deployment.load(self.client)).run_once(settled=0)

    def take(self) -> None:
        """Take a snapshot."""
        Snapshotter(self.client, self.database, Deployment.load(self.client)).run_once()

    def restore(self, *, force: bool = True, has_archive: bool = True) -> None:
        """Restore the snapshot, with the archive or without it."""
        found = restore(self.client, self.database, partial(entries, self.store) if has_archive else None, force=force)
        self.taken = max(part.taken for part in found.parts)
        self.harness.drain("closer", claim_idle=0)

    def totals(self) -> dict[str, int]:
        """Return the total of each subject."""
        return {subject: value for (_, subject), value in self.harness.totals().items()}

    def findings(self, *, snapshot: bool = True) -> dict[str, list[str]]:
        """Return the details of each finding of `verify`; an audit must find no difference, unless it compares none."""
        deployment = Deployment.load(self.client)
        sources = Sources(self.store, self.database if snapshot else None)
        try:
            assert audit(self.client, deployment, deployment.rules, sources=sources).differences == []
        except ConfigurationError as error:
            assert "cannot compare any counter" in str(error)  # noqa: PT017  # some can be compared in other worlds
        report = verify(self.client, "tally", sources)
        assert report.failed == []
        return {name: finding.details for name, finding in report.findings.items()}

    def count_lost(self) -> None:
        """Do what the page on the archive tells, to count the entries in files `*.parquet.lost`."""
        page = (ROOT / "docs" / "archive.md").read_text()
        query = page.partition("```sql\nCOPY")[2].partition("```")[0]
        stated = format_moment(self.taken / 1000, has_milliseconds=True)[: -len("+00:00")]  # as `restore` prints it
        kinds = "WHERE kind IN ('unit', 'sum', 'single')"
        assert kinds in query
        query = query.replace(kinds, f"{kinds} AND received > TIMESTAMP '{stated}'")
        query = query.replace("'archive/", f"'{self.store.url}/").replace("lost.parquet", f"{self.folder}/lost.parquet")
        duckdb.sql(f"COPY{query}")
        command = [PROGRAM, "ingest", self.folder / "lost.parquet", "--redis", self.harness.url]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)
        self.harness.drain("closer", claim_idle=0)
        (self.folder / "archive" / "lost").rename(self.folder / "counted")


@pytest.fixture
def world(server, tmp_path: Path) -> Iterator[World]:
    """Provide a world without events."""
    rules = Rules({"view": Metric(windows=("hour",))})
    with (
        Harness(server.url, rules=rules, partitions=1) as harness,
        closing(Database(str(tmp_path / "snapshot.sqlite"))) as database,
    ):
        yield World(harness, tmp_path, database)


@pytest.mark.parametrize("is_early", [True, False], ids=["archived-before", "archived-after"])
@pytest.mark.parametrize("is_followed", [True, False], ids=["followed", "last"])
@pytest.mark.parametrize("is_again", [True, False], ids=["sent-again", "lost"])
@pytest.mark.parametrize("archived", ["some", "all", "nothing"])
@pytest.mark.parametrize("is_newer", [True, False], ids=["newer", "older"])
def test_each_event_counts_once(
    world: World, *, is_newer: bool, archived: str, is_again: bool, is_followed: bool, is_early: bool
) -> None:
    """Before and after the archiver runs, after the steps that `verify` names, and after another restore.

    Args:
        world: The partition.
        is_newer: Whether the snapshot has the events that the server loses.
        archived: Which events the archive has at the loss: none, those that the server keeps, or also the others.
        is_again: Whether a producer sends its lost events again.
        is_followed: Whether other clients append events after the loss.
        is_early: Whether an archiver runs between the loss and the restore.
    """
    with closing(Producer(world.harness.url, linger=0)) as running:
        world.emit("kept", 3)
        world.emit("kept", 2, running)
        world.archive() if archived != "nothing" else None
        world.take() if not is_newer else None
        older = copy_of(world.client)
        world.emit("lost", 4)
        world.emit("again", 5, running if is_again else None)
        world.archive() if archived == "all" else None
        world.take() if is_newer else None
        go_back(world.client, older)
        right = {"kept": 5}
        if is_newer or archived == "all":
            right |= {"lost": 4, "again": 5}
        if is_again:
            running.emit("view", "later")
            until(lambda: running.stats.rewound_streams, what="the rollback of the producer")
            running.flush()
            right |= {"again": 5, "later": 1}
        if is_followed:
            world.client.xadd(world.harness.layout.keys[0].stream, {"metric": "view", "subject": "plain"})
            world.emit("followed", 6)
            right |= {"plain": 1, "followed": 6}
        world.archive() if is_early else None
        world.restore()
        assert not world.findings().keys() - {"archive.set_aside"}
        world.emit("new", 1, running)
    right["new"] = 1
    world.archive()
    found = world.findings(snapshot=False)
    if not is_newer and archived == "all" and is_early:  # lost entries that only the archive has
        assert [detail.partition(";")[0].partition(": ")[2] for detail in found.pop("archive.set_aside")] == [
            "4 entries with 4 events" if is_again else "9 entries with 9 events"
        ]
    if list(world.folder.glob("archive/lost/*/*.parquet.lost")):
        world.count_lost()
        world.archive()
        found = world.findings(snapshot=False)
    assert (found, world.totals()) == ({}, right)
    world.take()
    world.client.flushall()
    world.restore(force=False)
    world.archive()
    world.emit("new", 1)
    right["new"] = 2
    world.archive()
    assert (world.findings(), world.findings(snapshot=False), world.totals()) == ({}, {}, right)


def lose_twice(world: World, *, has_archive: bool = True) -> dict[str, int]:
    """Lose the same entries twice, restore a snapshot with them, and archive; return the right totals."""
    with closing(Producer(world.harness.url, linger=0)) as running:
        world.emit("kept", 2, running)
        world.archive()
        older = copy_of(world.client)
        world.emit("again", 5, running)
        world.take()
        for losses in (1, 2):
            go_back(world.client, older)
            running.emit("view", "later")
            until(lambda losses=losses: running.stats.rewound_streams == losses, what="the rollback of the producer")
            running.flush()
            world.archive()
        world.restore(has_archive=has_archive)
    world.archive()
    return {"kept": 2, "again": 5, "later": 2}


def test_entries_that_were_lost_twice_count_once(world: World) -> None:
    """A server loses the same entries twice, and then a snapshot with them is restored: the page's steps add nothing.

    The archiver sets aside what was sent again first, and after the restore also what was sent again last.
    """
    right = lose_twice(world)
    assert (world.findings(), world.totals()) == ({}, right)
    assert list(world.folder.glob("archive/lost/*/*.parquet.counted"))
    limits = [each.text for each in verify(world.client, "tally", Sources(world.store)).limits]
    # Among them is the entry that was appended after the first loss, if the archiver had it before the second one.
    assert any(re.search("that nothing needs ([56]) entries with \\1 events", each) for each in limits)
    world.count_lost()
    assert world.totals() == right


def test_without_the_archive_no_entry_is_taken_as_counted(world: World) -> None:
    """If a restore read no archive, it may lack entries that only the archive has: none is set aside as counted."""
    lose_twice(world, has_archive=False)
    assert list(world.folder.glob("archive/lost/*/*.parquet.lost"))
    assert not list(world.folder.glob("archive/lost/*/*.parquet.counted"))


@pytest.mark.parametrize("way", ["rebuild", "restore"])
def test_entries_of_replaced_counters_are_not_taken_as_counted(world: World, way: str) -> None:
    """If other counters replace those of a restored snapshot, it is not proved that the entries in them count."""
    with closing(Database(str(world.folder / "older.sqlite"))) as older:
        Snapshotter(world.client, older, Deployment.load(world.client)).run_once()
        lose_twice(world)
        if way == "restore":
            restore(world.client, older, partial(entries, world.store), force=True)
        else:
            variables = {"TALLYSTREAM_REDIS_URL": world.harness.url, "TALLYSTREAM_ARCHIVE_URL": world.store.url}
            command = [PROGRAM, "rebuild", "--accept-loss"]
            subprocess.run(command, env=os.environ | variables, cwd=world.folder, check=True, capture_output=True)
    world.harness.drain("closer", claim_idle=0)
    report = verify(world.client, "tally", Sources(world.store))
    assert report.failed == []
    limits = [each.text for each in report.limits]
    assert not [each for each in limits if re.search("that nothing needs [56] entries", each)]
    assert any(re.search("whether [56] entries .* in files [*].parquet.counted count", each) for each in limits), limits


def test_entries_that_were_lost_after_the_restore_are_no_counted_ones(world: World) -> None:
    """A server loses archived entries after the restore, and their producer continues without them: they are lost."""
    keys = world.harness.layout.keys[0]
    world.emit("kept", 2)
    world.archive()
    older = copy_of(world.client)
    world.emit("counted", 3)
    world.take()
    go_back(world.client, older)
    world.restore()
    world.archive()
    restored = copy_of(world.client)
    world.emit("given-up", 4)
    world.archive()
    records = world.client.hgetall(keys.sequences)
    go_back(world.client, restored)
    # The record of a producer that states a gap and appends a later entry covers the lost entries.
    known = world.client.hkeys(keys.sequences)
    later = {name: record for name, record in records.items() if name not in known and not name.startswith(b"!")}
    world.client.hset(keys.sequences, mapping=later)
    world.emit("later", 1)
    assert any("4 archived entries" in each for each in world.findings()["archive.ahead"])
    world.archive()
    assert not list(world.folder.glob("archive/lost/*/*.parquet.counted"))
    stated = [each.text for each in verify(world.client, "tally", Sources(world.store)).limits]
    assert any("whether 4 entries with 4 events in files *.parquet.lost count" in each for each in stated), stated


def test_a_stream_that_came_back_is_archived_whole(world: World) -> None:
    """A server gets its lost entries back after others were archived: the archive then has both, in order of IDs."""
    world.emit("kept", 2)
    world.archive()
    older = copy_of(world.client)
    world.emit("back", 3)
    world.take()
    newer = copy_of(world.client)
    go_back(world.client, older)
    world.emit("other", 4)
    world.archive()
    go_back(world.client, newer)
    world.restore()
    world.archive()
    assert [entry.id for entry in entries(world.store, 0)] == [
        id_.decode() for id_, _ in world.client.xrange(world.harness.layout.keys[0].stream)
    ]
    assert (world.findings(), world.totals()) == ({}, {"kept": 2, "back": 3, "other": 4})
    assert not list(world.folder.glob("archive/lost/*/*"))


def put_back(world: World) -> None:
    """Let the archiver set entries aside that a server has lost, and put its newer data back, without a restore.

    Three of its five entries were set aside, one of them without a producer.
    """
    stream = world.harness.layout.keys[0].stream
    world.emit("kept", 2)
    world.archive()
    older = copy_of(world.client)
    world.emit("back", 2)
    world.client.xadd(stream, {"metric": "view", "subject": "back"})
    world.harness.drain("closer", claim_idle=0)
    world.archive()
    newer = copy_of(world.client)
    go_back(world.client, older)
    world.archive()
    go_back(world.client, newer)


def limits(world: World) -> list[str]:
    """Return what `verify` states of files `*.parquet.lost` as not proved."""
    report = verify(world.client, "tally", Sources(world.store))
    return [each.text for each in report.limits if "*.parquet.lost" in each.text]


def test_entries_that_the_server_got_back_are_named_until_they_are_archived(world: World) -> None:
    """The named command archives them again; they count, and no text states that they were sent again, or are lost."""
    put_back(world)
    report = verify(world.client, "tally", Sources(world.store))
    assert set(report.findings) == {"archive.gap", "archive.lacks"}
    for finding in report.in_order():
        assert "tallystream archive --once, which archives" in report.remedy(finding)
    (before,) = limits(world)
    world.archive()
    (after,) = limits(world)
    assert before == after
    assert "that nothing needs 3 entries with 3 events in files *.parquet.lost. The server has got" in after
    assert (world.findings(snapshot=False), world.totals()) == ({}, {"kept": 2, "back": 3})
    world.count_lost()  # the steps of the page count nothing twice
    assert world.totals() == {"kept": 2, "back": 3}
    world.archive()
    assert (limits(world), world.findings(snapshot=False)) == ([], {})


def test_set_aside_entries_in_a_gap_may_count(world: World) -> None:
    """If workers trimmed entries that the server got back, verify finds the gap, and states that these may count."""
    put_back(world)
    stream, ledger = world.harness.layout.keys[0].stream, world.harness.layout.keys[0].topic_ledger
    for is_archived in (False, True):
        if is_archived:
            world.archive()
        else:
            removed = world.client.xtrim(stream, maxlen=1, approximate=False)
            world.client.hincrby(ledger, "entries:retired", removed)
        report = verify(world.client, "tally", Sources(world.store))
        assert "archive.gap" in report.findings
        assert "archive.set_aside" not in report.findings
        assert any("whether 2 entries with 2 events in files *.parquet.lost" in each for each in limits(world))
        assert any("got these entries back" in each for each in limits(world))
