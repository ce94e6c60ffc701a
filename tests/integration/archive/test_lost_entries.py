"""An archive of a server that lost its newest entries has each entry of the server once; lost ones are set aside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow.parquet as pq
import pytest

from tallystream import Producer
from tallystream.deployment import Deployment
from tallystream.errors import KeyLost
from tallystream.reading.totals import Totals
from tallystream.wire.stream_id import parse_id
from tallystream_worker.archive import archiver
from tallystream_worker.archive.archiver import ARCHIVE_GROUP, PartitionArchiver
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive, LiveArchive
from tallystream_worker.archive.store import ArchiveError, Store
from tallystream_worker.counting.entry import Entry
from tallystream_worker.process import failpoints, logs
from tallystream_worker.process.failpoints import VARIABLE
from tallystream_worker.rebuild.reopen import reopen
from tallystream_worker.service.server_stats import query_server_stats
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness
from tests.paths import ROOT
from tests.rewind import copy_of, go_back
from tests.unit.archive.test_rows import meaning
from tests.waiting import until

if TYPE_CHECKING:
    from tallystream_worker.archive.lost import LostEntries

PROGRAM = Path(sys.executable).with_name("tallystream")


@pytest.fixture
def harness(server):
    """Provide a harness on an empty server, with one partition."""
    with Harness(server.url, partitions=1) as wired:
        yield wired


@pytest.fixture
def folder(tmp_path):
    """Provide the path of the archive's folder."""
    return tmp_path / "archive"


def emit(harness: Harness, producer: Producer, subject: str, count: int = 5) -> None:
    """Append `count` entries with one event each, and one plain entry."""
    for _ in range(count):
        producer.emit("view", subject)
        producer.flush()
    harness.client.xadd(harness.layout.keys[0].stream, {"metric": "view", "subject": subject})


def rewound(producer: Producer) -> None:
    """Wait until the producer has noticed that the server lost entries, and has sent them again."""
    until(lambda: producer.stats.rewound_streams, what="the rollback of the producer")
    producer.flush()


def archive(harness: Harness, folder: Path, lost: list[LostEntries]) -> int:
    """Archive everything with a new `Archive`, as a new process does."""
    return Archive(harness.connect(), Store(str(folder)), harness.deployment, lost.append).run_once(settled=0)


def events(folder: Path, ending: str) -> int:
    """Return the number of events that DuckDB finds in the files whose names have this ending."""
    (found,) = duckdb.read_parquet(f"{folder}/**/*.{ending}").sum("events").fetchone()
    return int(found)


def check(harness: Harness, folder: Path) -> None:
    """Assert that the archive has the entries of the stream, for its readers and for DuckDB."""
    found = harness.client.xrange(harness.layout.keys[0].stream)
    expected = [meaning(Entry(id_.decode(), fields)) for id_, fields in found]
    assert [meaning(entry) for entry in entries(Store(str(folder)), 0)] == expected
    assert events(folder, "parquet") == sum(int(fields.get(b"n", 1)) for _, fields in found)


def test_a_partition_that_lost_all_keys_is_archived_from_its_new_beginning(harness, folder):
    """While the keys are lost, nothing is created; when counting has begun again, the old files are set aside."""
    keys, lost = harness.layout.keys[0], []
    with Producer(harness.url) as producer:
        emit(harness, producer, "a")
    assert archive(harness, folder, lost) == 6
    harness.client.delete(*harness.client.scan_iter(f"{keys.prefix}*"))
    with pytest.raises(KeyLost):
        archive(harness, folder, lost)
    assert harness.client.keys(f"{keys.prefix}*") == []
    reopen(harness.client, Deployment.find(harness.client))
    with Producer(harness.url) as producer:
        emit(harness, producer, "b")
    archive(harness, folder, lost)
    check(harness, folder)
    assert [(each.entries, each.events) for each in lost] == [(6, 6)]


