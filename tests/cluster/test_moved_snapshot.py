"""A whole snapshot has every counter, also if its partition moves to another node while the snapshot is read."""

from __future__ import annotations

import contextlib

import pytest
from redis.exceptions import AskError, TryAgainError

from tallystream.client.cluster.slots import slot_of
from tallystream.deployment import Deployment
from tallystream_worker.process import scan
from tallystream_worker.process.scan import ScanBroken
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tallystream_worker.snapshot.values import ValueReader
from tests.harness import Harness

SUBJECTS = 300


@pytest.fixture
def snapshotter(server, tmp_path, monkeypatch):
    """Provide a snapshotter of one partition with many counters, which reads them in small pages."""
    monkeypatch.setattr(scan, "PAGE", 20)
    with (
        contextlib.closing(Database(str(tmp_path / "snapshot.sqlite"))) as database,
        Harness(server.url, partitions=1) as harness,
    ):
        for number in range(SUBJECTS):
            harness.client.xadd(harness.layout.keys[0].stream, {"metric": "view", "subject": f"s{number}"})
        harness.drain()
        yield Snapshotter(harness.client, database, Deployment.load(harness.client))


class Mover:
    """Moves the slot of the partition."""

    def __init__(self, cluster, snapshotter):
        self.cluster = cluster
        self.stream = snapshotter._deployment.layout.keys[0].stream
        self.source = cluster.owner(self.stream)
        self.target = next(node for node in cluster.nodes if node.is_primary() and node is not self.source)

    def begin(self):
        """Move most keys."""
        self.cluster.open_move(slot_of(self.stream), self.source, self.target)
        self.cluster.move_keys(slot_of(self.stream), self.source, self.target, 250)

    def undo(self):
        """Move the keys back, and end the move."""
        slot = slot_of(self.stream)
        self.source.ask("CLUSTER", "SETSLOT", slot, "STABLE")  # so that it accepts the keys
        self.cluster.move_keys(slot, self.target, self.source)
        self.target.ask("CLUSTER", "SETSLOT", slot, "STABLE")

    def move(self):
        """Move the slot."""
        self.cluster.move(slot_of(self.stream), self.source, self.target)
        self.source, self.target = self.target, self.source
        self.cluster.wait_until_whole()


def counters(taken):
    """Return the number of totals of views that were read."""
    return sum(value is not None for value in taken.values["totals", "view"].values())


def between_pages(monkeypatch, action):
    """Call `action` with the number of the page after the counters of each page were read."""
    some, pages = ValueReader.some, []

    def read(self, touched):
        pages.append(len(pages))
        action(pages[-1], lambda: some(self, touched))

    monkeypatch.setattr(ValueReader, "some", read)


def test_a_moved_partition_is_read_again(cluster, snapshotter, monkeypatch):
    """If the slot moves between two pages of keys, the snapshot begins again on the other node."""
    mover = Mover(cluster, snapshotter)

    def act(page, read):
        read()
        if page == 2:
            mover.move()

    between_pages(monkeypatch, act)
    assert counters(snapshotter.take(0, None)) == SUBJECTS
    mover.move()


def test_a_partition_that_moves_again_and_again_has_no_snapshot(cluster, snapshotter, monkeypatch):
    """If the slot moves between all pages, the snapshot fails after three attempts, and states why."""
    mover = Mover(cluster, snapshotter)
    moves = []

    def act(_, read):
        read()
        mover.move()
        moves.append(mover.source)

    between_pages(monkeypatch, act)
    with pytest.raises(ScanBroken, match=r"the slot moved to another node: the list may lack keys"):
        snapshotter.take(0, None)
    assert len(moves) == 3
    mover.move()


def test_keys_on_two_nodes_are_not_left_out(cluster, snapshotter, monkeypatch):
    """If some keys are on another node while a page is listed, and then come back, the snapshot fails."""
    mover = Mover(cluster, snapshotter)

    def act(page, read):
        if page == 3:
            mover.undo()
        read()
        if page == 2:
            mover.begin()

    with monkeypatch.context() as patched:
        between_pages(patched, act)
        with pytest.raises((TryAgainError, AskError)):
            snapshotter.take(0, None)
    mover.undo()
    assert counters(snapshotter.take(0, None)) == SUBJECTS
