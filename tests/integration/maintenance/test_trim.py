"""Trimming removes old counted entries, and no entry that a group or a retention hold still needs."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from tallystream.client.server_time import server_time
from tallystream.storage.keys import GROUP
from tallystream_worker.maintenance.losses import settle_losses
from tallystream_worker.maintenance.trim import trim
from tallystream_worker.settings.settings import RetentionSettings
from tests.clock import steady
from tests.harness import Harness

NOTHING_KEPT = RetentionSettings(age="1s")
OLD = 1_700_000_000_000


@pytest.fixture
def harness(server):
    """Yield a harness of one partition on an empty server."""
    with Harness(server.url, partitions=1) as harness:
        yield harness


def append(harness: Harness, entries: int, start: int = OLD) -> list[str]:
    """Append plain views a second apart; return their IDs."""
    stream = harness.layout.keys[0].stream
    with harness.client.pipeline(transaction=False) as pipeline:
        for number in range(entries):
            pipeline.xadd(stream, {"metric": "view", "subject": "a"}, id=f"{start + 1000 * number}-0")
        return [id_.decode() for id_ in pipeline.execute()]


def first(harness: Harness) -> str:
    """Return the ID of the oldest entry."""
    return harness.client.xrange(harness.layout.keys[0].stream, count=1)[0][0].decode()


def trim_all(harness: Harness, retention: RetentionSettings = NOTHING_KEPT, step: int = 2000) -> int:
    """Trim until no more entries are removed; return how many were."""
    removed = 0
    steady(harness.client, harness.layout.keys[0].sequences)
    while (done := trim(harness.client, harness.layout.keys[0], retention, step=step)).removed:
        assert done.removed <= step
        removed += done.removed
    return removed


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(None, id="first pass"),
        pytest.param((20 * 86_400, -86_400), id="set back"),
        pytest.param((-86_400, -9 * 86_400), id="set ahead"),
    ],
)
def test_a_clock_that_has_just_stepped_removes_nothing(harness, stored):
    """In the first pass, and after the clock has stepped, it may be ahead: for an hour, nothing is too old."""
    append(harness, 1000)
    harness.drain()
    keys, now = harness.layout.keys[0], server_time(harness.client)
    if stored is not None:
        last, leap = (now + 1000 * seconds for seconds in stored)
        harness.client.hset(keys.sequences, "!clock", f"{last} {leap}")
    for _ in range(2):
        assert trim(harness.client, keys, NOTHING_KEPT).removed == 0
    last, leap = map(int, harness.client.hget(keys.sequences, "!clock").split())
    assert now <= leap <= last
    harness.client.hset(keys.sequences, "!clock", f"{last} {leap - 3_600_001}")
    assert trim(harness.client, keys, NOTHING_KEPT).removed > 0


def test_old_entries_go_in_steps(harness):
    """Old counted entries are removed, a bounded number in each call, and the ledger still balances."""
    append(harness, 1000)
    harness.drain()
    assert trim_all(harness, step=200) >= 800
    assert harness.client.xlen(harness.layout.keys[0].stream) <= 200
    assert settle_losses(harness.client, harness.layout.keys[0]) is None
    assert (harness.ledger()["counted"], harness.ledger().get("trimmed", 0)) == (1000, 0)


def test_what_is_young_stays(harness):
    """Entries younger than the age are kept, and all entries if the age is `forever`."""
    append(harness, 500)
    harness.drain()
    assert trim_all(harness, RetentionSettings(age="36500d")) == 0
    assert trim_all(harness, RetentionSettings(age="forever")) == 0


@pytest.mark.parametrize("what", ["unread", "pending", "another group", "another group's pending", "hold"])
def test_what_somebody_needs_stays(harness, what):
    """Entries that are unread or pending in any group, or after a retention hold, are kept at any age and size."""
    keys = harness.layout.keys[0]
    ids = append(harness, 1000)
    if what == "unread":
        harness.consumer().run_once()
        needed = ids[8]
    elif what == "pending":
        harness.fetch(0, "slow")(300, 0)
        harness.client.xack(keys.stream, GROUP, *ids[:250])
        needed = ids[250]
    else:
        harness.drain()
        needed = ids[400]
        if what == "hold":
            harness.client.hset(f"{keys.prefix}holds", "snapshot", ids[399])
        elif what == "another group":
            harness.client.xgroup_create(keys.stream, "archive", ids[399])
        else:
            harness.client.xgroup_create(keys.stream, "archive", ids[399])
            harness.client.xreadgroup("archive", "a", {keys.stream: ">"}, count=500)
    for retention in (NOTHING_KEPT, RetentionSettings(age="forever", bytes=1, backlog_bytes=0)):
        trim_all(harness, retention)
    assert first(harness) <= needed
    assert harness.client.xrange(keys.stream, needed, needed)
    done = trim(harness.client, keys, NOTHING_KEPT)
    assert done.holder == {"hold": "snapshot"}.get(what, "group archive" if "another" in what else f"group {GROUP}")


def test_without_its_group_nothing_goes(harness):
    """If the counting group is gone, it is not known which entries were counted, and none is removed."""
    keys = harness.layout.keys[0]
    append(harness, 500)
    harness.drain()
    harness.client.xgroup_create(keys.stream, "archive", "$")
    harness.client.xgroup_destroy(keys.stream, GROUP)
    assert trim_all(harness) == 0
    assert harness.client.xlen(keys.stream) == 500


def test_a_stream_is_cut_to_its_bytes(harness):
    """If a stream exceeds its bytes, the oldest counted entries are removed, and no more than necessary."""
    append(harness, 5000)
    harness.drain()
    keys = harness.layout.keys[0]
    size = harness.client.memory_usage(keys.stream)
    wanted = size // 2
    trim_all(harness, RetentionSettings(age="forever", bytes=wanted))
    assert 2000 < harness.client.xlen(keys.stream) < 3000


def test_the_limit_of_the_stream_is_published(harness):
    """The limit of entries is computed from their measured size and published; without a bound there is no limit."""
    keys = harness.layout.keys[0]
    append(harness, 2000)
    size = harness.client.memory_usage(keys.stream)
    retention = RetentionSettings(age="forever", bytes=size, backlog_bytes=2 * size)
    done = trim(harness.client, keys, retention)
    assert 3000 < done.limit < 5000
    assert int(harness.client.hget(keys.sequences, "!limit")) == done.limit
    assert not done.nearly_full
    full = trim(harness.client, keys, RetentionSettings(age="forever", bytes=size // 2, backlog_bytes=size // 2))
    assert full.nearly_full
    assert harness.client.xlen(keys.stream) == 2000, "a backlog is never deleted"
    trim(harness.client, keys, RetentionSettings(age="forever", backlog_bytes=0))
    assert harness.client.hget(keys.sequences, "!limit") is None


def test_a_hold_that_is_no_stream_id_is_an_error(harness):
    """A retention hold that is not a stream ID is an error that names it, and no entry is removed."""
    append(harness, 500)
    harness.drain()
    keys = harness.layout.keys[0]
    harness.client.hset(f"{keys.prefix}holds", "snapshot", "yesterday")
    with pytest.raises(ResponseError, match="field snapshot is not a stream ID"):
        trim(harness.client, keys, NOTHING_KEPT)
    assert harness.client.xlen(keys.stream) == 500
