"""A restore closes every topic but that of its snapshot: it refuses to leave out events of others in silence."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import pytest

from tallystream import Producer
from tallystream.deployment import Deployment
from tallystream.errors import StreamError
from tallystream.storage.keys import Layout
from tallystream.wire.codec import COPIED
from tallystream_worker.archive.later_topics import later_events
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.repartition import topic
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness
from tests.integration.repartition.test_migration import PLAIN, moved


@pytest.fixture
def harness(server):
    """Provide a harness on an empty server, with two partitions."""
    with Harness(server.url, rules=PLAIN, partitions=2) as wired:
        yield wired


@pytest.fixture
def database(tmp_path):
    """Provide an empty database."""
    with closing(Database(str(tmp_path / "snapshot.sqlite"))) as opened:
        yield opened


def send(harness: Harness, events: int) -> None:
    """Send events to the live topic, and count them."""
    with Producer(harness.url) as producer:
        for n in range(events):
            producer.emit("view", f"s{n}")
    harness.layout = Deployment.load(harness.client).layout
    harness.drain()


def take(harness: Harness, database: Database) -> None:
    """Take a snapshot of the live topic."""
    Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once()


def state(harness: Harness) -> dict[bytes, bytes | None]:
    """Return all keys of the server with their values, as `DUMP` returns them."""
    return {key: harness.client.dump(key) for key in harness.client.scan_iter()}


def test_a_later_topic_is_not_replaced_in_silence(harness, database):
    """If a later topic is live, a restore states its events, and refuses; with `accept_loss`, it leaves them out."""
    send(harness, 20)
    take(harness, database)
    moved(harness, 3)
    send(harness, 7)
    before = state(harness)
    with pytest.raises(StreamError, match=r"topic 2 is live on the server, and has 7 events .* use --accept-loss"):
        restore(harness.client, database, force=True)
    assert state(harness) == before
    restore(harness.client, database, force=True, accept_loss=True)
    assert Deployment.load(harness.client).layout == Layout(2)
    restore(harness.client, database, force=True)  # the later topic was given up
    take(harness, database)
    harness.client.flushall()
    restore(harness.client, database)
    send(harness, 1)
    assert sum(harness.totals().values()) == 21


def test_the_streams_show_that_a_later_topic_has_replaced_them(harness, database):
    """If `tally:meta` is deleted after a repartition, the closed streams of the snapshot's topic show the later one."""
    send(harness, 20)
    take(harness, database)
    moved(harness, 3)
    harness.client.delete("tally:meta")
    with pytest.raises(StreamError, match="topic 2 has replaced its streams on the server"):
        restore(harness.client, database, force=True)


def test_a_topic_that_was_closed_and_is_live_is_restored(harness, database):
    """If a repartition was interrupted after it had closed the streams, no event was sent to its new topic."""
    send(harness, 20)
    take(harness, database)
    deployment = Deployment.load(harness.client)
    layout = topic.propose(harness.client, deployment, 3)
    topic.begin(harness.client, deployment, layout, PLAIN)
    topic.close(harness.client, deployment, layout, topic.next_closing(harness.client, deployment))
    restore(harness.client, database, force=True)
    send(harness, 1)
    assert sum(harness.totals().values()) == 21


def archive(harness: Harness, url: str, number: int) -> None:
    """Archive every entry of the live topic, which has this number."""
    Archive(harness.client, Store(url, log=number), Deployment.load(harness.client)).run_once(settled=0)


def test_the_archive_shows_a_later_topic_of_a_lost_server(harness, database, tmp_path):
    """If the server is lost after a repartition, the archived events of the later topic show that it was live.

    After an accepted loss, its number is not used again.
    """
    url = str(tmp_path / "archive")
    known = partial(later_events, url, harness.layout.namespace)

    send(harness, 20)
    take(harness, database)
    archive(harness, url, 1)
    moved(harness, 3)
    archive(harness, url, 2)
    assert known(1) == {}  # only copies: nothing is lost yet
    send(harness, 7)
    archive(harness, url, 2)
    assert known(1) == {2: 7}
    harness.client.flushall()
    with pytest.raises(StreamError, match=r"the archive has topic 2, with 7 events .* use --accept-loss"):
        restore(harness.client, database, later=known)
    assert not harness.client.dbsize()
    topics = Store(url).later_topics()
    restore(harness.client, database, later=known, topics=topics, accept_loss=True)
    take(harness, database)
    restore(harness.client, database, force=True, later=known)  # the snapshot is newer than the accepted loss
    harness.client.flushall()
    restore(harness.client, database, later=known)
    assert topic.propose(harness.client, Deployment.load(harness.client), 3).topic == 3


@pytest.mark.parametrize("is_emptied", [False, True])
def test_new_events_of_an_earlier_topic_are_not_closed_in_silence(harness, database, is_emptied):
    """If the server was put back to before a repartition, or emptied, events may be appended to an earlier topic."""
    send(harness, 20)
    older = state(harness)
    moved(harness, 3)
    take(harness, database)
    harness.client.flushall()
    if is_emptied:
        Deployment.create_or_load(harness.client, 2)
    else:
        for key, value in older.items():
            harness.client.restore(key, 0, value)
        with Producer(harness.url) as producer:
            producer.emit("view", "s1")
    if is_emptied:
        restore(harness.client, database, force=True)
        harness.client.flushall()
        Deployment.create_or_load(harness.client, 2)
        harness.client.xadd(Layout(2).keys[0].stream, {"metric": "view", "subject": "s1"})
    with pytest.raises(StreamError, match="topic 1 is live on the server, and has 1 events that topic 2 does not"):
        restore(harness.client, database, force=True)
    restore(harness.client, database, force=True, accept_loss=True)
    send(harness, 1)
    assert sum(harness.totals().values()) == 21


def test_late_copies_do_not_hide_the_events_of_a_later_topic(harness, database, tmp_path):
    """The last file of a topic may have only copies of stragglers; the events in the files before it are found."""
    url = str(tmp_path / "archive")
    known = partial(later_events, url, harness.layout.namespace)

    send(harness, 20)
    take(harness, database)
    moved(harness, 3)
    archive(harness, url, 2)
    send(harness, 7)
    archive(harness, url, 2)
    for _ in range(2):
        for keys in harness.layout.keys:
            ((_, copied),) = harness.client.xrange(keys.stream, count=1)
            assert copied[b"p"] == COPIED
            harness.client.xadd(keys.stream, copied)
        archive(harness, url, 2)
    assert known(1) == {2: 7}
    harness.client.flushall()
    with pytest.raises(StreamError, match="the archive has topic 2, with 7 events"):
        restore(harness.client, database, later=known)


@pytest.mark.parametrize("accept_loss", [False, True])
def test_the_number_of_an_archived_topic_is_not_used_again(harness, database, tmp_path, accept_loss):
    """Also a topic that has only copies in the archive keeps its number: another topic would write to its files."""
    store, read = Store(str(tmp_path / "archive")), []

    def known(topic: int) -> dict[int, int]:
        read.append(topic)
        return later_events(store.url, harness.layout.namespace, topic)

    send(harness, 20)
    take(harness, database)
    moved(harness, 3)
    Archive(harness.client, Store(store.url, log=2), Deployment.load(harness.client)).run_once(settled=0)
    harness.client.flushall()
    options = {"later": known, "topics": store.later_topics(), "accept_loss": accept_loss}
    restore(harness.client, database, **options)
    assert read == ([] if accept_loss else [1])
    assert topic.propose(harness.client, Deployment.load(harness.client), 3).topic == 3
