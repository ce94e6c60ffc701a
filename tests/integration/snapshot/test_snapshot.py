"""A snapshot contains the counters of one moment, even if events are counted meanwhile, and it can be restored."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text

from tallystream import Producer
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, DeploymentChanged, StreamError
from tallystream.producing.decider import Decider
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream.rules.retraction import Retraction
from tallystream.storage.keys import DUE, RESTORED, RESTORED_AT, RESTORED_UP_TO, SNAPSHOTS, UNTIL, partition_of
from tallystream.storage.scripts import Script
from tallystream.wire.event import Event
from tallystream.wire.stream_id import parse_id
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import ArchiveError, Store
from tallystream_worker.cli.generation import build
from tallystream_worker.dead_letters.retry import Retried, retry
from tallystream_worker.dead_letters.store import letters
from tallystream_worker.process import logs
from tallystream_worker.process.failpoints import RESTORE_PLACES, SNAPSHOT_PLACES, VARIABLE
from tallystream_worker.process.services import running
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.rebuild.drop import drop
from tallystream_worker.rebuild.rebuild import Rebuild, propose
from tallystream_worker.rebuild.retract import ends, propose_without
from tallystream_worker.repartition.migration import repartition
from tallystream_worker.runtime.app import counting
from tallystream_worker.settings.settings import RedisSettings, Settings, SnapshotSettings
from tallystream_worker.snapshot import point_in_time, snapshotter
from tallystream_worker.snapshot.database import Database, SnapshotError
from tallystream_worker.snapshot.drill import drill
from tallystream_worker.snapshot.load import TableLoader
from tallystream_worker.snapshot.point_in_time import ViewLost, open_view
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.retractions import note_retractions
from tallystream_worker.snapshot.schema import FORMAT
from tallystream_worker.snapshot.service import snapshot_service
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tallystream_worker.snapshot.values import ValueReader
from tests.harness import Harness
from tests.integration.counting.test_rules_exact import RULES, feed, happenings, stored, without_zeros
from tests.oracle_rules import tally
from tests.paths import ROOT
from tests.postgresql import emptied
from tests.silence import pass_days
from tests.waiting import until

PROGRAM = Path(sys.executable).with_name("tallystream")
EXAMPLES = int(os.environ.get("TALLYSTREAM_EXAMPLES", "10"))


STRUCTURES = Rules(
    {
        "seen": Metric(windows=("hour",), seen="bloom", top=3),
        "visit": Metric(unique="day", windows=("day",), top=2),
        "rough": Metric(exact=False, top=3),
        "some": Metric(max_subjects=3, top=3),
        "vote": Metric(once="30d", windows=("day",)),
    }
)


@pytest.fixture
def harness(server):
    """Provide a harness on an empty server, with two partitions and all rules."""
    with Harness(server.url, partitions=2, rules=RULES) as wired:
        yield wired


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path, monkeypatch):
    """Provide an empty database of each kind; PostgreSQL gets a COPY from three rows on."""
    monkeypatch.setattr("tallystream_worker.snapshot.write._MANY", 3)
    if request.param == "sqlite":
        url = str(tmp_path / "snapshot.sqlite")
    else:
        url = emptied(request.getfixturevalue("postgresql"))
    opened = Database(url)
    yield opened
    opened.close()


def take(harness: Harness, database: Database, *, whole: bool = False):
    """Take a snapshot with a new `Snapshotter`, as a new process does; its digests must be those of its rows."""
    done = Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once(whole=whole)
    for partition in (None, *range(harness.layout.partitions)):
        assert database.damaged(partition) == []
    return done


def books(harness: Harness) -> dict[str, int]:
    """Return the ledger without the fields about entries, which begin at 0 again after a restore."""
    return {name: value for name, value in harness.ledger().items() if not name.startswith("entries:")}


def partly(harness: Harness, chance: random.Random) -> None:
    """Count some of the unread entries, leave some of them pending, and some unread."""
    for partition in range(harness.layout.partitions):
        held = harness.fetch(partition, "reader")(chance.randint(0, 6), 0)
        chance.shuffle(held)
        handed = iter([held[: len(held) // 2]])
        harness.consumer(partition, "w", fetch=lambda *_, handed=handed: next(handed)).run_once()


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.lists(happenings(), min_size=3, max_size=3), seed=st.integers(0, 10_000))
def test_after_a_loss_everything_is_as_before(server, tmp_path_factory, drawn, seed):
    """After all data was lost, a restore from a snapshot and the archive gives the counters of the oracle."""
    chance = random.Random(seed)
    server.clear()
    folder = tmp_path_factory.mktemp("restore")
    database = Database(str(folder / "snapshot.sqlite"))
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        happened = []
        for round_ in drawn:
            happened += feed(harness, round_, chance)
            partly(harness, chance)
            if round_ is not drawn[-1]:
                take(harness, database)
        store = Store(str(folder / "archive"))
        Archive(harness.client, store, harness.deployment).run_once(settled=0)
        server.clear()
        restore(harness.client, database, partial(entries, store))
        database.close()
        expected, found = tally(happened, RULES.metric), stored(harness)
        for name in ("totals", "up", "windows", "asked"):
            assert without_zeros(found[name]) == without_zeros(getattr(expected, name)), name
        assert without_zeros(books(harness)) == without_zeros(expected.ledger)
        assert harness.waiting() == 0


def test_a_snapshot_is_of_one_moment(harness, database):
    """While events are counted, two metrics with equal events in each entry are equal in every snapshot."""
    stop = threading.Event()

    def load() -> None:
        decide = Decider(harness.connect(), Deployment.create_or_load(harness.client))
        with Producer(harness.url, linger=0.001) as producer:
            number = 0
            while not stop.is_set():
                number += 1
                subject = f"s{number % 300}"
                for metric in ("view", "plain"):
                    producer.emit(metric, subject, 1)
                if number % 50 == 0:
                    decide(Event("call", subject))
                    producer.flush()

    def count(partition: int) -> None:
        consumer = harness.consumer(partition)
        while not stop.is_set():
            consumer.run_once(0.01)

    threads = [threading.Thread(target=load), *(threading.Thread(target=count, args=(n,)) for n in range(2))]
    for thread in threads:
        thread.start()
    try:
        for number in range(6):
            take(harness, database, whole=number == 3)
            totals = rows(database, "totals")
            windows = rows(database, "windows")
            # Each entry contains events of both metrics, so the totals of a subject are equal between two entries.
            assert {s: v for (m, s), v in totals.items() if m == "view"} == {
                s: v for (m, s), v in totals.items() if m == "plain"
            }
            by_hour = Counter()
            for (window, metric, _, subject), value in windows.items():
                if (window, metric) == ("hour", "view"):
                    by_hour[subject] += value
            assert by_hour == {s: v for (m, s), v in totals.items() if m == "view"}
            ledger = rows(database, "ledger")
            assert sum(v for (name, _), v in ledger.items() if name == "total@view") == sum(by_hour.values())
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert harness.client.keys("*cut*") == []


def rows(database: Database, table: str) -> dict[tuple, int]:
    """Return the values of a table, by key."""
    with database._engine.connect() as connection:
        found = (
            connection.execute(
                text(f"SELECT * FROM {table}")  # noqa: S608
            )
            .mappings()
            .all()
        )
    names = {
        "totals": ("metric", "subject"),
        "windows": ("window", "metric", "label", "subject"),
        "ledger": ("field", "partition"),
    }
    return {tuple(row[name] for name in names[table]): row["value"] for row in found}


def test_what_has_not_changed_is_not_read(harness, database):
    """The first snapshot reads every counter, the next only those that changed; the tables then equal the totals."""
    with Producer(harness.url) as producer:
        for number in range(2000):
            producer.emit("plain", f"s{number}")
    harness.drain()
    first = take(harness, database)
    assert (first.whole, first.rows >= 2000) == (2, True)
    with Producer(harness.url) as producer:
        producer.emit("plain", "s7", 5)
        producer.emit("plain", "new", 1)
    harness.drain()
    second = take(harness, database)
    assert (second.whole, second.rows) == (0, 2)
    assert rows(database, "totals") == harness.totals()
    assert take(harness, database).rows == 0


def test_a_retried_dead_letter_is_in_the_next_snapshot(harness, database):
    """The events of a retried dead letter are in the next snapshot, although no entry shows which counters changed."""
    place = partition_of("a", harness.layout.partitions)
    harness.client.xadd(harness.layout.keys[place].stream, {"metric": "other", "subject": "a", "amount": "5"})
    harness.drain()
    later = Rules({**RULES.metric, "other": Metric(windows=("day",))})
    harness.client.hset(harness.layout.meta, "rules", publish(later))
    take(harness, database)
    (letter,) = letters(harness.client, harness.layout, place)
    assert retry(harness.client, harness.layout, later, letter) == Retried(1, 0)
    assert take(harness, database).whole == 1
    assert (rows(database, "totals"), harness.totals()) == ({("other", "a"): 5},) * 2
    assert take(harness, database).whole == 0


@pytest.mark.parametrize("known", ["server", "snapshot", "archive"])
def test_a_restore_keeps_later_retractions(server, tmp_path, known):
    """A restore of a snapshot that is older than a retraction reports it; a rebuild then takes its events out again."""
    database, store = Database(str(tmp_path / "snapshot.sqlite")), Store(str(tmp_path / "archive"))
    with Harness(server.url, partitions=2) as harness, Producer(server.url) as producer:
        for actor in ("bot", "man"):
            producer.emit("view", "s", 5, actor=actor)
        producer.flush()
        harness.drain()
        Archive(harness.client, store, harness.deployment).run_once(settled=0)
        take(harness, database)
        deployment = Deployment.load(harness.client)
        retraction = Retraction(ends(harness.client, deployment), actor="bot")
        generation = propose_without(harness.client, deployment, retraction)
        place = str(tmp_path / "snapshot.sqlite") if known == "snapshot" else ""
        chosen = Settings(RedisSettings(server.url), rules=harness.rules, snapshot=SnapshotSettings(place))
        archive = store.url if known == "archive" else ""
        build(chosen, Deployment.load(harness.client), generation, archive)
        if known != "server":
            server.client().flushall()
        noted = store.retracted()
        result = restore(harness.client, database, lambda n, *ids: entries(store, n, *ids), force=True, retracted=noted)
        assert (result.lacking, harness.totals()) == ([retraction], {("view", "s"): 10})
        restored = Deployment.load(harness.client)
        assert restored.rules.retracted == (retraction,)
        generation = propose(harness.client, restored, restored.rules)
        build(chosen, Deployment.load(harness.client), generation, store.url)
        harness.layout = Deployment.load(harness.client).layout
        assert harness.totals() == {("view", "s"): 5}
        take(harness, database)
        assert restore(harness.client, database, force=True).lacking == []
    database.close()


@pytest.mark.parametrize("known", ["server", "snapshot"])
def test_a_restore_of_an_earlier_topic_keeps_retractions(server, tmp_path, known):
    """A restore of a topic from before a repartition has each retraction once, also those that were made later."""
    database, store = Database(str(tmp_path / "snapshot.sqlite")), Store(str(tmp_path / "archive"))
    with Harness(server.url, partitions=2) as harness, Producer(server.url) as producer:
        for actor in ("bot", "man", "cat", "dog"):
            producer.emit("view", "s", 5, actor=actor)
        producer.flush()
        harness.drain()
        Archive(harness.client, store, harness.deployment).run_once(settled=0)
        chosen = Settings(RedisSettings(server.url), rules=harness.rules)

        def retract(actor: str) -> Retraction:
            deployment = Deployment.load(harness.client)
            retraction = Retraction(ends(harness.client, deployment), actor=actor)
            generation = propose_without(harness.client, deployment, retraction)
            build(chosen, Deployment.load(harness.client), generation, "")
            rebuilt = Deployment.load(harness.client)
            drop(harness.client, rebuilt, *rebuilt.others)
            return retraction

        first = retract("bot")
        take(harness, database)
        second = retract("cat")
        repartition(chosen, Deployment.load(harness.client), 3)
        moved = retract("dog")
        if known == "snapshot":
            note_retractions(database, Deployment.load(harness.client).rules.retracted)
        lacking = restore(harness.client, database, force=True, accept_loss=True).lacking
        assert [each.actor for each in lacking] == ["cat", "dog"]
        assert lacking[0] == second
        assert lacking[1] != moved
        restored = Deployment.load(harness.client)
        assert restored.rules.retracted == (first, *lacking)
        generation = propose(harness.client, restored, restored.rules)
        build(chosen, Deployment.load(harness.client), generation, store.url)
        harness.layout = Deployment.load(harness.client).layout
        assert harness.totals() == {("view", "s"): 5}
        with Producer(server.url) as after:
            after.emit("view", "s", 7, actor="dog")
            after.flush()
        harness.drain()
        assert harness.totals() == {("view", "s"): 12}
    database.close()


def test_a_person_can_ask(harness, database):
    """The query in docs/backup.md returns the largest totals from the tables of a snapshot."""
    with Producer(harness.url) as producer:
        for number in range(50):
            producer.emit("view", f"article:{number % 10}", number)
    harness.drain()
    take(harness, database)
    query = "SELECT subject, value FROM totals WHERE metric = 'view' ORDER BY value DESC LIMIT 10"
    assert query in (ROOT / "docs" / "backup.md").read_text()
    with database._engine.connect() as connection:
        answer = connection.execute(text(query)).all()
    assert answer[0] == ("article:9", 9 + 19 + 29 + 39 + 49)
    assert len(answer) == 10


def test_everything_that_is_kept_comes_back(server, database):
    """A restore brings back sketches, Bloom filters, unique counts, leaderboards, sequences and expiry."""
    with Harness(server.url, partitions=2, rules=STRUCTURES) as harness, Producer(harness.url) as producer:
        for round_ in range(3):
            emit_structures(harness, producer, round_)
            take(harness, database)
        before = dump(harness)
        server.client().flushall()
        restore(harness.client, database)
        assert dump(harness) == before
        producer.emit("seen", "s1", id="0-1")  # the sequence gate has the producer again, and the filter the id
        producer.flush()
        harness.drain()
        assert books(harness)["duplicate"] == before["ledger"]["duplicate"] + 1
        assert producer.stats.rewound_streams == 0


@pytest.mark.parametrize("before", [True, False])
def test_a_restore_keeps_what_was_forgotten(server, database, before):
    """A producer whose record was removed before the snapshot appends nothing twice after a restore."""
    with Harness(server.url, partitions=1) as harness, Producer(harness.url) as producer:
        producer.emit("view", "a")
        producer.flush()
        harness.drain()
        if before:
            take(harness, database)
        assert pass_days(harness, 33) == 1
        harness.drain()
        take(harness, database)
        server.client().flushall()
        restore(harness.client, database)
        producer.emit("view", "a")
        producer.flush()
        harness.drain()
        assert harness.totals()["view", "a"] == 2
        assert (producer.stats.rewound_streams, producer.stats.unknown_entries) == (0, 0)


def emit_structures(harness: Harness, producer: Producer, round_: int) -> None:
    """Emit and count events of every rule that stores more than a sum."""
    for number in range(60):
        producer.emit("seen", f"s{number % 7}", id=f"{round_ % 2}-{number}")
        producer.emit("visit", f"s{number % 5}", actor=f"u{number * (round_ + 1)}")
        producer.emit("rough", f"s{number % 11}", number)
        producer.emit("some", f"s{number % 13}", number)
        producer.emit("vote", f"s{number % 3}", (number + round_) % 3 - 1, actor=f"u{number % 20}")
    producer.flush()
    harness.drain()


def test_a_bucket_that_is_removed_while_it_is_read_is_missing_after_a_restore(server, database, monkeypatch):
    """If a bucket is removed after a snapshot has begun and before it is read, a restore states it as removed."""
    day = time.time() // 86_400 * 86_400 - 3 * 86_400
    end = str(int((day + 86_400) * 1000))
    rules = Rules({"view": Metric(windows=("day",))})
    with Harness(server.url, partitions=1, rules=rules) as harness, Producer(harness.url) as producer:
        producer.emit("view", "a", at=day)
        producer.flush()
        harness.drain()
        keys, read = harness.layout.keys[0], Snapshotter._read

        def remove_first(*arguments: Any, **options: Any) -> Any:
            label = time.strftime("%Y-%m-%d", time.gmtime(day))
            assert harness.client.delete(keys.window("day", "view", label)) == 1
            harness.client.hset(keys.forgotten, "day:view", end)  # as forget_periods.lua does
            return read(*arguments, **options)

        monkeypatch.setattr(Snapshotter, "_read", remove_first)
        take(harness, database)
        server.client().flushall()
        restore(harness.client, database)
        with Totals(harness.url) as totals:
            figure = totals.sum("a", "view", "7d")
        assert harness.client.hget(keys.forgotten, "day:view") == end.encode()
        assert not figure.complete


def test_a_restore_does_not_need_the_memory_of_the_stream_twice(harness, database):
    """If the memory cannot hold the stream twice, a restore leaves out the entries that the snapshot contains."""
    with Producer(harness.url) as producer:
        for number in range(20_000):
            producer.emit("view", f"{'s' * 100}{number % 50}", actor=f"{'a' * 100}{number}")
    harness.drain()
    take(harness, database)
    emit_some(harness, 1)
    totals = harness.totals()
    client = harness.client
    client.execute_command("MEMORY PURGE")
    used = client.info("memory")["used_memory"]
    try:
        client.config_set("maxmemory", used + 1_000_000)
        restore(client, database, force=True)
    finally:
        client.config_set("maxmemory", 0)
    assert harness.totals() == totals
    assert sum(client.xlen(keys.stream) for keys in harness.layout.keys) < 100


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_written_while_it_is_read_is_not_in_it(server, tmp_path, monkeypatch, whole):
    """A snapshot has each counter's value at the opening of the view, even if it is written before it is read."""
    database = Database(str(tmp_path / "snapshot.sqlite"))
    with Harness(server.url, partitions=1, rules=STRUCTURES) as harness, Producer(harness.url) as producer:
        emit_structures(harness, producer, 0)
        if not whole:
            take(harness, database)
            emit_structures(harness, producer, 2)
        before, copies = dump(harness), ValueReader.copies

        def write_first(self, names):
            emit_structures(harness, producer, 1)
            emit_structures(harness, producer, 5)
            copies(self, names)

        monkeypatch.setattr(ValueReader, "copies", write_first)
        take(harness, database)
        assert dump(harness) != before
        server.client().flushall()
        restore(harness.client, database)
        # A key expires at least a day after its last write, and the last write was after the moment.
        assert {name: kept(value) for name, value in dump(harness).items()} == {
            name: kept(value) for name, value in before.items()
        }
    database.close()


