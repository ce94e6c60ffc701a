"""The reaper removes the names of silent consumers and producers, and loses no entry."""

from __future__ import annotations

import pytest

from tallystream.storage.keys import GROUP
from tallystream_worker.maintenance.reaper import reap_consumers, reap_producers
from tests.harness import Harness


@pytest.fixture
def harness(server):
    """Yield a harness of one partition on an empty server."""
    with Harness(server.url, partitions=1) as harness:
        yield harness


def names(harness: Harness) -> set[str]:
    """Return the names of the group's consumers."""
    return {each["name"].decode() for each in harness.client.xinfo_consumers(harness.layout.keys[0].stream, GROUP)}


def test_a_gone_consumer_leaves_everything_to_its_heir(harness):
    """The entries of silent consumers are claimed in steps, without a delivery; then the consumers are removed."""
    keys = harness.layout.keys[0]
    for _ in range(25):
        harness.client.xadd(keys.stream, {"metric": "view", "subject": "a"})
    harness.fetch(0, "gone")(100, 0)
    harness.fetch(0, "idle")(100, 0)
    steps = [reap_consumers(harness.client, keys, "heir", silence=0, step=10) for _ in range(3)]
    assert max(steps)[0] >= 1
    assert sum(taken for _, taken in steps) == 25
    assert names(harness) == {"heir"}
    rows = harness.client.xpending_range(keys.stream, GROUP, "-", "+", 100)
    assert {(row["consumer"], row["times_delivered"]) for row in rows} == {(b"heir", 1)}
    harness.drain("other", claim_idle=0)
    assert harness.totals() == {("view", "a"): 25}


def test_a_consumer_with_signs_of_life_stays(harness):
    """A consumer that has read recently is not removed, and keeps its pending entries."""
    keys = harness.layout.keys[0]
    harness.client.xadd(keys.stream, {"metric": "view", "subject": "a"})
    harness.fetch(0, "alive")(100, 0)
    assert reap_consumers(harness.client, keys, "heir", silence=60) == (0, 0)
    assert "alive" in names(harness)


def test_silent_producers_are_forgotten(harness):
    """Old sequences of randomly drawn names are removed; those of chosen names, and the stream's limit, are kept."""
    keys = harness.layout.keys[0]
    seconds, _ = harness.client.time()
    old, new = f"3 {(seconds - 100) * 1000}-0", f"3 {seconds * 1000}-0"
    stay = {"b" * 16: new, "file:abc": old, "spool-0123456789": old, "!limit": "100", "c" * 15: old}
    harness.client.hset(keys.sequences, mapping={f"{n:016x}": old for n in range(2000)} | stay)
    cursor, forgotten = "0", 0
    while True:
        cursor, some = reap_producers(harness.client, keys, cursor, silence=50, step=100)
        forgotten += some
        if cursor == "0":
            break
    assert forgotten == 2000
    assert {name.decode() for name in harness.client.hkeys(keys.sequences)} == set(stay)
