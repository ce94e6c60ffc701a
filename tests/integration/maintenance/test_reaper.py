"""The reaper removes the names of silent consumers and producers, and loses no entry."""

from __future__ import annotations

import pytest

from tallystream.errors import KeyLost
from tallystream.storage.keys import GROUP
from tallystream_worker.maintenance.reaper import reap_consumers
from tests.harness import Harness
from tests.rewind import lose
from tests.silence import move_clock, pass_days, reap_all


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
    """The records of silent producers with randomly drawn names are removed; chosen names and recent ones are kept."""
    keys = harness.layout.keys[0]
    first = harness.client.xadd(keys.stream, {"metric": "view", "subject": "a"}, id="5-0")
    assert reap_all(harness.client, keys, silence=0) == 0
    old, same, new = "3 4-9", f"3 {first.decode()}", "3 5-1"
    stay = {"b" * 16: new, "d" * 16: same, "file:abc": old, f"spool:{'0' * 16}": old, "!limit": "100", "c" * 15: old}
    harness.client.hset(keys.sequences, mapping={f"{n:016x}": old for n in range(2000)} | stay)
    assert reap_all(harness.client, keys, silence=0, step=100) == 2000
    assert {name.decode() for name in harness.client.hkeys(keys.sequences) if not name.startswith(b"!")} == {
        name for name in stay if not name.startswith("!")
    }


def test_a_partition_that_has_lost_its_keys_stays_without_keys(harness):
    """A pass that was looking at a partition at the moment of the loss creates no key there."""
    keys = harness.layout.keys[0]
    lose(harness.client, keys.prefix)
    with pytest.raises(KeyLost):
        reap_all(harness.client, keys)
    assert [*harness.client.scan_iter(f"{keys.prefix}*")] == []


def appended(harness: Harness, *producers: str) -> None:
    """Give each producer a record that names a new entry of the stream."""
    keys = harness.layout.keys[0]
    for producer in producers:
        id_ = harness.client.xadd(keys.stream, {"metric": "view", "subject": "a"})
        harness.client.hset(keys.sequences, producer, f"1 {id_.decode()}")


def test_silence_is_measured_in_active_time(harness):
    """The record of a producer is removed after 30 days of passes, that of a spool after a year."""
    drawn, spool = "a" * 16, f"spool:{'a' * 16}"
    appended(harness, drawn, spool)
    sequences = harness.layout.keys[0].sequences
    assert pass_days(harness, 30) == 0
    assert harness.client.hexists(sequences, drawn)
    assert pass_days(harness, 3) == 1
    assert not harness.client.hexists(sequences, drawn)
    assert pass_days(harness, 332) == 0
    assert harness.client.hexists(sequences, spool)
    assert pass_days(harness, 14) == 1
    assert not harness.client.hexists(sequences, spool)


def test_the_marks_stay_few(harness):
    """However long a stream lives, the reaper's own fields stay below 4 KiB."""
    pass_days(harness, 500)
    sequences = harness.layout.keys[0].sequences
    own = {name: value for name, value in harness.client.hgetall(sequences).items() if name.startswith(b"!")}
    assert sum(len(name) + len(value) for name, value in own.items()) < 4096


@pytest.mark.parametrize("seconds", [31 * 86_400, 400 * 86_400, -31 * 86_400])
def test_a_clock_that_jumps_removes_no_record(harness, seconds):
    """A server's clock that jumps ahead or back makes no producer silent, nor does an outage of any length."""
    appended(harness, "a" * 16, f"spool:{'a' * 16}")
    keys = harness.layout.keys[0]
    for _ in range(3):
        move_clock(harness.client, keys, seconds)
        assert reap_all(harness.client, keys) == 0
        move_clock(harness.client, keys, -seconds)
        assert reap_all(harness.client, keys) == 0
    active, _ = harness.client.hget(keys.sequences, "!active").split()
    assert int(active) <= 6 * 600_000


def test_the_horizon_never_moves_back(harness):
    """If the stream was deleted, new producers begin at the horizon, and the gate accepts them."""
    keys = harness.layout.keys[0]
    harness.client.xadd(keys.stream, {"metric": "view", "subject": "a"}, id="9999999999999-0")
    reap_all(harness.client, keys, silence=0)
    harness.client.delete(keys.stream)
    reap_all(harness.client, keys, silence=0)
    assert harness.client.hget(keys.sequences, "!reaped") == b"9999999999999-0 9999999999999-0"


def test_a_deleted_horizon_is_written_again(harness):
    """Without the horizon, the next pass takes the oldest mark, which is later: records before it may be removed."""
    keys = harness.layout.keys[0]
    harness.client.hset(keys.sequences, "!active", "10 1")
    for kind in ("drawn", "spool"):
        harness.client.hset(keys.sequences, f"!marks:{kind}", "1 5-0 2 6-0")
    reap_all(harness.client, keys)
    assert harness.client.hget(keys.sequences, "!reaped").split()[0] == b"5-0"
    assert harness.client.hget(keys.sequences, "!reaped:spool").split()[0] == b"5-0"