def test_a_snapshot_leaves_the_copies_of_the_next_one(server, tmp_path, monkeypatch):
    """If another snapshot begins before the first has removed its copies of structures, both have every structure."""
    databases = [Database(str(tmp_path / f"{name}.sqlite")) for name in ("first", "second")]
    settle, taken = ValueReader.settle, []
    with Harness(server.url, partitions=1, rules=STRUCTURES) as harness, Producer(harness.url) as producer:
        emit_structures(harness, producer, 0)
        deployment = Deployment.load(harness.client)
        first, second = (Snapshotter(harness.client, each, deployment) for each in databases)
        keys = harness.layout.keys[0]
        views = []

        def open_the_next(self):
            if not views:
                views.append(open_view(harness.client, keys, [keys.sketch("rough"), keys.top("rough")]))
            settle(self)

        monkeypatch.setattr(ValueReader, "settle", open_the_next)
        taken.append(first.take(0, None))
        reader = ValueReader(views[0], STRUCTURES)
        reader.copies(["sketch:rough", "top:rough"])
        views[0].close()
        taken.append(second.take(0, None))
        found = dict(reader.values[("structures",)])
        assert found["sketch:rough"] is not None
        for each in taken:
            assert found.items() <= each.values[("structures",)].items()
    for each in databases:
        each.close()


