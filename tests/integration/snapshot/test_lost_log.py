"""A snapshot that contains entries that the server has lost is not replaced until they were sent again."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tallystream import Producer
from tallystream.client.server_time import server_time
from tallystream.deployment import Deployment
from tallystream.errors import DamagedValue, FlushTimeout, KeyLost
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.keys import RESTORED, RESTORED_AT, SNAPSHOTS
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.snapshot.database import Database, SnapshotError
from tallystream_worker.snapshot.lost_log import LogLost, put_mark
from tallystream_worker.snapshot.partition_restore import PartitionRestore
from tallystream_worker.snapshot.point_in_time import ViewLost
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness
from tests.rewind import copy_of, go_back
from tests.waiting import until

PROGRAM = Path(sys.executable).with_name("tallystream")


@pytest.fixture
def harness(server):
    """Provide a harness on an empty server, with one partition."""
    with Harness(server.url, partitions=1, rules=Rules({"view": Metric(windows=("hour",))})) as wired:
        yield wired


@pytest.fixture
def database(tmp_path):
    """Provide an empty database."""
    opened = Database(str(tmp_path / "snapshot.sqlite"))
    yield opened
    opened.close()


def take(harness: Harness, database: Database, **options: bool):
    """Take a snapshot with a new `Snapshotter`, as a new process does."""
    return Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once(**options)


def totals(database: Database) -> dict[str, int]:
    """Return the totals in a snapshot, by subject."""
    with sqlite3.connect(database.place) as connection:
        return dict(connection.execute("SELECT subject, value FROM totals"))


def emit(harness: Harness, subject: str, events: int = 10, producer: Producer | None = None) -> None:
    """Emit events of one subject and count them; without `producer`, that of a process that then ends."""
    with Producer(harness.url) as own:
        for _ in range(events):
            (producer or own).emit("view", subject)
        (producer or own).flush()
    harness.drain()


def lose_the_end(harness: Harness, database: Database) -> None:
    """Take a snapshot, count an entry, take another snapshot, and let the server lose the entry."""
    emit(harness, "a")
    take(harness, database)
    earlier = copy_of(harness.client)
    emit(harness, "lost")
    take(harness, database)
    go_back(harness.client, earlier)


def test_a_snapshot_that_has_more_than_the_server_is_kept(harness, database):
    """If the server lost the end of its log, no snapshot replaces the better one, however many entries follow."""
    lose_the_end(harness, database)
    for subject in ("b", "c"):
        emit(harness, subject)
        with pytest.raises(LogLost, match=r"1 producers or sources have not sent theirs again.*--accept-loss"):
            take(harness, database)
        with pytest.raises(LogLost):
            take(harness, database, whole=True)
    assert totals(database) == {"a": 10, "lost": 10}


def test_a_snapshot_of_an_earlier_release_is_kept_if_it_has_more_than_the_server(harness, database):
    """After an upgrade, a snapshot with entries that the server has lost is not replaced either."""
    lose_the_end(harness, database)
    database.state({"format": "1"})
    emit(harness, "b")
    with pytest.raises(LogLost):
        take(harness, database)
    assert totals(database) == {"a": 10, "lost": 10}
    Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once(accept_loss=True)
    assert totals(database) == {"a": 10, "b": 10}


@pytest.mark.parametrize("other", [{"partitions": "9"}, {"epoch": "x"}])
def test_another_format_is_named_before_other_data(harness, database, other):
    """The error about a snapshot of other data and another format begins with the format."""
    take(harness, database)
    database.state({"format": "1", **other})
    expected = rf"contains a snapshot of format 1 \(this release writes [0-9]+\) of other data \({next(iter(other))} "
    with pytest.raises(SnapshotError, match=expected):
        take(harness, database)


def test_what_the_log_has_after_a_snapshot_is_added_to_it(harness, database):
    """After a loss, a restore gives the events of the snapshot and the later ones, each once."""
    with Producer(harness.url) as producer:
        emit(harness, "a", producer=producer)
        take(harness, database)
        earlier = copy_of(harness.client)
        emit(harness, "lost")
        emit(harness, "again", producer=producer)
        take(harness, database)
        go_back(harness.client, earlier)
        emit(harness, "new", producer=producer)
        until(lambda: producer.stats.rewound_streams, what="the rollback of the producer")
        producer.flush()
        harness.drain()
        assert harness.totals() == {("view", "a"): 10, ("view", "again"): 10, ("view", "new"): 10}
        restore(harness.client, database, force=True)
        emit(harness, "new", producer=producer)
    assert harness.totals() == {("view", "a"): 10, ("view", "lost"): 10, ("view", "again"): 10, ("view", "new"): 20}
    take(harness, database)
    assert totals(database) == {"a": 10, "lost": 10, "again": 10, "new": 20}


@pytest.mark.parametrize("archived", [True, False])
def test_what_a_snapshot_lacks_is_counted_if_it_is_sent_again(harness, database, tmp_path, archived):
    """Entries that were not counted at a snapshot, then lost and sent again, count once after a restore."""
    keys = harness.layout.keys[0]
    store = Store(str(tmp_path / "archive"))
    with Producer(harness.url) as producer:
        emit(harness, "a", producer=producer)
        earlier = copy_of(harness.client)
        emit(harness, "counted", producer=producer)
        for subject in ("pending", "unread", "unread"):
            producer.emit("view", subject)
            producer.flush()
            if subject == "pending":
                assert harness.client.xreadgroup(keys.group, "w", {keys.stream: ">"})
        take(harness, database)
        if archived:
            Archive(harness.client, store, harness.deployment).run_once(settled=0)
        go_back(harness.client, earlier)
        producer.emit("view", "new")
        until(lambda: producer.stats.rewound_streams, what="the rollback of the producer")
        producer.flush()
        source = partial(entries, store) if archived else None
        (part,) = restore(harness.client, database, source, force=True).parts
        producer.emit("view", "new")
    harness.drain()
    assert harness.totals() == {
        ("view", "a"): 10, ("view", "counted"): 10, ("view", "pending"): 1, ("view", "unread"): 2, ("view", "new"): 2,
    }  # fmt: skip
    assert part.missing == 0
    ledger = harness.ledger()
    assert (ledger["appended"], ledger["counted"], ledger.get("trimmed", 0)) == (25, 25, 0)


def test_a_restored_stream_has_no_hole(harness, database, tmp_path):
    """If only the archive has an entry that the server lost, an audit after a restore still counts every entry."""
    store = Store(str(tmp_path / "archive"))
    emit(harness, "a")
    take(harness, database)
    earlier = copy_of(harness.client)
    emit(harness, "lost")
    Archive(harness.client, store, Deployment.load(harness.client)).run_once(settled=0)
    take(harness, database)
    go_back(harness.client, earlier)
    emit(harness, "new")
    restore(harness.client, database, partial(entries, store), force=True)
    deployment = Deployment.load(harness.client)
    Archive(harness.client, store, deployment).run_once(settled=0)
    found = audit(harness.client, deployment, deployment.rules, sources=Sources(archive=store))
    assert (found.differences, found.unproved) == ([], 0)
    assert harness.totals() == {("view", "a"): 10, ("view", "lost"): 10, ("view", "new"): 10}


def test_nothing_stops_if_everything_was_sent_again(harness, database):
    """After producers have sent all lost entries again, the next snapshot reads every counter; a restore is exact."""
    with Producer(harness.url) as producer:
        emit(harness, "a", producer=producer)
        take(harness, database)
        earlier = copy_of(harness.client)
        emit(harness, "again", producer=producer)
        take(harness, database)
        go_back(harness.client, earlier)
        emit(harness, "new", producer=producer)
        until(lambda: producer.stats.rewound_streams, what="the rollback of the producer")
        producer.flush()
        harness.drain()
    assert take(harness, database).whole == 1
    assert totals(database) == {"a": 10, "again": 10, "new": 10}
    assert take(harness, database).whole == 0
    emit(harness, "later")
    harness.client.flushall()
    restore(harness.client, database)
    assert harness.totals() == {("view", "a"): 10, ("view", "again"): 10, ("view", "new"): 10}


def test_entries_that_nobody_sends_again_stop_it(harness, database):
    """If an entry of another client than a producer was lost, the snapshot is kept, though no producer lost one."""
    emit(harness, "a")
    take(harness, database)
    earlier = copy_of(harness.client)
    harness.client.xadd(harness.layout.keys[0].stream, {"metric": "view", "subject": "plain"})
    harness.drain()
    take(harness, database)
    go_back(harness.client, earlier)
    emit(harness, "b")
    with pytest.raises(LogLost, match="may be of clients that send nothing again"):
        take(harness, database)
    assert totals(database) == {"a": 10, "plain": 1}


def test_counts_that_were_lost_without_entries(harness, database):
    """If the server lost only that entries were counted, every counter is read again, so a restore is exact."""
    emit(harness, "a")
    take(harness, database)
    with Producer(harness.url) as producer:
        producer.emit("view", "b")
        producer.flush()
    earlier = copy_of(harness.client)
    harness.drain()
    take(harness, database)
    go_back(harness.client, earlier)
    assert take(harness, database).whole == 1
    assert totals(database) == {"a": 10}
    harness.client.flushall()
    restore(harness.client, database)
    assert harness.totals() == {("view", "a"): 10}  # the entry of `b` was not counted at the snapshot, and is gone
    assert harness.ledger()["trimmed"] == 1


def test_a_loss_is_accepted_on_the_command_line(harness, database):
    """The command names the loss and both choices; with --accept-loss, it replaces the snapshot."""
    lose_the_end(harness, database)
    command = [PROGRAM, "snapshot", database.place, "--once", "--redis", harness.url]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "restore --force" in refused.stderr
    assert "Traceback" not in refused.stderr
    accepted = subprocess.run([*command, "--accept-loss"], capture_output=True, text=True, check=False)
    assert accepted.returncode == 0, accepted.stderr
    assert totals(database) == {"a": 10}
    emit(harness, "b")
    assert take(harness, database).whole == 0
    assert totals(database) == {"a": 10, "b": 10}
    wrong = subprocess.run([*command[:3], "--accept-loss"], capture_output=True, text=True, check=False)
    assert "give --accept-loss only with --once" in wrong.stderr


def test_a_loss_during_a_snapshot_is_found(harness, database, monkeypatch):
    """If the server loses data while a snapshot is taken, that snapshot is not written."""
    emit(harness, "a")
    take(harness, database)
    take_one = Snapshotter.take
    earlier = copy_of(harness.client)
    take(harness, database)

    def then_lose(*arguments):
        taken = take_one(*arguments)
        go_back(harness.client, earlier)
        return taken

    emit(harness, "lost")
    with monkeypatch.context() as patched:
        patched.setattr(Snapshotter, "take", then_lose)
        with pytest.raises(ViewLost, match="lost data while a snapshot was taken"):
            take(harness, database)
    assert totals(database) == {"a": 10}
    assert take(harness, database).whole == 1


def test_two_databases_do_not_disturb_each_other(harness, database, tmp_path):
    """Snapshots in several databases keep their marks: each reads only what changed since its own last one."""
    other = Database(str(tmp_path / "other.sqlite"))
    emit(harness, "a")
    take(harness, database)
    take(harness, other)
    for subject in "bcd":
        emit(harness, subject)
        assert take(harness, database).whole == 0
    assert put_mark(harness.client, harness.layout.keys[0], other.position(0)[0].mark)
    take(harness, other)
    assert totals(other) == totals(database)
    assert len(harness.client.hget(harness.layout.keys[0].sequences, SNAPSHOTS).split()) <= 4
    other.close()


def test_a_mark_of_a_snapshot_that_was_not_written_does_no_harm(harness, database, monkeypatch):
    """After a crash between the mark and the commit, the next snapshot reads only what changed."""
    emit(harness, "a")
    take(harness, database)
    with monkeypatch.context() as patched:
        patched.setattr(Database, "put", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            take(harness, database)
    emit(harness, "b")
    assert take(harness, database).whole == 0
    assert totals(database) == {"a": 10, "b": 10}


def test_archived_entries_after_a_lost_end_count(harness, database, tmp_path, monkeypatch):
    """A restore counts the archived entries that the stream has lost, also those after its last entry.

    The archive lacks a file whose entries the stream has. Another client appends an entry during the restore, although
    the IDs of the lost entries are ahead of the server's clock.
    """
    keys, folder = harness.layout.keys[0], tmp_path / "archive"
    store = Store(str(folder))

    def emit_and_archive(subject: str) -> None:
        emit(harness, subject)
        Archive(harness.client, store, harness.deployment).run_once(settled=0)

    emit_and_archive("a")
    take(harness, database)
    for subject in ("kept", "gap", "later"):
        emit_and_archive(subject)
    removed = sorted(folder.rglob("*.parquet"))[2]
    earlier = copy_of(harness.client)
    harness.client.execute_command("XSETID", keys.stream, f"{server_time(harness.client) + 60_000}-0")
    emit_and_archive("lost")
    go_back(harness.client, earlier)
    removed.unlink()
    set_up = PartitionRestore._set_up

    during: list[Any] = []

    def append_and_set_up(*arguments: Any, **options: Any) -> Any:
        if not during:
            during.append(harness.client.xadd(keys.stream, {"metric": "view", "subject": "during"}))
        return set_up(*arguments, **options)

    monkeypatch.setattr(PartitionRestore, "_set_up", append_and_set_up)
    (part,) = restore(harness.client, database, partial(entries, store), force=True).parts
    emit(harness, "after")
    right = dict.fromkeys(("a", "kept", "gap", "later", "lost", "after"), 10) | {"during": 1}
    assert harness.totals() == {("view", subject): value for subject, value in right.items()}
    assert part.survived
    assert part.missing == 0
    assert harness.ledger()["counted"] == sum(right.values())


def copy_to(database: Database, file: Path) -> Database:
    """Copy a database to another file, as an operator does, and return it."""
    with sqlite3.connect(database.place) as connection, closing(sqlite3.connect(file)) as other:
        connection.backup(other)
    return Database(str(file))


@pytest.mark.parametrize("is_emptied", [True, False])
def test_a_snapshot_that_a_restore_has_passed_over_is_named(harness, database, tmp_path, is_emptied):
    """After a restore of an older file, the error names that restore, and first the command that replaces the snapshot.

    The snapshot is unchanged until one of the two commands runs. The error names no entry after which entries are lost.
    """
    emit(harness, "a")
    take(harness, database)
    with closing(copy_to(database, tmp_path / "older.sqlite")) as older:
        emit(harness, "passed-over")
        take(harness, database)
        if is_emptied:
            harness.client.flushall()
        else:
            harness.client.xtrim(harness.layout.keys[0].stream, maxlen=0, approximate=False)
        restore(harness.client, older, force=True)
    for _ in range(2):
        with pytest.raises(LogLost) as refused:
            take(harness, database)
        found = re.search("another snapshot was restored at .* after this one was taken", str(refused.value))
        assert found, refused.value
        assert "after 0-0" not in str(refused.value)
        replacing, going_back = (str(refused.value).index(each) for each in ("--once --accept-loss", "restore --force"))
        assert replacing < going_back
        emit(harness, "b")
    assert totals(database) == {"a": 10, "passed-over": 10}
    take(harness, database, accept_loss=True)
    assert totals(database) == {"a": 10, "b": 20}
    emit(harness, "c")
    assert take(harness, database).whole == 0


@pytest.mark.parametrize(("field", "value"), [(RESTORED_AT, "+5"), (RESTORED_AT, "abc"), (RESTORED, "abc")])
def test_a_damaged_record_of_a_restore_is_named(harness, database, field, value):
    """If another client has changed the record of a restore, the error names the field and what mends it."""
    lose_the_end(harness, database)
    (keys,) = harness.layout.keys
    harness.client.hset(keys.sequences, mapping={RESTORED: "x.y 0-0 1", RESTORED_AT: "5"} | {field: value})
    with pytest.raises(DamagedValue, match=rf"the field {field} of {re.escape(keys.sequences)} .* Delete the field"):
        take(harness, database)
    harness.client.hdel(keys.sequences, field)
    with pytest.raises(LogLost):
        take(harness, database)


@pytest.mark.parametrize("is_other", [True, False])
def test_a_loss_after_a_restore_is_not_called_a_choice(harness, database, tmp_path, is_other):
    """If the server loses entries that were counted after a restore, the error is about the loss, not the restore."""
    emit(harness, "a")
    take(harness, database)
    with closing(copy_to(database, tmp_path / "older.sqlite")) as older:
        restore(harness.client, older if is_other else database, force=True)
    take(harness, database)
    earlier = copy_of(harness.client)
    emit(harness, "lost")
    take(harness, database)
    go_back(harness.client, earlier)
    with pytest.raises(LogLost, match=r"the server has lost entries after [1-9]"):
        take(harness, database)
    assert totals(database) == {"a": 10, "lost": 10}


def test_no_entry_is_named_if_none_is_left(harness, database):
    """If a stream that lost entries has no entry, the error names only the last lost one."""
    emit(harness, "a")
    earlier = copy_of(harness.client)
    emit(harness, "lost")
    take(harness, database)
    go_back(harness.client, earlier)
    harness.client.xtrim(harness.layout.keys[0].stream, maxlen=0, approximate=False)
    with pytest.raises(LogLost, match=r"the server has lost entries up to [1-9]"):
        take(harness, database)


def test_a_stream_that_was_deleted_beside_a_producer_is_restored_whole(harness, database):
    """Nothing is appended to a new stream in its place, so after a restore the producer sends what was lost again."""
    keys = harness.layout.keys[0]
    with Producer(harness.url, linger=0) as producer:
        emit(harness, "a", producer=producer)
        take(harness, database)
        emit(harness, "lost", producer=producer)
        harness.client.delete(keys.stream)
        for _ in range(3):
            producer.emit("view", "after")
            with pytest.raises(FlushTimeout, match=f"{keys.stream} was deleted"):
                producer.flush(0.3)
        with pytest.raises(KeyLost, match=keys.stream):
            producer.decide("view", "decided")
        assert not harness.client.exists(keys.stream)
        restore(harness.client, database, force=True)
        until(lambda: producer.stats.rewound_streams, timeout=60, what="the rollback of the producer")
        producer.flush(60)
        harness.drain()
    assert harness.totals() == {("view", "a"): 10, ("view", "lost"): 10, ("view", "after"): 3}
    assert producer.stats.lost_entries == 0