@pytest.mark.parametrize("divided", [True, False])
def test_entries_that_were_sent_again_are_archived_once(harness, folder, divided):
    """After the server lost archived entries, the archive has what it has, and the lost entries are in other files."""
    with Producer(harness.url) as producer:
        emit(harness, producer, "a")
        lost: list[LostEntries] = []
        assert archive(harness, folder, lost) == 6
        if divided:  # a part of the next file is not lost
            emit(harness, producer, "kept", 2)
        earlier = copy_of(harness.client)
        emit(harness, producer, "again")
        archive(harness, folder, lost)
        emit(harness, producer, "again")
        archive(harness, folder, lost)
        newest = Store(str(folder)).newest(0)
        go_back(harness.client, earlier)
        producer.emit("view", "new")
        rewound(producer)
    archive(harness, folder, lost)
    check(harness, folder)
    last = max((parse_id(entry.decode()) for entry in earlier_ids(harness, newest.last)), default=None)
    assert [(each.entries, each.events, each.sent_again) for each in lost] == [(12, 12, 10)]
    assert parse_id(lost[0].after) == last
    assert parse_id(lost[0].until) == newest.last
    assert events(folder, "lost") == 12
    archive(harness, folder, lost)
    assert len(lost) == 1


def earlier_ids(harness: Harness, last: tuple[int, int]) -> list[bytes]:
    """Return the IDs in the stream up to `last`."""
    return [id_ for id_, _ in harness.client.xrange(harness.layout.keys[0].stream, max=f"{last[0]}-{last[1]}")]


def test_a_running_archiver_notices(harness, folder):
    """An archiver that sees no error during the failover sets the lost entries aside before it writes another file."""
    lost: list[LostEntries] = []
    running = Archive(harness.connect(), Store(str(folder)), harness.deployment, lost.append)
    with Producer(harness.url) as producer:
        emit(harness, producer, "a")
        running.run_once(settled=0)
        earlier = copy_of(harness.client)
        emit(harness, producer, "again")
        running.run_once(settled=0)
        go_back(harness.client, earlier)
        producer.emit("view", "new")
        rewound(producer)
    running.run_once(settled=0)
    check(harness, folder)
    assert [(each.entries, each.sent_again) for each in lost] == [(6, 5)]


def test_a_lost_position_alone_loses_nothing(harness, folder):
    """If the server lost only the position of the archive, no entry is set aside, and none is archived twice."""
    lost: list[LostEntries] = []
    with Producer(harness.url) as producer:
        emit(harness, producer, "a")
        archive(harness, folder, lost)
        emit(harness, producer, "b")
        earlier = copy_of(harness.client)
        archive(harness, folder, lost)
        go_back(harness.client, earlier)
        emit(harness, producer, "c")
    archive(harness, folder, lost)
    check(harness, folder)
    assert lost == []
    assert not list(folder.rglob("*.lost"))


def test_a_restore_sets_aside_what_the_restored_stream_lacks(harness, folder):
    """After a restore that did not read the archive, archived entries that were sent again are in it once."""
    lost: list[LostEntries] = []
    database = Database(str(folder.parent / "snapshot.sqlite"))
    keys = harness.layout.keys[0]
    with Producer(harness.url) as producer:
        emit(harness, producer, "a")
        archive(harness, folder, lost)
        harness.drain()
        Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once()
        emit(harness, producer, "kept", 2)
        earlier = copy_of(harness.client)
        emit(harness, producer, "again")
        archive(harness, folder, lost)
        go_back(harness.client, earlier)
        restore(harness.client, database, force=True)
        producer.emit("view", "new")
        rewound(producer)
    archive(harness, folder, lost)
    stream = [meaning(Entry(id_.decode(), fields)) for id_, fields in harness.client.xrange(keys.stream)]
    archived = [meaning(entry) for entry in entries(Store(str(folder)), 0)]
    assert archived == stream
    assert [(each.entries, each.sent_again) for each in lost] == [(6, 5)]
    archive(harness, folder, lost)
    harness.client.xtrim(keys.stream, maxlen=2, approximate=False)  # trimmed entries are not lost
    harness.client.xgroup_destroy(keys.stream, ARCHIVE_GROUP)
    archive(harness, folder, lost)
    assert len(lost) == 1
    database.close()


