"""A snapshot contains the dead letters of its moment, and a restore brings each of them back once."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tallystream.deployment import Deployment
from tallystream.errors import StreamError
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.keys import partition_of
from tallystream.wire.codec import decode
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.dead_letters.retry import retry
from tallystream_worker.dead_letters.store import drop, letters, records_of_dropped, shorten
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.snapshot import schema, snapshotter
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness
from tests.integration.rebuild.test_rebuild import rebuilt
from tests.postgresql import emptied

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream_worker.dead_letters.store import DeadLetter

OLD = Rules({"view": Metric(ids=None)})
NEW = Rules({**OLD.metric, "clap": Metric(ids=None)})


@pytest.fixture
def harness(server) -> Iterator[Harness]:
    """Provide a harness on an empty server, with two partitions."""
    with Harness(server.url, partitions=2, rules=OLD) as wired:
        yield wired


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path, monkeypatch) -> Iterator[Database]:
    """Provide an empty database of each kind; PostgreSQL gets a COPY from three rows on."""
    monkeypatch.setattr("tallystream_worker.snapshot.write._MANY", 3)
    if request.param == "sqlite":
        url = str(tmp_path / "snapshot.sqlite")
    else:
        url = emptied(request.getfixturevalue("postgresql"))
    with closing(Database(url)) as opened:
        yield opened


def name(partition: int, letter: str) -> str:
    """Return a subject of a partition that begins with a letter."""
    return next(found for n in range(99) if partition_of(found := f"{letter}{n}", 2) == partition)


def add(harness: Harness, *given: str, count: bool = True) -> None:
    """Append an event of a metric that is not declared for each letter, to each partition, and count them."""
    for number, keys in enumerate(harness.layout.keys):
        for letter in given:
            harness.client.xadd(keys.stream, {"metric": "clap", "subject": name(number, letter)})
    if count:
        harness.drain()


def add_whole(harness: Harness) -> None:
    """Append an entry that no fold can read, and one that workers give up, to each partition, and count them."""
    for keys in harness.layout.keys:
        harness.client.xadd(keys.stream, {"v": "99", "n": "3", "b": b"\xff\x00"})
    harness.drain()
    for number, keys in enumerate(harness.layout.keys):
        harness.client.xadd(keys.stream, {"metric": "view", "subject": name(number, "p")})
    harness.drain(max_deliveries=0)


def take(harness: Harness, database: Database) -> bool:
    """Take a snapshot as a new process does; return whether every counter was read. Its digests are right."""
    done = Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once()
    for partition in (None, *range(harness.layout.partitions)):
        assert database.damaged(partition) == []
    return done.whole > 0


def every(harness: Harness) -> list[DeadLetter]:
    """Return all dead letters."""
    return [letter for n in range(harness.layout.partitions) for letter in letters(harness.client, harness.layout, n)]


def contents(harness: Harness) -> list[tuple[object, ...]]:
    """Return what each dead letter has but its ID, sorted."""
    return sorted(
        (each.partition, each.source, each.reason, each.events, each.attempts, each.metric, sorted(each.fields.items()))
        for each in every(harness)
    )


def initials(harness: Harness) -> str:
    """Return the first letter of the subject of each dead letter, sorted."""
    found = [decode(each.fields, 0).singles[0].subject[0] for each in every(harness)]
    return "".join(sorted(found))


def agrees(harness: Harness, *, has_log: bool = True) -> None:
    """Check that the dead letters have the events of the ledger, that it balances, and (by the log) an audit agrees."""
    for number, keys in enumerate(harness.layout.keys):
        found: dict[bytes, bytes] = harness.client.hgetall(keys.ledger)
        dead = sum(letter.events for letter in letters(harness.client, harness.layout, number))
        assert dead == int(found.get(b"dead", 0)) - int(found.get(b"dropped", 0))
    with closing(Totals(harness.url)) as totals:
        assert totals.run(query_ledger(harness.layout)).unaccounted == 0
    if has_log:
        assert audit(harness.client, Deployment.create_or_load(harness.client), harness.rules).differences == []


def retry_all(harness: Harness) -> int:
    """Retry all dead letters by rules that declare the metric; return how many events were counted."""
    revision = Deployment.load(harness.client).revision
    found = [retry(harness.client, harness.layout, NEW, letter, revision) for letter in every(harness)]
    return sum(each.counted for each in found if each is not None)


def drop_some(harness: Harness, letter: str) -> None:
    """Drop the dead letters of subjects that begin with a letter."""
    for number, keys in enumerate(harness.layout.keys):
        found = [
            each
            for each in letters(harness.client, harness.layout, number)
            if decode(each.fields, 0).singles[0].subject[0] == letter
        ]
        assert drop(harness.client, keys, found)[0] == len(found) > 0


def stored(database: Database) -> list[list[str]]:
    """Return the IDs of the stored dead letters of each partition, sorted."""
    return [
        sorted(row.id for table, rows in database.read(number) if table is schema.dead for row in rows)
        for number in range(2)
    ]


def ids(harness: Harness) -> list[list[str]]:
    """Return the IDs of the dead letters of each partition, sorted."""
    return [sorted(each.id for each in letters(harness.client, harness.layout, number)) for number in range(2)]


@pytest.mark.parametrize("way", ["log", "archive", "snapshot"])
def test_dead_letters_come_back(harness, database, tmp_path, way):
    """After a restore, each dead letter of the snapshot is there, and each later one whose entry still exists."""
    add(harness, "a", "b")
    add_whole(harness)
    take(harness, database)
    before = contents(harness)
    add(harness, "c")
    after = contents(harness)
    store = Store(str(tmp_path / "archive"))
    Archive(harness.client, store, Deployment.create_or_load(harness.client)).run_once(settled=0)
    if way != "log":
        harness.client.flushall()
    archived = partial(entries, store) if way == "archive" else None
    restore(harness.client, database, archived, force=True)
    assert contents(harness) == (before if way == "snapshot" else after)
    agrees(harness, has_log=way == "log")
    counted = 6 if way == "snapshot" else 8
    assert (retry_all(harness), retry_all(harness)) == (counted, 0)
    assert sum(harness.totals().values()) == counted


@pytest.mark.parametrize("has_log", [True, False])
@pytest.mark.parametrize("generation", [1, 2])
def test_a_retry_counts_once_whenever_it_is_made(harness, database, has_log, generation):
    """A dead letter that was retried before the snapshot is not back; one that was retried after it can be retried."""
    if generation == 2:
        rebuilt(harness)
    add(harness, "a")
    assert retry_all(harness) == 2
    add(harness, "b")
    take(harness, database)
    assert retry_all(harness) == 2
    if not has_log:
        harness.client.flushall()
    restore(harness.client, database, force=True)
    harness.layout = Deployment.load(harness.client).layout
    assert initials(harness) == "bb"
    assert retry_all(harness) == 2
    assert sorted(harness.totals().values()) == [1, 1, 1, 1]


def test_what_was_dropped_stays_dropped(harness, database):
    """A dead letter that was dropped before or after the snapshot is not back; a rebuild does not count it."""
    add(harness, "a", "b", "c")
    drop_some(harness, "a")
    take(harness, database)
    drop_some(harness, "b")
    restore(harness.client, database, force=True)
    assert initials(harness) == "cc"
    agrees(harness)
    add(harness, "d")
    take(harness, database)
    assert stored(database) == ids(harness)
    harness.client.flushall()
    restore(harness.client, database)
    assert initials(harness) == "ccdd"
    agrees(harness, has_log=False)


def test_the_next_snapshot_after_a_restore_has_the_dead_letters(harness, database):
    """The snapshot after a restore has the dead letters that exist: none that was dropped, and all new ones."""
    add(harness, "a", "b")
    take(harness, database)
    drop_some(harness, "b")
    restore(harness.client, database, force=True)
    add(harness, "c")
    assert not take(harness, database)
    assert (initials(harness), stored(database)) == ("aacc", ids(harness))


def test_a_rebuild_after_a_restore_leaves_out_what_was_dropped(harness, database):
    """A dead letter that was dropped after the snapshot is counted neither by a retry nor by a rebuild."""
    add(harness, "a", "b")
    take(harness, database)
    drop_some(harness, "a")
    restore(harness.client, database, force=True)
    assert retry_all(harness) == 2
    rebuilt(harness, NEW)
    assert sorted(subject[0] for _, subject in harness.totals()) == ["b", "b"]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("change", ["drop", "retry", "add"])
def test_the_dead_letters_are_of_one_moment(harness, database, monkeypatch, change, whole):
    """A dead letter that is dropped, retried or added while a snapshot is taken is in it as it was at its moment."""
    add(harness, "a", "b")
    if not whole:
        take(harness, database)
    add(harness, "c", "d")
    before = contents(harness)
    read = snapshotter.DeadLetterReader.read

    def changed(self):
        """Change the dead letters before those of the last partition are read."""
        if self._keys.prefix != harness.layout.keys[1].prefix:
            pass
        elif change == "drop":
            drop_some(harness, "a")
            drop_some(harness, "d")
        elif change == "retry":
            assert retry_all(harness) > 0
        else:
            add(harness, "e")
        read(self)

    monkeypatch.setattr(snapshotter.DeadLetterReader, "read", changed)
    take(harness, database)
    monkeypatch.undo()
    harness.client.flushall()
    restore(harness.client, database)
    assert contents(harness) == before
    assert [records_of_dropped(harness.client, keys) for keys in harness.layout.keys] == [{}, {}]
    agrees(harness, has_log=False)


def test_only_new_dead_letters_are_read(harness, database):
    """A snapshot reads the dead letters since the last one; if any was removed, it reads all and forgets the others."""
    add(harness, "a", "b")
    assert take(harness, database)
    assert stored(database) == ids(harness)
    assert not take(harness, database)
    add(harness, "c")
    assert not take(harness, database)
    assert stored(database) == ids(harness)
    drop_some(harness, "b")
    add(harness, "d")
    assert not take(harness, database)
    assert stored(database) == ids(harness)
    for keys in harness.layout.keys:
        assert shorten(harness.client, keys, 1)[1] == 3
    assert not take(harness, database)
    assert stored(database) == [[], []]


def test_nothing_is_dropped_while_a_restore_runs(harness):
    """A drop of a dead letter is refused while the counters are replaced, because the ledger would not have it."""
    add(harness, "a")
    keys = harness.layout.keys[0]
    live = harness.client.get(keys.live)
    harness.client.set(keys.live, "1 restoring 1 x")
    with pytest.raises(StreamError, match="list the dead letters again"):
        drop(harness.client, keys, every(harness)[:1])
    assert shorten(harness.client, keys, 1)[1:] == (0, 0)
    harness.client.set(keys.live, live)
    assert shorten(harness.client, keys, 1)[1:] == (1, 1)