def kept(value):
    """Return a dumped value without its expiry."""
    return value[0] if isinstance(value, tuple) else value


def test_what_is_counted_just_before_the_cut_is_in_it(harness, database, monkeypatch):
    """A snapshot contains entries that are counted between the first read of the stream and its moment."""
    emit_some(harness, 1)
    take(harness, database)

    came = []

    def late(*arguments):
        with Producer(harness.url) as producer:
            for number in range(8):
                subject = f"late:{len(came)}:{number}"
                producer.emit("plain", subject)
                if harness.layout.keys_of(subject) == arguments[1]:
                    came.append(subject)
        harness.drain()
        return open_view(*arguments)

    emit_some(harness, 2)
    monkeypatch.setattr(snapshotter, "open_view", late)
    take(harness, database)
    assert len(came) >= 2
    assert {("plain", subject) for subject in came} <= rows(database, "totals").keys()


def test_a_replaced_vote_leaves_its_old_bucket(harness, database):
    """A snapshot contains the old bucket of a replaced vote or id, although no new entry names this bucket."""
    now = time.time()
    early, late = now - 3 * 86_400, now - 60
    with Producer(harness.url) as producer:
        producer.emit("vote", "p1", 1, actor="u1", at=early)
        producer.emit("view", "a1", 5, at=late, id="i1")
        producer.flush()
        harness.drain()
        take(harness, database)
        producer.emit("vote", "p1", -1, actor="u1", at=late)
        producer.emit("view", "a1", 5, at=late - 1800, id="i1")
        producer.flush()
    harness.drain()
    take(harness, database)
    windows = Counter()
    for (window, metric, label, subject), value in rows(database, "windows").items():
        windows[window, metric, label, subject] += value
    assert without_zeros(windows) == without_zeros(stored(harness)["windows"])


def test_the_log_is_held_for_what_is_pending(harness, database):
    """The retention hold of a snapshot keeps the entries that were pending at its moment."""
    emit_some(harness, 1)
    emit_some(harness, 2, drain=False)
    held = {n: harness.fetch(n, "slow")(3, 0) for n in range(2)}
    take(harness, database)
    for partition, keys in enumerate(harness.layout.keys):
        hold = harness.client.hget(f"{keys.prefix}holds", "snapshot").decode()
        assert parse_id(hold) < parse_id(held[partition][0].id)


def test_a_whole_snapshot_forgets_what_is_gone(harness, database):
    """A counter that was removed by hand is not in the next complete snapshot."""
    emit_some(harness, 1)
    take(harness, database)
    (key, *_) = harness.client.scan_iter(match="*total:view:*")
    harness.client.delete(key)
    take(harness, database, whole=True)
    assert rows(database, "totals") == harness.totals()