def test_a_restore_of_an_emptied_server_sets_aside_what_is_sent_again(harness, folder):
    """A restored stream begins after its snapshot. Archived entries after that, sent again, are in the archive once."""
    lost: list[LostEntries] = []
    database = Database(str(folder.parent / "snapshot.sqlite"))
    keys = harness.layout.keys[0]
    with Producer(harness.url) as producer:
        emit(harness, producer, "a")
        archive(harness, folder, lost)
        harness.drain()
        Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once()
        emit(harness, producer, "again")
        archive(harness, folder, lost)
        harness.client.flushall()
        restore(harness.client, database, force=True)
        producer.emit("view", "new")
        rewound(producer)
    archive(harness, folder, lost)
    stream = [meaning(Entry(id_.decode(), fields)) for id_, fields in harness.client.xrange(keys.stream)]
    archived = [meaning(entry) for entry in entries(Store(str(folder)), 0)]
    assert len(archived) == 6 + len(stream)  # those of the snapshot are in the archive alone
    assert archived[-len(stream) :] == stream
    assert [(each.entries, each.sent_again) for each in lost] == [(6, 5)]
    database.close()


def test_a_kill_while_entries_are_set_aside(harness, folder):
    """After a kill before the group is moved, the next archiver completes the work."""
    with Producer(harness.url) as producer:
        emit(harness, producer, "a")
        archive(harness, folder, [])
        emit(harness, producer, "kept")
        earlier = copy_of(harness.client)
        emit(harness, producer, "again")
        archive(harness, folder, [])
        go_back(harness.client, earlier)
        producer.emit("view", "new")
        rewound(producer)
    command = [PROGRAM, "archive", folder, "--once", "--redis", harness.url]
    environment = os.environ | {"TALLYSTREAM_REDIS_PARTITIONS": "1"}
    killed = subprocess.run(command, env=environment | {VARIABLE: "after-set-aside"}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    archive(harness, folder, [])
    check(harness, folder)
    assert len(list(folder.rglob("*.lost"))) == 1
    assert missing(harness) == 1, "the plain entry of the lost six"


def missing(harness: Harness) -> int:
    """Return the number of lost entries that monitoring gets from the server."""
    with Totals(harness.url) as totals:
        return totals.run(query_server_stats(harness.layout)).archive_lost


def test_a_loss_is_stated_until_its_files_are_moved_away(harness, folder, tmp_path):
    """Each archiver states the number of lost entries by the files; an operator who moves these ends it."""
    archive(harness, folder, [])
    earlier = copy_of(harness.client)
    with Producer(harness.url) as producer:
        emit(harness, producer, "lost")
    archive(harness, folder, [])
    go_back(harness.client, earlier)
    running = Archive(harness.connect(), Store(str(folder)), harness.deployment)
    running.run_once(settled=0)
    assert missing(harness) == 6
    harness.client.hdel(harness.layout.meta, "archive-lost")  # as after a restore
    running.run_once(settled=0)
    assert missing(harness) == 6
    (folder / "lost").rename(tmp_path / "counted")
    running.run_once(settled=0)
    assert missing(harness) == 0


def test_a_loss_is_reported(harness, folder, capsys):
    """The service logs which entries were lost, and the command prints it."""
    archive(harness, folder, [])
    earlier = copy_of(harness.client)
    for way in ("service", "command"):
        with Producer(harness.url) as producer:
            emit(harness, producer, "lost")
        archive(harness, folder, [])
        go_back(harness.client, earlier)
        if way == "service":
            LiveArchive(harness.connect(), str(folder), harness.deployment, logs.configure()).run_once()
            (line,) = map(json.loads, capsys.readouterr().err.splitlines())
            assert (line["event"], line["level"], line["entries"]) == ("archive.set_aside", "error", 6)
            assert missing(harness) == 6
    command = [PROGRAM, "archive", folder, "--once", "--redis", harness.url]
    environment = os.environ | {"TALLYSTREAM_REDIS_PARTITIONS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the server has lost 6 archived entries (6 events)" in done.stderr


def test_lost_entries_are_counted_again_as_the_page_tells(harness, folder):
    """The query of the page on the archive finds the events that were not sent again; after `ingest`, they count."""
    with Producer(harness.url) as producer:
        emit(harness, producer, "a")
        archive(harness, folder, [])
        earlier = copy_of(harness.client)
        with Producer(harness.url) as gone:  # a process that has ended sends nothing again
            gone.emit("like", "b", -3)
            gone.emit("vote", "b", actor="u1")
            for _ in range(3):
                gone.emit("view", "b")
        emit(harness, producer, "again")
        archive(harness, folder, [])
        go_back(harness.client, earlier)
        producer.emit("view", "new")
        rewound(producer)
    archive(harness, folder, [])
    query = (ROOT / "docs" / "archive.md").read_text().partition("```sql\nCOPY")[2].partition("```")[0]
    file = folder.parent / "lost.parquet"
    duckdb.sql(f"COPY{query}".replace("'archive/", f"'{folder}/").replace("lost.parquet", str(file)))
    command = [PROGRAM, "ingest", file, "--redis", harness.url]
    environment = os.environ | {"TALLYSTREAM_REDIS_PARTITIONS": "1"}
    done = subprocess.run(command, env=environment, cwd=folder.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    harness.drain()
    # Each call of `emit` appended five entries of the producer, and one of a client without a name.
    assert harness.totals() == {
        ("view", "a"): 6, ("view", "again"): 6, ("view", "new"): 1,
        ("view", "b"): 3, ("like", "b"): -3, ("vote", "b"): 1,
    }  # fmt: skip
    assert harness.ledger()["counted"] == 6 + 6 + 1 + 5


def test_two_archivers_find_the_same_loss(harness, folder):
    """If two archivers find a loss at the same time, the second sets nothing aside that the first has written since."""
    lost: list[LostEntries] = []
    store, keys = Store(str(folder)), harness.layout.keys[0]
    with Producer(harness.url) as producer:
        emit(harness, producer, "a")
        archive(harness, folder, lost)
        earlier = copy_of(harness.client)
        emit(harness, producer, "again")
        archive(harness, folder, lost)
        go_back(harness.client, earlier)
        producer.emit("view", "new")
        rewound(producer)
        slow = PartitionArchiver(harness.connect(), store, keys, 0, lost.append)
        find = slow._position
        calls = []

        def late():
            calls.append(1)
            if len(calls) == 3:  # after it has compared the files with the stream
                archive(harness, folder, lost)
            return find()

        slow._position = late
        slow.ensure_group()
        while slow.run_once(settled=0) is not None:
            pass
    check(harness, folder)
    assert len(lost) == 1
    assert len(calls) > 3


def come_back(harness: Harness, folder: Path) -> set[str]:
    """Archive entries that the server loses and then has again, after another one; return the IDs of the archived."""
    stream, event, next_day = harness.layout.keys[0].stream, {"metric": "view", "subject": "a"}, 86_400_000
    harness.client.xadd(stream, event, "1000-0")
    archive(harness, folder, [])
    earlier = copy_of(harness.client)
    for id_ in (f"{next_day}-1", f"{next_day}-3"):
        harness.client.xadd(stream, event, id_)
    archive(harness, folder, [])
    archived = {id_.decode() for id_, _ in harness.client.xrange(stream)}
    go_back(harness.client, earlier)
    for id_ in ("2000-0", f"{next_day}-1", f"{next_day}-2", f"{next_day}-3"):
        harness.client.xadd(stream, event, id_)
    return archived


def test_a_slow_archiver_keeps_a_file_that_another_has_written_again(harness, folder):
    """If another archiver writes entries again to a file of the same name, a slow one does not take this file out."""
    come_back(harness, folder)
    store, keys = Store(str(folder)), harness.layout.keys[0]
    read, calls = store.read, []

    def late(file):
        calls.append(file)
        found = read(file)
        if len(calls) == 2:  # the first time, to compare the file with the stream; now, to set it aside
            archive(harness, folder, [])
            assert file in list(Store(str(folder)).files(0))
        return found

    store.read = late
    PartitionArchiver(harness.connect(), store, keys, 0).ensure_group()
    assert len(calls) == 2
    check(harness, folder)


def test_no_archived_entry_is_deleted(harness, folder, monkeypatch):
    """Until entries that the stream has are archived again, another file has them: the server may lose them again."""
    archived = come_back(harness, folder)

    def stop(place):
        raise InterruptedError(place)

    monkeypatch.setattr(failpoints, "reach", stop)
    with pytest.raises(InterruptedError, match="after-set-aside"):
        archive(harness, folder, [])
    found = [pq.read_table(path).to_pylist() for path in folder.glob("day=*/*/*_*")]
    rows = [row for table in found for row in table]
    assert {f"{round(row['received'].timestamp() * 1000)}-{row['received_n']}" for row in rows} == archived
    assert [entry.id for entry in entries(Store(str(folder)), 0)] == ["1000-0"]


def put_back(harness: Harness, folder: Path, *, kept: int, others: int, passing: Archive | None = None) -> None:
    """Let an archiver set entries aside that a server has lost, and then put its newer data back on the server.

    Args:
        harness: The server.
        folder: The archive.
        kept: Number of entries before the loss, each of a client without a name, and one more if it is not 0.
        others: The same number of the entries that are appended and archived after the loss.
        passing: The archiver; `None` for a new one each time.
    """

    def append(subject: str, count: int) -> None:
        if count:
            with Producer(harness.url) as producer:
                emit(harness, producer, subject, count)
        passing.run_once(settled=0) if passing is not None else archive(harness, folder, [])

    append("kept", kept)
    older = copy_of(harness.client)
    append("back", 5)
    newer = copy_of(harness.client)
    go_back(harness.client, older)
    append("other", others)
    go_back(harness.client, newer)


@pytest.mark.parametrize("is_running", [True, False])
@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("kept", [0, 2])
def test_entries_that_the_server_got_back_are_archived_again(harness, folder, kept, others, is_running):
    """If newer data is put back, entries that the archiver had set aside are in the archive again, before new ones."""
    running = Archive(harness.connect(), Store(str(folder)), harness.deployment)
    put_back(harness, folder, kept=kept, others=others, passing=running if is_running else None)
    if not is_running:
        running = Archive(harness.connect(), Store(str(folder)), harness.deployment)
    running.run_once(settled=0)
    check(harness, folder)
    with Producer(harness.url) as producer:
        emit(harness, producer, "new")
    assert running.run_once(settled=0) == 6
    check(harness, folder)


def test_entries_that_the_server_got_back_are_archived_before_new_ones(harness, folder):
    """A running archiver that finds new entries first archives those again that the group has passed."""
    running = Archive(harness.connect(), Store(str(folder)), harness.deployment)
    put_back(harness, folder, kept=2, others=2, passing=running)
    with Producer(harness.url) as producer:
        emit(harness, producer, "new")
    running.run_once(settled=0)
    check(harness, folder)


@pytest.mark.parametrize("is_late", [True, False])
def test_trimmed_entries_that_the_server_got_back_stay_a_gap(harness, folder, monkeypatch, is_late):
    """If entries were trimmed before they could be archived again, the next file does not hide it.

    They may be trimmed at the last moment, after the archiver has read the first entry of the stream.
    """
    put_back(harness, folder, kept=2, others=2)
    stream = harness.layout.keys[0].stream
    ids = [id_.decode() for id_, _ in harness.client.xrange(stream)]
    left = ids[5:]  # three of the six entries that came back after the three that were kept
    move = archiver._GO_BACK

    def trim(*arguments):
        harness.client.xtrim(stream, minid=left[0], approximate=False)
        return move(*arguments)

    if is_late:
        monkeypatch.setattr(archiver, "_GO_BACK", trim)
    else:
        harness.client.xtrim(stream, minid=left[0], approximate=False)
    archive(harness, folder, [])
    store = Store(str(folder))
    assert [entry.id for entry in entries(store, 0, with_gaps=True)] == ids[:3] + left
    with pytest.raises(ArchiveError, match="missing"):
        list(entries(store, 0))


def test_entries_after_a_removed_file_are_archived_again(harness, folder):
    """If the newest file was removed, the archiver archives its entries again, because the stream still has them."""
    with Producer(harness.url) as producer:
        for subject in ("a", "b"):
            emit(harness, producer, subject)
            archive(harness, folder, [])
    newest = Store(str(folder)).newest(0)
    Path(newest.path).unlink()
    assert archive(harness, folder, []) == 6
    check(harness, folder)
