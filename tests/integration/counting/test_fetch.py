"""A fetch returns own pending entries first, then idle ones of other consumers, then new ones."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest
from redis.exceptions import ResponseError

from tallystream import Producer
from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import ConsumerGroupMissing, KeyLost
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream.storage.keys import GROUP
from tallystream_worker.counting.fetch import Fetch
from tests.harness import Harness


@pytest.fixture
def harness(server):
    """Yield a harness of one partition on an empty server."""
    with Harness(server.url, partitions=1) as harness:
        yield harness


def append(harness: Harness, entries: int) -> list[str]:
    """Append plain views; return their IDs."""
    stream = harness.layout.keys[0].stream
    return [harness.client.xadd(stream, {"metric": "view", "subject": "a"}).decode() for _ in range(entries)]


def ids(entries) -> list[str]:
    """Return the IDs of fetched entries."""
    return [entry.id for entry in entries]


def test_own_pending_entries_come_first(harness):
    """A restarted consumer first fetches its pending entries, in order, and then new ones."""
    held = append(harness, 3)
    assert ids(harness.fetch(0)(10, 0)) == held
    new = append(harness, 2)
    again = harness.fetch(0)
    entries = again(10, 0)
    assert ids(entries) == held
    assert [entry.deliveries for entry in entries] == [2, 2, 2]
    harness.client.xack(harness.layout.keys[0].stream, GROUP, *held)
    assert ids(again(10, 0)) == new
    assert again(10, 0) == []


def test_recovering_begins_with_own_pending_entries(harness):
    """After `recover`, a consumer fetches its pending entries again."""
    fetch = harness.fetch(0)
    held = append(harness, 2)
    assert ids(fetch(10, 0)) == held
    append(harness, 1)
    fetch.recover()
    assert ids(fetch(10, 0)) == held


def test_stale_entries_are_taken_over_on_a_cursor(harness):
    """All idle entries of another consumer are claimed in several fetches, to the end of a long pending list."""
    held = append(harness, 200)
    assert len(harness.fetch(0, "gone")(1000, 0)) == 200
    append(harness, 1)
    fetch = harness.fetch(0, "here", claim_idle=0)
    taken = []
    for _ in range(4):
        entries = fetch(1000, 0)
        assert all(entry.deliveries == 2 for entry in entries)
        taken += ids(entries)
    assert taken == held


def test_fresh_entries_of_others_are_left_alone(harness):
    """Entries that were delivered to another consumer a short time ago are not claimed."""
    append(harness, 2)
    harness.fetch(0, "other")(1, 0)
    assert len(harness.fetch(0, "here")(10, 0)) == 1


def test_a_read_is_bounded(harness):
    """A fetch returns at most as many entries as were asked for."""
    append(harness, 10)
    fetch = harness.fetch(0)
    assert [len(fetch(4, 0)) for _ in range(4)] == [4, 4, 2, 0]


def test_a_read_waits_for_new_entries(harness):
    """A blocking fetch returns as soon as an entry is appended."""
    fetch = Fetch(harness.connect(block=20), harness.layout.keys[0], "w")
    fetch(1, 0)
    began = time.monotonic()
    found = []
    reader = threading.Thread(target=lambda: found.extend(fetch(10, 20)))
    reader.start()
    appended = append(harness, 1)
    reader.join()
    assert ids(found) == appended
    assert time.monotonic() - began < 15


def test_the_first_start_begins_at_the_beginning(server):
    """A new group begins with the entries that were appended before any worker ran."""
    with Harness(server.url, partitions=1) as harness:
        harness.client.delete(harness.layout.keys[0].stream)
        early = append(harness, 2)
        fetch = harness.fetch(0)
        fetch.ensure_group()
        fetch.ensure_group()  # as a second worker does
        assert ids(fetch(10, 0)) == early


@pytest.mark.parametrize("lost", ["group", "stream"])
def test_a_lost_group_is_not_begun_anew(harness, lost):
    """If entries were counted and the group or the stream is missing, an error is raised, and neither is created."""
    append(harness, 2)
    harness.drain()
    stream = harness.layout.keys[0].stream
    if lost == "group":
        harness.client.xgroup_destroy(stream, GROUP)
    else:
        harness.client.delete(stream)
    with pytest.raises(ConsumerGroupMissing if lost == "group" else KeyLost) as refused:
        harness.fetch(0).ensure_group()
    assert stream in str(refused.value)
    assert not harness.client.exists(stream) if lost == "stream" else harness.client.xinfo_groups(stream) == []
    assert harness.totals() == {("view", "a"): 2}


def test_a_fetch_without_a_group_is_an_error(harness):
    """A fetch without the group raises NOGROUP."""
    harness.client.xgroup_destroy(harness.layout.keys[0].stream, GROUP)
    with pytest.raises(ResponseError, match=r"^NOGROUP"):
        harness.fetch(0)(10, 0)


def test_entries_that_were_trimmed_away_are_counted_as_lost(harness):
    """Claimed entries that were trimmed while they were pending are added to `lost`."""
    append(harness, 3)
    harness.fetch(0, "gone")(10, 0)
    harness.client.xtrim(harness.layout.keys[0].stream, maxlen=0, approximate=False)
    fetch = harness.fetch(0, "here", claim_idle=0)
    assert fetch(10, 0) == []
    assert fetch.lost == 3


def test_reading_again_after_an_outage_is_no_delivery(harness):
    """A recovering consumer reads its pending entries without adding to their deliveries, unless asked to add."""
    held = append(harness, 3)
    fetch = harness.fetch(0)
    fetch(10, 0)
    for _ in range(5):
        fetch.recover()
        entries = fetch(10, 0)
        assert ids(entries) == held
        assert [entry.deliveries for entry in entries] == [1, 1, 1]
    fetch.recover(as_delivery=True)
    assert [entry.deliveries for entry in fetch(10, 0)] == [2, 2, 2]


@pytest.mark.parametrize("as_delivery", [True, False])
def test_own_entries_that_were_trimmed_away_are_lost(harness, as_delivery):
    """Own entries that were trimmed while they were pending are acknowledged as lost; the others are returned."""
    append(harness, 20)
    fetch = harness.fetch(0)
    fetch(100, 0)
    stream = harness.layout.keys[0].stream
    harness.client.xtrim(stream, maxlen=2, approximate=False)
    fetch.recover(as_delivery=as_delivery)
    left = ids(fetch(8, 0))
    assert len(left) == 2
    assert fetch.lost == 18
    assert harness.pending() == left


def test_a_decision_before_the_first_worker_is_no_lost_group(server):
    """If `decide` counts in a new partition before any worker has started, the first worker counts what follows."""
    with closing(connect(server.url)) as client:
        layout = Deployment.create_or_load(client, 1).layout
        client.hset(layout.meta, "rules", publish(Rules({"call": Metric(limit=5, per="day")})))
        with Producer(server.url) as producer:
            assert producer.decide("call", "k").accepted
            producer.emit("call", "k")
            producer.flush(10)
        fetch = Fetch(client, layout.keys[0], "first")
        fetch.ensure_group()
        assert len(fetch(10, 0)) == 2
