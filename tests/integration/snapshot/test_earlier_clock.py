"""A restore counts what a server with an earlier clock appended after a loss, with IDs up to those of the snapshot."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tallystream import Producer
from tallystream.client.server_time import server_time
from tallystream.deployment import Deployment
from tallystream.producing.decider import Decider
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.event import Event
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.cli.generation import build
from tallystream_worker.process import failpoints
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.rebuild.rebuild import propose
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.partition_restore import PartitionRestore
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness
from tests.integration.rebuild.test_rebuild import settings_for
from tests.rewind import copy_of, go_back
from tests.waiting import until

RULES = Rules({"view": Metric(windows=("hour",)), "vote": Metric(limit=100, per="day")})


class World:
    """A deployment of one partition with a snapshot and an archive, whose server can go back.

    Args:
        url: The URL of the server.
        folder: A folder for the snapshot and the archive.
    """

    def __init__(self, url, folder):
        self.harness = Harness(url, partitions=1, rules=RULES)
        self.client = self.harness.client
        self.database = Database(str(folder / "snapshot.sqlite"))
        self.store = Store(str(folder / "archive"))
        self.producer = Producer(url)
        self.truth: dict[tuple[str, str], int] = {}

    def emit(self, subject, events=3, producer=None):
        """Append events, each as a separate entry, and count them; without `producer`, that of a new process."""
        with Producer(self.harness.url) as own:
            for _ in range(events):
                (producer or own).emit("view", subject)
                (producer or own).flush()
        self.harness.drain()
        self.truth["view", subject] = self.truth.get(("view", subject), 0) + events

    def add(self, subject):
        """Append an event as another client does."""
        self.client.xadd(self.harness.layout.keys[0].stream, {"metric": "view", "subject": subject})
        self.harness.drain()
        self.truth["view", subject] = self.truth.get(("view", subject), 0) + 1

    def decide(self, subject):
        """Decide an event."""
        assert Decider(self.client, Deployment.load(self.client))(Event("vote", subject)).accepted
        self.truth["vote", subject] = self.truth.get(("vote", subject), 0) + 1

    def archive(self):
        """Archive every entry."""
        Archive(self.client, self.store, Deployment.load(self.client)).run_once(settled=0)

    def snapshot(self):
        """Take a snapshot."""
        Snapshotter(self.client, self.database, Deployment.load(self.client)).run_once()

    def advance(self, seconds=60):
        """Let the clock of the server be ahead, as its next IDs show."""
        milliseconds = int((server_time(self.client) / 1000 + seconds) * 1000)
        self.client.execute_command("XSETID", self.harness.layout.keys[0].stream, f"{milliseconds}-0")

    def restore(self, *, with_archive):
        """Restore the snapshot, also if the server has later data."""
        source = partial(entries, self.store) if with_archive else None
        return restore(self.client, self.database, source, force=True)

    def check(self, *, with_archive):
        """Make sure that every total is right, that an audit finds no difference, and that a rebuild gives the same."""
        deployment = Deployment.load(self.client)
        self.harness.layout = deployment.layout
        assert self.harness.totals() == self.truth
        found = audit(
            self.client,
            deployment,
            deployment.rules,
            sources=Sources(self.store if with_archive else None, self.database),
        )
        assert found.differences == []
        settings = settings_for(self.harness.url, RULES, 1)
        number = propose(self.client, deployment, RULES)
        archive = self.store.url if with_archive else ""
        build(settings, Deployment.load(self.client), number, archive, accept_loss=not with_archive)
        self.harness.layout = Deployment.load(self.client).layout
        return self.harness.totals()

    def close(self):
        """Close everything."""
        self.producer.close()
        self.database.close()


@pytest.fixture
def world(server, tmp_path):
    """Provide a deployment whose server has lost the end of its log. After that, its clock is slow."""
    yield from after_a_loss(World(server.url, tmp_path))


@pytest.fixture
def pending_world(server, tmp_path):
    """Provide the same; but a worker died with the first entry, so that it is pending in the snapshot."""
    found = World(server.url, tmp_path)
    found.producer.emit("view", "pending")
    found.producer.flush()
    found.truth["view", "pending"] = 1
    assert len(found.harness.fetch(0, "dead")(1, 0)) == 1
    yield from after_a_loss(found)


def after_a_loss(world):
    """Let the server of a deployment lose the end of its log, yield the deployment, and close it."""
    with world.harness:
        world.emit("kept")
        world.emit("again", producer=world.producer)
        earlier = copy_of(world.client)
        world.advance()
        world.emit("lost")
        world.emit("again", producer=world.producer)
        world.decide("lost")
        world.archive()
        world.snapshot()
        go_back(world.client, earlier)
        yield world
        world.close()


def send_again(world):
    """Let the producer send again what the server has lost, after a further event."""
    world.emit("again", 1, producer=world.producer)
    until(lambda: world.producer.stats.rewound_streams, what="the rollback of the producer")
    world.producer.flush()
    world.harness.drain()


@pytest.mark.parametrize("with_archive", [False, True])
def test_entries_with_earlier_ids_count_once(world, with_archive):
    """Those of a new producer, of one that sends again, of other clients, and decided ones."""
    world.emit("after")
    send_again(world)
    world.add("plain")
    world.decide("after")
    world.emit("after")
    assert world.client.xinfo_stream(world.harness.layout.keys[0].stream)["last-generated-id"].decode() < (
        world.database.position(0)[0].delivered
    )
    parts = world.restore(with_archive=with_archive).parts
    assert [part.missing for part in parts] == [0]
    rebuilt = world.check(with_archive=with_archive)
    if with_archive:
        assert rebuilt == world.truth


@pytest.mark.parametrize("with_archive", [False, True])
def test_events_that_were_only_sent_again_count_once(world, with_archive):
    """No new event shows where the loss was, except the one with which the producer begins again."""
    send_again(world)
    world.restore(with_archive=with_archive)
    rebuilt = world.check(with_archive=with_archive)
    if with_archive:
        assert rebuilt == world.truth


@pytest.mark.parametrize("with_archive", [False, True])
@pytest.mark.parametrize("place", ["after-load", "after-graft", "after-partition", ""])
def test_a_repeated_restore_counts_them_once(world, monkeypatch, with_archive, place):
    """Also if the first one was interrupted, at each of its places, or has ended."""
    world.emit("after")
    world.add("plain")
    send_again(world)
    world.decide("after")

    def reach(reached: str) -> Any:
        if reached == place:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(failpoints, "reach", reach)
        if place:
            with pytest.raises(KeyboardInterrupt):
                world.restore(with_archive=with_archive)
        else:
            world.restore(with_archive=with_archive)
    world.restore(with_archive=with_archive)
    world.emit("later")
    world.check(with_archive=with_archive)


@pytest.mark.parametrize("place", ["_first_later", "_set_up"])
def test_entries_that_are_appended_during_a_restore_get_later_ids(world, monkeypatch, place):
    """The restore lets the IDs of the stream begin after those of the snapshot, before it reads the stream."""
    send_again(world)
    step = getattr(PartitionRestore, place)

    def append_first(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(PartitionRestore, place, step)
        world.producer.emit("view", "meanwhile")
        world.producer.flush()
        return step(*arguments, **options)

    monkeypatch.setattr(PartitionRestore, place, append_first)
    world.restore(with_archive=False)
    world.truth["view", "meanwhile"] = 1
    world.check(with_archive=False)


@pytest.mark.parametrize("with_archive", [False, True])
def test_an_entry_that_was_pending_at_the_snapshot_counts_once(pending_world, with_archive):
    """Then the restore reads the stream from this entry on, with all entries that have earlier IDs after the loss."""
    world = pending_world
    world.emit("after")
    send_again(world)
    world.add("plain")
    world.restore(with_archive=with_archive)
    rebuilt = world.check(with_archive=with_archive)
    if with_archive:
        assert rebuilt == world.truth


@pytest.mark.parametrize("with_archive", [False, True])
def test_events_that_were_only_sent_again_count_once_beside_a_pending_entry(pending_world, with_archive):
    """The first of them shows from where on entries are later than the loss, if the archive has them."""
    send_again(pending_world)
    pending_world.restore(with_archive=with_archive)
    rebuilt = pending_world.check(with_archive=with_archive)
    if with_archive:
        assert rebuilt == pending_world.truth


def test_an_emptied_server_with_an_earlier_clock(world):
    """Its new entries count, too."""
    world.client.flushall()
    world.restore(with_archive=True)
    world.check(with_archive=True)


def test_the_next_snapshot_has_them(world):
    """After the restore, a snapshot is taken, the server is emptied, and the snapshot is restored."""
    world.emit("after")
    world.add("plain")
    world.restore(with_archive=False)
    world.snapshot()
    world.client.flushall()
    world.restore(with_archive=False)
    world.harness.layout = Deployment.load(world.client).layout
    assert world.harness.totals() == world.truth
