"""The entries of a dead process's spool are watched after their delivery: if the server loses them, they come back."""

from __future__ import annotations

import pytest

from tallystream import Producer
from tallystream.deployment import Deployment
from tallystream.producing import rollback_watch, send_queue, sender
from tallystream.producing.buffer import BufferSettings
from tallystream.producing.spool.buffer import Spool
from tallystream.producing.spool.segments import SegmentedLog
from tallystream.producing.spool.settings import SpoolSettings
from tests.harness import Harness
from tests.integration.repartition.test_migration import moved
from tests.rewind import copy_of, go_back
from tests.waiting import until


@pytest.fixture
def harness(server):
    """Yield a harness on an empty server, with one partition."""
    with Harness(server.url, partitions=1) as harness:
        yield harness


def leave(folder, events, name="a"):
    """Leave a spool with events that no process has delivered, each with another long subject."""
    spool = Spool(BufferSettings(), SpoolSettings(folder, 2**20, "os", "tally"))
    for number in range(events):
        spool.put(-1, "view", f"{name}:{number:0100}", 1, 60.0, None, None)
    spool.abandon()


def counted(harness):
    """Count all entries in the streams; return the sum of the totals."""
    harness.drain()
    return sum(harness.totals().values())


def delivering(harness, folder, events):
    """Return a producer that has delivered the events of dead processes; their files are removed."""
    producer = Producer(harness.url, spool=folder)
    until(lambda: producer.stats.adopted == events, what="the events of the dead processes")
    until(lambda: list(folder.iterdir()) == [], what="the removal of their files")
    return producer


@pytest.mark.parametrize("is_closed", [False, True])
def test_delivered_events_come_back(harness, tmp_path, monkeypatch, is_closed):
    """If the server loses delivered events of a dead process, the producer sends them again; `close` waits for this.

    Its statistics count the events of the dead process once.
    """
    if not is_closed:
        monkeypatch.setattr(rollback_watch, "_INTERVAL", 0.1)
    leave(tmp_path, 500)
    before = copy_of(harness.client)
    producer = delivering(harness, tmp_path, 500)
    go_back(harness.client, before)
    if not is_closed:
        until(lambda: harness.client.xlen(harness.layout.keys[0].stream) > 0, what="the lost events")
        until(lambda: producer.stats.rewound_streams == 1)
    producer.close()
    stats = producer.stats
    assert (stats.adopted, stats.rewound_streams, stats.lost_entries, stats.appended) == (500, 1, 0, 0)
    assert counted(harness) == 500
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_longer_kept_is_reported(harness, tmp_path, monkeypatch):
    """Lost entries of a dead process that the producer no longer keeps are in `lost_entries`; the others come back."""
    monkeypatch.setattr(send_queue, "KEEP_BYTES", 100_000)
    leave(tmp_path, 5000)
    before = copy_of(harness.client)
    producer = delivering(harness, tmp_path, 5000)
    entries = harness.client.xlen(harness.layout.keys[0].stream)
    go_back(harness.client, before)
    producer.close()
    kept = harness.client.xlen(harness.layout.keys[0].stream)
    assert 0 < kept < entries
    assert (producer.stats.lost_entries, producer.stats.rewound_streams) == (entries - kept, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("_MOST_WATCHED", 1), ("_MOST_WATCHED_BYTES", 100_000)])
def test_memory_is_bounded(harness, tmp_path, monkeypatch, name, value):
    """If many dead processes left events, only the latest delivered ones are watched."""
    monkeypatch.setattr(sender, name, value)
    before = copy_of(harness.client)
    for number in range(3):
        leave(tmp_path, 500, f"{number}")
    producer = delivering(harness, tmp_path, 1500)
    go_back(harness.client, before)
    producer.close()
    assert (counted(harness), producer.stats.adopted) == (500, 1500)


def test_the_watch_ends(harness, tmp_path, monkeypatch):
    """When the time of the watch has passed, the entries of the dead process are no longer kept; its counts stay."""
    monkeypatch.setattr(rollback_watch, "_WATCH", 0.0)
    leave(tmp_path, 500)
    before = copy_of(harness.client)
    with delivering(harness, tmp_path, 500) as producer:
        until(lambda: not producer._sender._delivered, what="the end of the watch")
        go_back(harness.client, before)
    assert (counted(harness), producer.stats.adopted) == (0, 500)


@pytest.mark.parametrize("goes_back", [False, True])
def test_a_repartition_during_the_watch(harness, tmp_path, goes_back):
    """After a repartition, delivered events of a dead process are in the new topic; they also come back to the old."""
    leave(tmp_path, 500)
    before = copy_of(harness.client)
    producer = delivering(harness, tmp_path, 500)
    moved(harness, 2)
    producer.emit("view", "own")
    producer.flush(30)
    if goes_back:
        go_back(harness.client, before)
    producer.close()
    harness.layout = Deployment.create_or_load(harness.client).layout
    assert (counted(harness), producer.stats.adopted) == (501, 500)


def test_a_spool_that_cannot_be_read_is_left_alone(harness, tmp_path, caplog):
    """A spool whose file cannot be read is logged and not locked any more; the producer sends its own events."""
    leave(tmp_path, 1)
    (folder,) = tmp_path.iterdir()
    (file,) = folder.glob("*.log")
    file.rename(tmp_path / "kept")
    file.mkdir()  # an error of the operating system when it is read, also for the user root
    with Producer(harness.url, spool=tmp_path) as producer:
        producer.emit("view", "own")
        producer.flush(30)
        claimed = SegmentedLog.claim(folder)
        assert claimed is not None
        claimed.close()
    assert f"spool.unreadable problem='{folder}: IsADirectoryError" in caplog.text
    assert counted(harness) == 1