def dump(harness: Harness) -> dict:
    """Return all keys but streams with value and expiry in milliseconds, and the ledger; without marks of snapshots."""
    client, found = harness.client, {"ledger": books(harness)}
    for keys in harness.layout.keys:
        for key in client.scan_iter(match=f"{keys.prefix}*"):
            name = key.decode()
            if name.endswith((":stream", ":ledger", ":holds", ":dead")):
                continue
            kind = client.type(key)
            if kind == b"string" and "unique:" in name:
                value = client.pfcount(key)
            elif kind == b"string":
                value = client.get(key)
            elif kind == b"hash":
                value = client.hgetall(key)
                for mark in (
                    SNAPSHOTS,
                    RESTORED,
                    RESTORED_AT,
                    RESTORED_UP_TO,
                    "!closing",
                ):  # a restore writes these again
                    value.pop(mark.encode(), None)
            elif kind == b"set":
                value = client.smembers(key)
            else:
                value = client.zrange(key, 0, -1, withscores=True)
            found[name] = (value, client.execute_command("PEXPIRETIME", key))
    return found


@pytest.mark.parametrize("place", SNAPSHOT_PLACES)
def test_a_killed_snapshot(harness, tmp_path, place):
    """After a kill before, during or after the commit, needed entries are held, and the next snapshot is correct."""
    emit_some(harness, 1)
    file = tmp_path / "snapshot.sqlite"
    command = [PROGRAM, "snapshot", file, "--once", "--redis", harness.url]
    environment = os.environ | {"TALLYSTREAM_REDIS_PARTITIONS": "2"}
    for nth in (1, 2):
        killed = subprocess.run(
            command, env=environment | {VARIABLE: f"{place}:{nth}"}, capture_output=True, check=False
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert_log_is_held(harness, file)
        emit_some(harness, 2 + nth)
    done = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    database = Database(str(file))
    assert rows(database, "totals") == harness.totals()
    for keys in harness.layout.keys:
        position, _ = database.position(harness.layout.keys.index(keys))
        assert harness.client.hget(f"{keys.prefix}holds", "snapshot") == position.floor.encode()
    database.close()


def assert_log_is_held(harness: Harness, file: Path) -> None:
    """Assert that the retention hold keeps every entry after the stored snapshot."""
    database = Database(str(file))
    for partition, keys in enumerate(harness.layout.keys):
        if (found := database.position(partition)) is not None:
            hold = harness.client.hget(keys.retention_holds, "snapshot")
            assert hold is not None
            assert parse_id(hold.decode()) <= parse_id(found[0].floor)
    database.close()


@pytest.mark.parametrize("place", RESTORE_PLACES)
def test_a_killed_restore(harness, tmp_path, place):
    """A restore that was killed and run again gives the same totals and ledger as before the loss."""
    emit_some(harness, 1)
    file = tmp_path / "snapshot.sqlite"
    database = Database(str(file))
    take(harness, database)
    emit_some(harness, 2, drain=False)
    Archive(harness.client, Store(str(tmp_path / "archive")), harness.deployment).run_once(settled=0)
    harness.drain()
    before, ledger = harness.totals(), books(harness)
    harness.client.flushall()
    command = [PROGRAM, "restore", file, "--archive", tmp_path / "archive", "--redis", harness.url]
    killed = subprocess.run(command, env=os.environ | {VARIABLE: f"{place}:2"}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with pytest.raises(DeploymentChanged, match="run it again: tallystream restore"):
        Deployment.load(harness.client)
    again = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert (harness.totals(), books(harness)) == (before, ledger)
    database.close()


def emit_some(harness: Harness, seed: int, *, drain: bool = True) -> None:
    """Emit 300 events of two metrics, and count them unless `drain` is false."""
    chance = random.Random(seed)
    with Producer(harness.url, entry_events=20) as producer:
        for _ in range(300):
            producer.emit(chance.choice(["view", "plain"]), f"s{chance.randint(1, 50)}", chance.randint(1, 5))
    if drain:
        harness.drain()


def test_what_is_left_of_the_stream_is_enough(harness, database):
    """A restore without an archive counts the entries left in the streams; if none was lost, nothing is missing."""
    emit_some(harness, 1)
    take(harness, database)
    emit_some(harness, 2)
    before, ledger, log = harness.totals(), books(harness), streams(harness)
    for key in harness.client.scan_iter(match="*total:*"):
        harness.client.delete(key)
    with pytest.raises(StreamError, match="not empty"):
        restore(harness.client, database)
    parts = restore(harness.client, database, force=True).parts
    assert (harness.totals(), books(harness)) == (before, ledger)
    assert all(part.survived and part.missing == 0 for part in parts)
    assert streams(harness) == log  # also the entries before the snapshot: an audit or a rebuild needs no archive
    found = audit(harness.client, Deployment.load(harness.client), RULES)
    assert (found.differences, {scope.base for scope in found.scopes}) == ([], {"log"})


def streams(harness: Harness) -> list[list[bytes]]:
    """Return the IDs of the entries of each stream."""
    return [[id_ for id_, _ in harness.client.xrange(keys.stream)] for keys in harness.layout.keys]


@pytest.mark.parametrize("generation", [1, 2])
def test_nobody_counts_or_reads_while_it_is_restored(harness, database, generation):
    """During a restore, reads and decisions fail with the reason; every decision that was answered counts once."""
    emit_some(harness, 1)
    if generation == 2:
        count_again(harness)
    take(harness, database)
    stop, answered, refused = threading.Event(), Counter(), Counter()

    def decide() -> None:
        with Producer(harness.url) as producer:
            while not stop.is_set():
                subject = f"s{answered.total() % 7}"
                try:
                    producer.decide("plain", subject)
                    answered["plain", subject] += 1
                except DeploymentChanged as error:
                    refused[str(error)] += 1

    before = Counter(Harness.totals(reading(harness)))
    thread = threading.Thread(target=decide)
    thread.start()

    def during(_: object) -> None:
        seen = refused.total()
        until(lambda: refused.total() > seen, timeout=20, what="a decision that is refused")
        with pytest.raises(DeploymentChanged, match="a restore is replacing the counters"):
            totals.get("s1", "plain")

    try:
        with Totals(harness.url) as totals:
            until(lambda: answered.total() > 20, timeout=20, what="decisions")
            totals.get("s1", "plain")
            restore(harness.client, database, force=True, progress=during)
            decided = answered.total()
            until(lambda: answered.total() > decided + 20, timeout=20, what="decisions after the restore")
    finally:
        stop.set()
        thread.join()
    harness.finish()
    assert Counter(harness.totals()) == before + answered
    assert all("a restore is replacing the counters" in each for each in refused)
    with Totals(harness.url) as totals:
        assert totals.ledger().unaccounted == 0


def count_again(harness: Harness) -> None:
    """Build the second generation by the same rules, and make it live."""
    generation = propose(harness.client, Deployment.load(harness.client), RULES)
    chosen = Settings(RedisSettings(harness.url, partitions=2), rules=RULES)
    build(chosen, Deployment.load(harness.client), generation, "")


def reading(harness: Harness) -> Harness:
    """Let a harness read the live generation, and return it; `finish` still counts the first one."""
    seen = copy(harness)
    seen.layout = Deployment.load(harness.client).layout
    return seen


@pytest.mark.parametrize("generation", [1, 2])
def test_a_worker_may_run_while_it_is_restored(harness, database, generation):
    """A worker that counts before, during and after a restore counts every event once, by the restored rules."""
    chosen = Settings(RedisSettings(harness.url, partitions=2), rules=RULES)
    emitted = Counter()
    with counting(chosen, logs.configure(quiet=True)), Producer(harness.url, entry_events=5) as producer:

        def emit(*_: object) -> None:
            for number in range(100):
                producer.emit("plain", f"s{number}")
                emitted["plain", f"s{number}"] += 1
            producer.flush(10)

        emit()
        producer.flush(20, wait="counted")
        if generation == 2:
            count_again(harness)
        take(harness, database)
        emit()
        restore(harness.client, database, force=True, progress=emit)
        emit()
        producer.flush(20, wait="counted")
        assert harness.totals() == emitted
    with Totals(harness.url) as totals:
        assert totals.ledger().unaccounted == 0


def test_producers_may_append_while_it_is_restored(harness, database, monkeypatch):
    """Events that arrive before, during and after the restore of an emptied server count once."""
    run, emitted = TableLoader.run, Counter()
    with Producer(harness.url) as producer:

        def emit(*_: object) -> None:
            for number in range(20):
                producer.emit("plain", f"s{number}")
                emitted["plain", f"s{number}"] += 1
            producer.flush(10)

        def load_late(self, *arguments):
            emit()
            return run(self, *arguments)

        emit()
        harness.drain()
        take(harness, database)
        harness.client.flushall()
        emit()
        monkeypatch.setattr(TableLoader, "run", load_late)
        restore(harness.client, database, force=True)
        emit()
    harness.drain()
    assert harness.totals() == emitted
    assert books(harness)["counted"] == books(harness)["appended"] == emitted.total()


def test_a_restore_keeps_the_sequence_gate(harness, database, monkeypatch):
    """While a restore replaces counters, an entry that a producer sends again is appended once, as always."""
    run, answers = TableLoader.run, []
    with Producer(harness.url) as producer:
        for number in range(20):
            producer.emit("plain", f"s{number}")
        producer.flush(10)
    harness.drain()
    take(harness, database)
    emitted, append = harness.totals(), Script("tallystream.storage", "append")
    calls = []
    for keys in harness.layout.keys:
        ((_, fields),) = harness.client.xrange(keys.stream)
        sent = [fields[name] for name in (b"v", b"p", b"q", b"n", b"b")]
        calls.append(([keys.stream, keys.sequences, keys.topic_ledger], [*sent, "0-0", ""]))

    def send_again(self, *arguments):
        answers.extend(append(harness.client, *call)[0] for call in calls)
        return run(self, *arguments)

    monkeypatch.setattr(TableLoader, "run", send_again)
    restore(harness.client, database, force=True)
    harness.drain()
    assert answers == [b"already"] * 4  # in both partitions, before each of them is restored
    assert harness.totals() == emitted


def test_the_archive_is_used_if_producers_have_appended_before_a_restore(harness, database, tmp_path):
    """If producers have begun new streams on an emptied server, a restore still counts the archived entries."""
    store = Store(str(tmp_path / "archive"))
    emit_some(harness, 1)
    take(harness, database)
    emit_some(harness, 2)
    Archive(harness.client, store, harness.deployment).run_once(settled=0)
    before = harness.totals()
    harness.client.flushall()
    with Producer(harness.url) as producer:
        producer.emit("plain", "s1", 7)
        producer.flush(10)
    parts = restore(harness.client, database, partial(entries, store), force=True).parts
    harness.drain()
    before["plain", "s1"] = before.get(("plain", "s1"), 0) + 7
    assert harness.totals() == before
    assert sum(part.missing for part in parts) == 0


def test_an_archive_that_cannot_be_read_costs_no_counter(harness, database):
    """A forced restore reads the archive before it changes anything; without the archive, it works."""
    emit_some(harness, 1)
    take(harness, database)
    emit_some(harness, 2)
    before = harness.totals()

    def unreadable(*_: object, **_options: object) -> Any:
        raise ArchiveError("the file is damaged")
        yield

    with pytest.raises(ArchiveError, match="damaged"):
        restore(harness.client, database, unreadable, force=True)
    assert Deployment.load(harness.client).epoch == harness.deployment.epoch
    assert harness.totals() == before
    restore(harness.client, database, force=True)
    harness.drain()
    assert harness.totals() == before


def test_a_copy_of_the_file_is_a_whole_snapshot(harness, tmp_path):
    """After each snapshot, everything is in the file itself, although the database is still open."""
    emit_some(harness, 1)
    file, before = tmp_path / "snapshot.sqlite", harness.totals()
    with closing(Database(str(file))) as database:
        take(harness, database)
        copied = tmp_path / "copy.sqlite"
        copied.write_bytes(file.read_bytes())
    harness.client.flushall()
    with closing(Database(str(copied), is_there=True)) as database:
        restore(harness.client, database)
    assert harness.totals() == before


@pytest.mark.parametrize("namespace", ["tally", "ns"])
def test_a_look_at_an_empty_postgresql_creates_nothing(postgresql, namespace):
    """With `is_there`, a look at a PostgreSQL database without a snapshot creates neither a schema nor a table."""
    url = emptied(postgresql)
    found = (
        "SELECT count(*) FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname IN ('public', 'ns')"
    )
    with closing(Database(url, namespace, is_there=True)) as database:
        assert (database.facts(), database.position(0)) == ({}, None)
        with database._at_url.connect() as connection:
            assert connection.execute(text(found)).scalar() == 0
            assert connection.execute(text("SELECT count(*) FROM pg_namespace WHERE nspname ~ '^tally_'")).scalar() == 0
        with closing(Database(url, namespace)) as other:
            other.state({"namespace": namespace})
        assert database.facts() == {"namespace": namespace}


def test_what_is_missing_is_said(harness, database):
    """A restore reports the number of events that waited at the snapshot and are lost, and the ledger agrees."""
    emit_some(harness, 1)
    before = harness.totals()
    emit_some(harness, 2, drain=False)
    take(harness, database)
    harness.client.flushall()
    parts = restore(harness.client, database).parts
    assert sum(part.missing for part in parts) == 300
    assert harness.totals() == before
    ledger = books(harness)
    assert (ledger["appended"], ledger["counted"], ledger["trimmed"]) == (600, 300, 300)


def test_after_a_restore_the_log_knows_what_it_lacks(harness, database):
    """After a restore without entries, a rebuild is refused, and an audit begins with the next snapshot."""
    emit_some(harness, 1)
    take(harness, database)
    harness.client.flushall()
    restore(harness.client, database)
    emit_some(harness, 2)
    assert harness.waiting() == 0
    chosen = Settings(RedisSettings(harness.url, partitions=2), rules=RULES)
    generation = propose(harness.client, Deployment.create_or_load(harness.client), RULES)
    with (
        Rebuild(chosen, Deployment.create_or_load(harness.client), generation) as again,
        pytest.raises(ConfigurationError, match="no longer in the streams"),
    ):
        again.begin()
    drop(harness.client, Deployment.create_or_load(harness.client), generation)
    take(harness, database)
    emit_some(harness, 3)
    found = audit(harness.client, Deployment.create_or_load(harness.client), RULES, sources=Sources(snapshot=database))
    assert (found.differences, found.unproved) == ([], 0)
    assert {scope.base for scope in found.scopes} == {"snapshot"}
    with closing(Totals(harness.url)) as totals:
        assert totals.run(query_ledger(totals.deployment.layout)).unaccounted == 0


def test_a_rebuild_after_a_restore_is_restored_exactly(harness, database, tmp_path):
    """After a restore, only the archive has the entries: a rebuild and its restore count each of them once."""
    store = Store(str(tmp_path / "archive"))
    emit_some(harness, 1)
    before = harness.totals()
    Archive(harness.client, store, harness.deployment).run_once(settled=0)
    for _ in range(2):
        take(harness, database)
        harness.client.flushall()
        restore(harness.client, database, partial(entries, store))
        harness.layout = Deployment.create_or_load(harness.client).layout
        assert harness.totals() == before
        generation = propose(harness.client, Deployment.create_or_load(harness.client), RULES)
        chosen = Settings(RedisSettings(harness.url, partitions=2), rules=RULES)
        deployment = Deployment.create_or_load(harness.client)
        with Rebuild(chosen, deployment, generation, archive=str(tmp_path / "archive")) as again:
            again.begin()
            again.catch_up()
            again.switch()
        harness.layout = Deployment.create_or_load(harness.client).layout
        assert harness.totals() == before
        drop(harness.client, Deployment.create_or_load(harness.client), deployment.generation)


def test_a_rebuild_after_a_restore_counts_what_was_decided(harness, database, tmp_path):
    """A generation after a restore has a new number, so it counts the archived decisions of an earlier one."""
    store = Store(str(tmp_path / "archive"))
    count_again(harness)
    with Producer(harness.url) as producer:
        for number in range(30):
            producer.decide("plain", f"s{number % 7}")
    Archive(harness.client, store, Deployment.load(harness.client)).run_once(settled=0)
    before = reading(harness).totals()
    assert sum(before.values()) == 30
    take(harness, database)
    harness.client.flushall()
    restore(harness.client, database, partial(entries, store))
    chosen = Settings(RedisSettings(harness.url, partitions=2), rules=RULES)
    generation = propose(harness.client, Deployment.load(harness.client), RULES)
    build(chosen, Deployment.load(harness.client), generation, str(tmp_path / "archive"))
    assert generation > 2
    assert reading(harness).totals() == before


@pytest.mark.parametrize("generation", [1, 2])
def test_a_repeated_restore_counts_decisions_once(harness, database, generation):
    """Decisions that no worker had acknowledged at the snapshot count once after two restores of it."""
    if generation == 2:
        count_again(harness)
    with Producer(harness.url) as producer:
        for number in range(20):
            producer.decide("plain", f"s{number % 7}")
        take(harness, database)
        for number in range(5):
            producer.decide("plain", f"s{number % 7}")
    before = reading(harness).totals()
    assert sum(before.values()) == 25
    for _ in range(2):
        restore(harness.client, database, force=True)
        assert reading(harness).totals() == before


def test_a_log_that_was_trimmed_behind_the_snapshot_is_noticed(harness, database, tmp_path):
    """If entries after a snapshot were trimmed, a drill fails, and the next snapshot reads every counter."""
    emit_some(harness, 1)
    take(harness, database)
    emit_some(harness, 2)
    store = Store(str(tmp_path / "archive"))
    Archive(harness.client, store, harness.deployment).run_once(settled=0)
    before = harness.totals()
    for keys in harness.layout.keys:
        harness.client.xtrim(keys.stream, maxlen=1, approximate=False)
    with pytest.raises(SnapshotError, match="entries after the snapshot were trimmed"):
        drill(harness.client, database, Deployment.create_or_load(harness.client))
    restore(harness.client, database, partial(entries, store), force=True)
    assert harness.totals() == before
    for keys in harness.layout.keys:
        harness.client.xtrim(keys.stream, maxlen=1, approximate=False)
    assert take(harness, database).whole == 2
    assert rows(database, "totals") == before


def number_of_rows(database: Database, table: str) -> int:
    """Return the number of rows in a table."""
    with database._engine.connect() as connection:
        return connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()  # noqa: S608


STATEFUL = {
    "view": Metric(windows=("minute",), retention={"minute": "1d"}, top=5, unique="hour", ids=None),
    "call": Metric(limit=2, per="hour"),
    "vote": Metric(once="day"),
}


def test_keys_are_kept_and_removed_after_a_restore(server, database):
    """A restore registers all keys of periods again; when scripts remove them, the next snapshot deletes their rows."""
    with Harness(server.url, partitions=1, rules=Rules(STATEFUL)) as harness:
        keys = harness.layout.keys[0]
        with Producer(harness.url) as producer:
            producer.emit("view", "a", actor="u1")
            producer.emit("call", "a", id="x")
            producer.emit("vote", "a", actor="u1")
        harness.drain()
        before = harness.client.zrange(keys.periods, 0, -1, withscores=True)
        assert len(before) == 5
        take(harness, database)
        server.client().flushall()
        restore(harness.client, database)
        assert harness.client.zrange(keys.periods, 0, -1, withscores=True) == before
        of_periods = ("windows", "uniques", "limits", "votes", "ids")
        assert all(number_of_rows(database, table) for table in of_periods)
        ends = {b":".join(key.split(b":", 2)[:2]): end for end, key in (name.split(b" ", 1) for name, _ in before)}
        ends[UNTIL.encode()] = b"%d" % before[-1][1]
        harness.client.hset(keys.forgotten, mapping={**ends, DUE: "1 1"})
        harness.client.unlink(*(keys.counters + name.decode().partition(" ")[2] for name, _ in before))
        take(harness, database)
        assert not any(number_of_rows(database, table) for table in of_periods)
        server.client().flushall()
        restore(harness.client, database)
        assert harness.client.zcard(keys.periods) == 0
        found = {name: end for name, end in harness.client.hgetall(keys.forgotten).items() if b"rules" not in name}
        assert found == ends


def test_keys_of_earlier_rules_are_removed_after_a_restore(server, database):
    """A restore also registers the buckets that no rule has any more, so that they are removed some day."""
    with Harness(server.url, partitions=1, rules=Rules(STATEFUL)) as harness:
        keys = harness.layout.keys[0]
        with Producer(harness.url) as producer:
            producer.emit("view", "a", actor="u1")
            producer.emit("call", "a", id="x")
            producer.emit("vote", "a", actor="u1")
        harness.drain()
        before = {name.decode() for name in harness.client.zrange(keys.periods, 0, -1)}
        changed = {"visit": Metric(), "call": Metric(limit=2, per="day", ids=None), "vote": Metric(once="forever")}
        harness.client.hset(harness.layout.meta, "rules", publish(Rules(changed)))
        take(harness, database, whole=True)
        harness.client.flushall()
        restore(harness.client, database)
        found = harness.client.zrange(keys.periods, 0, -1, withscores=True)
        assert {name.decode() for name, _ in found} == before
        assert all(until - int(name.split()[0]) == 400 * 86_400_000 for name, until in found)


def test_a_restore_on_a_host_with_another_time(server, tmp_path, monkeypatch):
    """The server's clock decides what has expired: a restore on a host that is a year ahead brings the buckets back."""
    rules = Rules({"view": Metric(windows=("minute",)), "poll": Metric(once="30d")})
    database = Database(str(tmp_path / "snapshot.sqlite"))
    with closing(database), Harness(server.url, partitions=2, rules=rules) as harness:
        emit_views(harness)
        with Producer(harness.url) as producer:
            producer.emit("poll", "a", actor="u")
        harness.drain()
        take(harness, database)
        before = dump(harness)
        harness.client.flushall()
        now = time.time()
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: now + 366 * 86_400)
            restore(harness.client, database)
        found = dump(harness)
        assert {key for key in before if ":minute:" in str(key) or ":once:" in str(key)} <= found.keys()


def emit_views(harness: Harness) -> None:
    """Emit and count one view."""
    with Producer(harness.url) as producer:
        producer.emit("view", "a")
    harness.drain()


def test_a_snapshot_that_stops_holds_up_nothing(harness, database):
    """An abandoned view expires; until then counting continues."""
    emit_some(harness, 1)
    cut = open_view(harness.client, harness.layout.keys[0], [])
    emit_some(harness, 2)
    assert 0 < harness.client.pttl(cut.key) <= 30_000
    assert 0 < harness.client.pttl(cut.key + ":before") <= 30_000
    harness.client.delete(cut.key)
    with pytest.raises(ViewLost, match="paused"):
        cut.close()
    emit_some(harness, 3)
    take(harness, database)
    assert rows(database, "totals") == harness.totals()


def test_a_view_that_is_read_is_not_replaced(harness, monkeypatch):
    """While a snapshot makes calls, a second one is refused after a moment, and the first is complete."""
    monkeypatch.setattr(point_in_time, "PATIENCE", 0.5)
    keys = harness.layout.keys[0]
    cut = open_view(harness.client, keys, [])
    with pytest.raises(ViewLost, match="being taken"):
        open_view(harness.client, keys, [])
    cut.take()
    cut.close()


def test_a_snapshot_waits_for_another(harness, database, monkeypatch):
    """If another view of a partition is open, as during a drill, a snapshot waits until it is closed."""
    emit_some(harness, 1)
    other = open_view(harness.client, harness.layout.keys[0], [])
    monkeypatch.setattr(point_in_time.time, "sleep", lambda _: other.close())
    take(harness, database)
    assert rows(database, "totals") == harness.totals()


def test_the_next_snapshot_replaces_a_killed_one(server, database, monkeypatch):
    """A snapshot replaces one that made no call for a while; a process that was only slow spoils and keeps nothing."""
    monkeypatch.setattr(point_in_time, "TAKEOVER", 500)
    rules = Rules({"view": Metric(), "rough": Metric(exact=False, top=3), "bloom": Metric(ids="day", seen="bloom")})
    with Harness(server.url, partitions=1, rules=rules) as harness, Producer(harness.url) as producer:

        def emit(number: int) -> None:
            for metric in rules.metric:
                producer.emit(metric, f"s{number}", id=f"i{number}" if metric == "bloom" else None)
                producer.emit(metric, "all")
            producer.flush()
            harness.drain()

        emit(0)
        (keys,) = harness.layout.keys
        slow = open_view(harness.client, keys, [keys.sketch("rough"), keys.top("rough")])
        emit(1)
        read, expected = ValueReader.everything, {}

        def read_late(self):
            expected.update(harness.totals())
            emit(2)  # after the moment of the second snapshot
            for step in (slow.take, slow.close):
                with pytest.raises(ViewLost, match="paused"):
                    step()
            slow.give_up()
            read(self)

        monkeypatch.setattr(ValueReader, "everything", read_late)
        take(harness, database)
        assert rows(database, "totals") == expected != harness.totals()
        assert harness.client.keys("*cut*") == []


def test_the_snapshot_of_other_data_is_refused(harness, database):
    """A snapshot of another epoch is not overwritten."""
    emit_some(harness, 1)
    take(harness, database)
    before = rows(database, "totals")
    harness.client.hset(harness.layout.meta, "epoch", "another")
    with pytest.raises(SnapshotError, match="other data"):
        take(harness, database)
    assert rows(database, "totals") == before


def test_the_snapshot_of_an_earlier_release_is_replaced(harness, database):
    """After an upgrade, a new snapshot of the same data replaces one with an earlier format and other tables."""
    emit_some(harness, 1)
    take(harness, database)
    database.state({"format": "1"})
    with database._engine.begin() as connection:
        connection.execute(text("DROP TABLE positions"))
        connection.execute(text("CREATE TABLE positions (partition INTEGER PRIMARY KEY)"))
    done = take(harness, database)
    assert (done.whole, done.replaced) == (2, "1")
    assert rows(database, "totals") == harness.totals()
    assert (take(harness, database).whole, database.facts()["format"]) == (0, FORMAT)
    database.state({"format": "99"})
    with pytest.raises(SnapshotError, match="contains a snapshot of format 99"):
        take(harness, database)


@pytest.mark.parametrize("other", [{"format": "1"}, {"format": "9"}, {"layout": "1"}, {"layout": "9"}])
def test_a_snapshot_of_another_version_is_refused(harness, database, other):
    """A snapshot of another format or key layout is not restored; the error names the versions and what to do."""
    emit_some(harness, 1)
    take(harness, database)
    database.state(other)
    harness.client.flushall()
    ((name, version),) = other.items()
    with pytest.raises(SnapshotError, match=f"{name} {version}.* reads .*: restore it with the release that took it"):
        restore(harness.client, database)
    assert harness.client.dbsize() == 0


def test_a_database_that_is_down(harness, tmp_path):
    """A snapshot to an unreachable database fails, and so does a restore from an empty one."""
    emit_some(harness, 1)
    gone = Database("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(SnapshotError, match="cannot be used"):
        take(harness, gone)
    gone.close()
    empty = Database(str(tmp_path / "empty.sqlite"))
    with pytest.raises(SnapshotError, match="no complete snapshot"):
        restore(harness.client, empty)
    empty.close()


def test_a_drill_compares_everything(harness, database):
    """A drill finds no difference in correct counters, even if entries are pending, and reports a changed counter."""
    for seed in (1, 2):
        feed(harness, [(event, bool(seed % 2)) for event in varied()], random.Random(seed))
        partly(harness, random.Random(seed))
        take(harness, database) if seed == 1 else None
    verdict = drill(harness.client, database, Deployment.create_or_load(harness.client))
    assert (verdict.differing, verdict.compared > 20) == (0, True), verdict.differences
    (key, *_) = sorted(harness.client.scan_iter(match="*total:view:*"))
    harness.client.incrby(key, 7)
    verdict = drill(harness.client, database, Deployment.create_or_load(harness.client))
    (difference,) = verdict.differences
    assert difference.table == "totals"
    assert int(difference.live) - int(difference.restored) == 7


@pytest.mark.parametrize("table", ["totals", "windows", "limits", "upvotes", "votes", "ids", "uniques"])
def test_a_drill_finds_what_is_missing(server, tmp_path, table):
    """A drill reports every live value that the snapshot does not have, also if a whole table is empty."""
    database, rules = (
        Database(str(tmp_path / "snapshot.sqlite")),
        Rules({**RULES.metric, "visit": Metric(unique="day")}),
    )
    with Harness(server.url, partitions=2, rules=rules) as harness:
        feed(harness, [(event, True) for event in varied()], random.Random(1))
        with Producer(harness.url) as producer:
            producer.emit("visit", "s", actor="u1")
        harness.finish()
        take(harness, database)
        with database._engine.begin() as connection:
            lost = connection.execute(text(f"DELETE FROM {table} WHERE value <> 0")).rowcount  # noqa: S608
        verdict = drill(harness.client, database, Deployment.create_or_load(harness.client))
        assert lost > 0
        assert verdict.differing >= lost, verdict.differences
    database.close()


def test_a_restore_states_changed_rows(harness, database):
    """If another program has changed rows of a snapshot, a restore names their tables, and so does a drill."""
    emit_some(harness, 1)
    take(harness, database)
    with database._engine.begin() as connection:
        connection.execute(text("UPDATE producers SET value = '9 9-0' WHERE partition = 1"))
        connection.execute(text("DELETE FROM ledger WHERE partition = 1 AND field = 'counted'"))
    assert database.damaged(1) == ["ledger", "producers"]
    assert [part.damaged for part in drill(harness.client, database, Deployment.load(harness.client)).parts] == [
        [], ["ledger", "producers"]
    ]  # fmt: skip
    harness.client.flushall()
    assert [part.damaged for part in restore(harness.client, database).parts] == [[], ["ledger", "producers"]]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_value_that_postgresql_refuses_is_an_error_of_the_snapshot(postgresql, monkeypatch, rows):
    """PostgreSQL stores no NUL: the error names the database, also if the rows are copied; nothing is written."""
    monkeypatch.setattr("tallystream_worker.snapshot.write._MANY", 3)
    with closing(Database(emptied(postgresql))) as database:
        with pytest.raises(SnapshotError, match=r"cannot be used: .*NUL"):
            database.state({f"name {number}": "\0" for number in range(rows)})
        assert database.facts() == {}
        database.state({f"name {number}": "1" for number in range(rows)})
        assert len(database.facts()) == rows


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE facts SET value = 'x' WHERE name = 'partitions'",
        "UPDATE facts SET value = 'x' WHERE name = 'revision'",
        "DELETE FROM facts WHERE name = 'retracted'",
        "UPDATE facts SET value = '{' WHERE name = 'retracted'",
        "UPDATE positions SET generated = 'x'",
    ],
)
def test_a_snapshot_whose_changed_rows_cannot_be_read_is_refused(harness, database, change):
    """If another program has changed a row so that it cannot be read, the error of the restore names the table."""
    emit_some(harness, 1)
    take(harness, database)
    with database._engine.begin() as connection:
        connection.execute(text(change))
    table = change.removeprefix("DELETE FROM ").removeprefix("UPDATE ").partition(" ")[0]
    with pytest.raises(SnapshotError, match=f"another program has changed.* in the tables {table}, "):
        restore(harness.client, database, force=True)


