"""After a restore, `ingest` knows the files that were ingested before the snapshot, also those that have grown."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from tallystream.deployment import Deployment
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.cli.backup import archive_of, open_archive
from tallystream_worker.settings.settings import RedisSettings, Settings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.ingested_files import ingested_files
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness
from tests.integration.ingest.test_ingest_once import counted, ingest, line


@pytest.fixture
def harness(server):
    """Yield a harness on an empty server."""
    with Harness(server.url, partitions=3) as harness:
        yield harness


@pytest.mark.parametrize("has_grown", [False, True])
@pytest.mark.parametrize("is_emptied", [False, True])
def test_a_file_is_known_after_a_restore(harness, tmp_path, has_grown, is_emptied):
    """A file that was ingested before the snapshot adds only the lines that it has got since."""
    path = tmp_path / "log.ndjson"
    path.write_text("".join(line(f"a:{number % 5}") for number in range(100)))
    with closing(Database(str(tmp_path / "copy.sqlite"))) as database:
        snapshots = Snapshotter(harness.client, database, Deployment.load(harness.client))
        snapshots.run_once()
        assert ingest(harness, path).events == 100
        counted(harness)
        assert snapshots.run_once().whole == 0
        if is_emptied:
            harness.client.flushall()
        restore(harness.client, database, force=not is_emptied)
    if has_grown:
        with path.open("a") as file:
            file.write(line("b"))
    assert ingest(harness, path).events == has_grown
    expected = {f"a:{number}": 20 for number in range(5)} | ({"b": 1} if has_grown else {})
    assert counted(harness) == expected


def test_a_restore_keeps_the_files_that_the_server_knows(harness, tmp_path):
    """A restore over a running server forgets no file that was ingested after the snapshot, also if it has grown."""
    path = tmp_path / "log.ndjson"
    path.write_text(json.dumps({"metric": "view", "subject": "a"}) + "\n")
    with closing(Database(str(tmp_path / "copy.sqlite"))) as database:
        Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once()
        assert ingest(harness, path).events == 1
        counted(harness)
        restore(harness.client, database, force=True)
    with path.open("a") as file:
        file.write(line("b"))
    assert ingest(harness, path).events == 1
    assert counted(harness) == {"a": 1, "b": 1}


@pytest.mark.parametrize("is_emptied", [False, True])
def test_a_file_is_known_that_was_ingested_after_the_snapshot(harness, tmp_path, is_emptied):
    """The archive brings back what a file was identified by, so a file that has grown adds only its new lines."""
    path, archive = tmp_path / "log.ndjson", str(tmp_path / "archive")
    deployment = Deployment.load(harness.client)
    archiver = Archive(harness.client, Store(archive), deployment)
    with closing(Database(str(tmp_path / "copy.sqlite"))) as database:
        Snapshotter(harness.client, database, deployment).run_once()
        for text in (line("a"), line("b") * 3):
            path.write_text(text)
            assert ingest(harness, path).events > 0
            archiver.run_once(settled=0)
        counted(harness)
        if is_emptied:
            harness.client.flushall()
        else:
            harness.client.delete(harness.layout.files)
        settings = Settings(RedisSettings(harness.url))
        store = archive_of(settings, archive, database)
        source, files = open_archive(store), {} if store is None else store.files_ingested()
        restore(harness.client, database, source, force=not is_emptied, files=files)
    path.write_text(line("a") + line("c"))
    assert ingest(harness, path).events == 1
    path.write_text(line("b") * 4)
    assert ingest(harness, path).events == 1
    assert counted(harness) == {"a": 1, "b": 4, "c": 1}


def test_the_archive_keeps_what_files_were_identified_by(harness, tmp_path):
    """Identities that the archive has stay there, also if the server lost them, or another process archived since."""
    deployment, store = Deployment.load(harness.client), Store(str(tmp_path / "archive"))
    first, second = (Archive(harness.client, store, deployment) for _ in range(2))
    for number, archiver in enumerate((first, second, first), start=1):
        harness.client.hset(harness.layout.files, f"file{number}", number)
        if number == 2:
            harness.client.hdel(harness.layout.files, "file1")
        archiver.run_once(settled=0)
    assert store.files_ingested() == {"file1": 1, "file2": 2, "file3": 3}


def test_a_snapshot_keeps_identities_that_the_server_has_lost(harness, tmp_path):
    """Snapshots that are taken after the identities were deleted still have them, so a restore brings them back."""
    path = tmp_path / "log.ndjson"
    path.write_text(line("a"))
    with closing(Database(str(tmp_path / "copy.sqlite"))) as database:
        snapshots = Snapshotter(harness.client, database, Deployment.load(harness.client))
        assert ingest(harness, path).events == 1
        counted(harness)
        snapshots.run_once()
        harness.client.delete(harness.layout.files)
        for _ in range(2):
            snapshots.run_once()
        other = tmp_path / "other.ndjson"
        other.write_text(line("other"))
        assert ingest(harness, other).events == 1
        counted(harness)
        snapshots.run_once()
        restore(harness.client, database, force=True)
    for file, subject in ((path, "b"), (other, "c")):
        with file.open("a") as opened:
            opened.write(line(subject))
        assert ingest(harness, file).events == 1
    assert counted(harness) == {"a": 1, "b": 1, "other": 1, "c": 1}


def test_a_snapshot_reads_the_identities_once(harness, tmp_path, monkeypatch):
    """However many partitions there are, a snapshot without new files reads the list of files twice at most."""
    path = tmp_path / "log.ndjson"
    path.write_text(line("a"))
    calls = []

    def reading(*arguments):
        calls.append(arguments)
        return ingested_files(*arguments)

    monkeypatch.setattr("tallystream_worker.snapshot.snapshotter.ingested_files", reading)
    assert ingest(harness, path).events == 1
    counted(harness)
    with closing(Database(str(tmp_path / "copy.sqlite"))) as database:
        snapshots = Snapshotter(harness.client, database, Deployment.load(harness.client))
        for _ in range(2):
            calls.clear()
            snapshots.run_once()
            assert len(calls) <= 2


def test_a_file_is_archived_although_another_one_was_lost(harness, tmp_path):
    """If a failover loses an identity, and another one is added, the archive gets it: their number is the same."""
    store = Store(str(tmp_path / "archive"))
    archive = Archive(harness.client, store, Deployment.load(harness.client))
    harness.client.hset(harness.layout.files, mapping={"a": 1, "b": 2})
    archive.run_once(settled=0)
    harness.client.hdel(harness.layout.files, "b")
    harness.client.hset(harness.layout.files, "c", 3)
    archive.run_once(settled=0)
    assert store.files_ingested() == {"a": 1, "b": 2, "c": 3}
