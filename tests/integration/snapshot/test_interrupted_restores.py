"""Restores after others that were interrupted, or whose root hash was lost: no two of them write the same partition."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from tallystream import Producer
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, DeploymentChanged, StreamError
from tallystream.storage.deployment_hash import parse_live
from tallystream.storage.keys import CLOSED, LEFT, Layout
from tallystream_worker.process import failpoints
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.rebuild.describe import describe
from tallystream_worker.repartition import topic
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.other_topics import RESTORED_TOPIC
from tallystream_worker.snapshot.point_in_time import ViewLost
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.restore_lock import RestoreOvertaken
from tallystream_worker.snapshot.rule_records import NEWEST_TOPIC
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tallystream_worker.verify.verify import verify
from tests.harness import Harness
from tests.integration.repartition.test_migration import PLAIN, moved
from tests.integration.snapshot.test_other_topics import send, state, take

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def harness(server) -> Iterator[Harness]:
    """Provide a harness on an empty server, with two partitions."""
    with Harness(server.url, rules=PLAIN, partitions=2) as wired:
        yield wired


@pytest.fixture
def databases(tmp_path) -> Iterator[list[Database]]:
    """Provide three empty databases."""
    with (
        closing(Database(str(tmp_path / "1.sqlite"))) as first,
        closing(Database(str(tmp_path / "2.sqlite"))) as second,
        closing(Database(str(tmp_path / "3.sqlite"))) as third,
    ):
        yield [first, second, third]


def begin(harness: Harness, database: Database, **options: bool) -> None:
    """Restore a snapshot, and end like an interrupted process after the first partition."""

    def interrupt(_part: object) -> None:
        raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        restore(harness.client, database, force=True, progress=interrupt, **options)


def is_clean(harness: Harness) -> bool:
    """Return whether a verification finds nothing."""
    report = verify(harness.client, "tally", Sources())
    return (report.findings, report.failed) == ({}, [])


@pytest.mark.parametrize("interrupted", [[2], [3], [2, 3], [3, 2]])
def test_the_topic_of_an_interrupted_restore_is_closed_by_that_of_another_topic(harness, databases, interrupted):
    """A producer that runs appends to the restored topic: no topic of an interrupted restore stays open."""
    send(harness, 20)
    take(harness, databases[0])
    for number, database in enumerate(databases[1:], 2):
        moved(harness, number + 1)
        send(harness, 7)
        take(harness, database)
        if number < 3:
            topic.drop(harness.client, Deployment.load(harness.client))
    with Producer(harness.url) as producer:
        producer.emit("view", "x")
        producer.flush()
        harness.drain()
        for number in interrupted:
            begin(harness, databases[number - 1], accept_loss=True)
        restore(harness.client, databases[0], force=True, accept_loss=True)
        for n in range(30):
            producer.emit("view", f"x{n}")
        producer.flush()
        harness.layout = Deployment.load(harness.client).layout
        harness.drain()
        assert (harness.layout, sum(harness.totals().values())) == (Layout(2), 50)
    root = harness.client.hgetall("tally:meta")
    for number in {3, *interrupted}:
        for keys in Layout(number + 1, topic=number).keys:
            assert not parse_live(harness.client.get(keys.live), keys.live)[1]
            assert harness.client.hget(keys.sequences, CLOSED) == b"1"
        assert f"{number}:{number + 1}".encode() in root[LEFT.encode()].split()
    assert (int(root[NEWEST_TOPIC.encode()]), b"kept" in root) == (3, False)
    assert is_clean(harness)
    assert topic.propose(harness.client, Deployment.load(harness.client), 5).topic == 4


def test_events_of_the_topic_of_an_interrupted_restore_are_not_left_out_in_silence(harness, databases):
    """A restore states the events that were appended to the topic of an interrupted one, and refuses."""
    send(harness, 20)
    take(harness, databases[0])
    moved(harness, 3)
    send(harness, 7)
    take(harness, databases[1])
    restore(harness.client, databases[0], force=True, accept_loss=True)
    with Producer(harness.url) as producer:
        producer.emit("view", "y")
        producer.flush()
        begin(harness, databases[0])
        for n in range(4):
            producer.emit("view", f"y{n}")
    before = state(harness)
    with pytest.raises(StreamError, match="topic 1 is live on the server, and has 5 events that topic 2 does not have"):
        restore(harness.client, databases[1], force=True)
    assert state(harness) == before
    restore(harness.client, databases[0], force=True)
    harness.layout = Deployment.load(harness.client).layout
    assert sum(harness.totals().values()) == 25


def test_the_topic_before_is_still_copied_after_an_interrupted_restore(harness, databases):
    """A repeated restore keeps the record of the topic before that of the snapshot, whose stragglers workers copy."""
    send(harness, 20)
    moved(harness, 3)
    take(harness, databases[1])
    begin(harness, databases[1])
    begin(harness, databases[1])
    restore(harness.client, databases[1], force=True)
    root = harness.client.hgetall("tally:meta")
    assert (root[b"kept"], root[b"partitions@1"]) == (b"1", b"2")
    assert is_clean(harness)


@pytest.mark.parametrize("place", ["after-load", "after-graft", "after-partition"])
@pytest.mark.parametrize("turn", [1, 2])
def test_a_restore_writes_nothing_after_the_server_was_emptied_and_restored(
    harness, databases, monkeypatch, place, turn
):
    """If the root is lost too, the later restore may have the same number; still, the earlier one is refused."""
    send(harness, 200)
    take(harness, databases[0])
    send(harness, 300)
    take(harness, databases[1])
    reached: list[str] = []
    kept: list[dict[bytes, bytes | None]] = []

    def reach(at: str) -> None:
        reached.append(at)
        if reached.count(place) == turn and at == place and not kept:
            kept.append({})
            harness.client.flushall()
            begin(harness, databases[1])
            kept.append(state(harness))

    monkeypatch.setattr(failpoints, "reach", reach)
    with pytest.raises(RestoreOvertaken, match="has taken over"):
        restore(harness.client, databases[0], force=True)
    assert state(harness) == kept[1]
    restore(harness.client, databases[1], force=True)
    assert sum(harness.totals().values()) == 500
    assert is_clean(harness)


def test_a_deployment_without_its_root_hash_is_restored_at_once(harness, databases):
    """If `tally:meta` is deleted, a restore finds the number of the last closing in the partitions."""
    send(harness, 20)
    take(harness, databases[0])
    for _ in range(3):
        restore(harness.client, databases[0], force=True)
    harness.client.delete("tally:meta")
    restore(harness.client, databases[0], force=True)
    begin(harness, databases[0])
    harness.client.delete("tally:meta")
    restore(harness.client, databases[0], force=True)
    assert harness.client.hget("tally:meta", "closing") == b"6"
    assert sum(harness.totals().values()) == 20
    assert is_clean(harness)


@pytest.mark.parametrize("then", ["finished", "interrupted"])
def test_a_slow_snapshot_does_not_replace_the_one_that_was_restored(harness, databases, monkeypatch, then):
    """Values from before a restore are not written after it has begun, although the mark is the same."""
    send(harness, 20)
    take(harness, databases[0])
    (key,) = [name for name in harness.client.scan_iter() if name.endswith(b"total:view:s1")]
    harness.client.incrby(key, 1000)
    before = [databases[0].position(n) for n in range(2)]
    reached: list[str] = []

    def reach(at: str) -> None:
        reached.append(at)
        if (at, reached.count(at)) == ("after-cut", 1):
            if then == "finished":
                restore(harness.client, databases[0], force=True)
            else:
                begin(harness, databases[0])

    monkeypatch.setattr(failpoints, "reach", reach)
    snapshotter = Snapshotter(harness.client, databases[0], Deployment.load(harness.client))
    with pytest.raises((ViewLost, DeploymentChanged)):
        snapshotter.run_once(whole=True)
    assert [databases[0].position(n) for n in range(2)] == before
    restore(harness.client, databases[0], force=True)
    assert sum(harness.totals().values()) == 20


@pytest.mark.parametrize("topics", [1, 2])
def test_a_deployment_is_not_described_again_during_a_restore(harness, databases, topics):
    """If `tally:meta` is deleted after an interrupted restore, `reopen` names the restore, and changes nothing."""
    send(harness, 20)
    take(harness, databases[0])
    if topics == 2:
        moved(harness, 3)
    begin(harness, databases[0], accept_loss=True)
    harness.client.delete("tally:meta")
    before = state(harness)
    with pytest.raises(ConfigurationError, match=r"a restore has not finished.* tallystream restore --force"):
        describe(harness.client, "tally", 2)
    assert state(harness) == before
    restore(harness.client, databases[0], force=True, accept_loss=True)
    harness.layout = Deployment.load(harness.client).layout
    assert sum(harness.totals().values()) == 20


def test_a_root_without_the_restored_topic_is_restored(harness, databases):
    """If another program removes the field with the restored topic, a restore takes the first topic for it."""
    send(harness, 20)
    take(harness, databases[0])
    begin(harness, databases[0])
    harness.client.hdel("tally:meta", RESTORED_TOPIC)
    restore(harness.client, databases[0], force=True)
    assert sum(harness.totals().values()) == 20