@pytest.mark.parametrize(
    ("change", "found", "of_partitions"),
    [
        ("UPDATE facts SET value = '99' WHERE name = 'revision'", ["facts"], [[], []]),
        ("INSERT INTO facts (name, value) VALUES ('made-up', '1')", ["facts"], [[], []]),
        ("UPDATE positions SET unsent = '9-0' WHERE partition = 1", [], [[], ["positions"]]),
    ],
)
def test_a_restore_states_changed_facts_and_positions(harness, database, change, found, of_partitions):
    """A changed row of `facts` or `positions` is stated as those of other tables are, also by a drill."""
    emit_some(harness, 1)
    take(harness, database)
    with database._engine.begin() as connection:
        connection.execute(text(change))
    harness.client.flushall()
    result = restore(harness.client, database)
    assert (result.damaged, [part.damaged for part in result.parts]) == (found, of_partitions)
    verdict = drill(harness.client, database, Deployment.load(harness.client))
    assert (verdict.damaged, [part.damaged for part in verdict.parts]) == (found, of_partitions)


def test_facts_that_two_processes_store_at_once_have_their_digest(database):
    """A process that stores facts while another one does waits for it, so the digest is that of all rows."""
    database.state({"a": "1", "b": "1"}, whole=True)
    has_read = threading.Event()
    with closing(Database(database._url)) as other:
        other.facts()

        def look(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            if statement.startswith("INSERT"):
                has_read.set()  # it has read the digest

        event.listen(other._engine, "before_cursor_execute", look)
        running = threading.Thread(target=other.state, args=({"b": "2"},))
        with database.at_once():
            database.state({"a": "2"})
            running.start()
            has_read.wait(2)
        running.join()
    assert database.damaged() == []
    assert database.facts() == {"a": "2", "b": "2"}


def test_an_incremental_snapshot_does_not_hide_changed_rows(harness, database):
    """Rows that another program has changed are still found after the next snapshots, until a whole one."""
    emit_some(harness, 1)
    take(harness, database)
    with database._engine.begin() as connection:
        connection.execute(text("UPDATE totals SET value = value + 1 WHERE partition = 1"))
    emit_some(harness, 1)
    Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once()
    assert database.damaged(1) == ["totals"]
    take(harness, database, whole=True)


def test_a_drill_takes_a_sum_of_nothing_for_none(harness, database):
    """A drill reports no difference if a live sum is 0 and the restored one does not exist."""
    emit_some(harness, 1)
    take(harness, database)
    with Producer(harness.url) as producer:
        for amount in (1, 0):
            producer.emit("vote", "p1", amount, actor="u1")
            producer.flush()
            harness.drain()
    assert harness.totals()["vote", "p1"] == 0
    verdict = drill(harness.client, database, Deployment.create_or_load(harness.client))
    assert (verdict.differing, verdict.compared > 20) == (0, True), verdict.differences


def varied() -> list[Event]:
    """Return events of every rule."""
    at = time.time() - 1
    views = [Event("view", f"s{n % 5}", n, at=at - 3600 * (n % 3), id=f"i{n % 7}") for n in range(20)]
    votes = [Event(m, f"s{n % 3}", n % 3 - 1, f"u{n % 4}", at - n) for n in range(20) for m in ("vote", "daily")]
    return views + votes + [Event("call", f"s{n % 2}", at=at) for n in range(12)]


def test_a_worker_takes_snapshots_from_its_first_start(server, tmp_path):
    """If `[snapshot] url` is set, the first worker of an empty server takes snapshots without a command."""
    file = tmp_path / "snapshot.sqlite"
    chosen = Settings(RedisSettings(server.url), snapshot=SnapshotSettings(str(file), every=0.1))
    with counting(chosen, logs.configure(quiet=True)), Producer(server.url) as producer:
        producer.emit("view", "article:1", 3)
        producer.flush(wait="counted", timeout=20)
        database = Database(str(file))
        until(lambda: database.facts() and rows(database, "totals"), timeout=20, what="the snapshot")
        assert rows(database, "totals") == {("view", "article:1"): 3}
        database.close()


@settings(
    max_examples=max(2, EXAMPLES // 3), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(drawn=st.lists(happenings(), min_size=3, max_size=3), seed=st.integers(0, 10_000))
def test_a_generation_that_was_rebuilt_comes_back(server, tmp_path_factory, drawn, seed):
    """The snapshot of a second generation is restored as the first generation, with the counters of the oracle."""
    chance = random.Random(seed)
    server.clear()
    folder = tmp_path_factory.mktemp("restore")
    database = Database(str(folder / "snapshot.sqlite"))
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        happened = feed(harness, drawn[0], chance)
        harness.finish()
        generation = propose(harness.client, Deployment.create_or_load(harness.client), RULES)
        chosen = Settings(RedisSettings(harness.url, partitions=2), rules=RULES)
        with Rebuild(chosen, Deployment.create_or_load(harness.client), generation) as again:
            again.begin()
            again.catch_up()
            again.switch()
        harness.layout = Deployment.create_or_load(harness.client).layout
        happened += feed(harness, drawn[1], chance)
        partly(harness, chance)
        take(harness, database)
        happened += feed(harness, drawn[2], chance)
        partly(harness, chance)
        store = Store(str(folder / "archive"))
        Archive(harness.client, store, Deployment.create_or_load(harness.client)).run_once(settled=0)
        assert drill(harness.client, database, Deployment.create_or_load(harness.client)).differences == []
        server.clear()
        restore(harness.client, database, partial(entries, store))
        harness.layout = Deployment.create_or_load(harness.client).layout
        assert {keys.generation for keys in harness.layout.keys} == {1}
        expected, found = tally(happened, RULES.metric), stored(harness)
        for name in ("totals", "up", "windows", "asked"):
            assert without_zeros(found[name]) == without_zeros(getattr(expected, name)), name
        assert without_zeros(books(harness)) == without_zeros(expected.ledger)
        take(harness, database)
        assert rows(database, "totals") == harness.totals()
        found = audit(harness.client, Deployment.create_or_load(harness.client), RULES, sources=Sources(archive=store))
        assert (found.differences, found.unproved) == ([], 0)
    database.close()


def test_whoever_watches_is_told_how_often(harness, tmp_path):
    """`tally:meta` has the interval of snapshots while the service runs, even if snapshots fail, and not after it."""
    place = SnapshotSettings(url=str(tmp_path / "s.sqlite"), every=0.2)
    configured = Settings(redis=RedisSettings(url=harness.url), snapshot=place)

    def said(field):
        return harness.client.hget(harness.layout.meta, field)

    with running(snapshot_service(configured, harness.deployment, logs.configure(quiet=True)), 10):
        until(lambda: said("snapshot") is not None, what="a snapshot")
        assert said("snapshot-every") == b"0.2"
    assert said("snapshot-every") is None
    with closing(Database(place.url)) as database, database._engine.begin() as connection:
        connection.execute(text("update facts set value = 'another' where name = 'epoch'"))
    harness.client.hdel(harness.layout.meta, "snapshot")
    with running(snapshot_service(configured, harness.deployment, logs.configure(quiet=True)), 10):
        until(lambda: said("snapshot-every") == b"0.2", what="the interval")
    assert said("snapshot") is None
