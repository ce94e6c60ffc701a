"""Retention: what is counted and old goes, and nothing that anybody still needs."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from tallystream.storage.keys import GROUP
from tallystream_worker.maintenance.losses import settle_losses
from tallystream_worker.maintenance.trim import trim
from tallystream_worker.settings.settings import RetentionSettings
from tests.harness import Rig

NOTHING_KEPT = RetentionSettings(age="1s")
OLD = 1_700_000_000_000


@pytest.fixture
def rig(server):
    """The parts, wired to an empty server, with one partition."""
    with Rig(server.url, partitions=1) as rig:
        yield rig


def append(rig: Rig, entries: int, start: int = OLD) -> list[str]:
    """Append plain views a second apart; return their IDs."""
    stream = rig.layout.keys[0].stream
    with rig.client.pipeline(transaction=False) as pipeline:
        for number in range(entries):
            pipeline.xadd(stream, {"metric": "view", "subject": "a"}, id=f"{start + 1000 * number}-0")
        return [id_.decode() for id_ in pipeline.execute()]


def first(rig: Rig) -> str:
    """Return the oldest entry's ID."""
    return rig.client.xrange(rig.layout.keys[0].stream, count=1)[0][0].decode()


def trim_all(rig: Rig, retention: RetentionSettings = NOTHING_KEPT, step: int = 2000) -> int:
    """Trim until nothing more goes."""
    removed = 0
    while (done := trim(rig.client, rig.layout.keys[0], retention, step=step)).removed:
        assert done.removed <= step
        removed += done.removed
    return removed


def test_old_entries_go_in_steps(rig):
    """Counted entries beyond their age go, a bounded number in each call, whole nodes at a time; the books balance."""
    append(rig, 1000)
    rig.drain()
    assert trim_all(rig, step=200) >= 800
    assert rig.client.xlen(rig.layout.keys[0].stream) <= 200
    assert settle_losses(rig.client, rig.layout.keys[0]) is None
    assert (rig.ledger()["counted"], rig.ledger().get("trimmed", 0)) == (1000, 0)


def test_what_is_young_stays(rig):
    """Nothing goes before its age, and for ever is for ever."""
    append(rig, 500)
    rig.drain()
    assert trim_all(rig, RetentionSettings(age="36500d")) == 0
    assert trim_all(rig, RetentionSettings(age="forever")) == 0


@pytest.mark.parametrize("what", ["unread", "pending", "another group", "another group's pending", "hold"])
def test_what_somebody_needs_stays(rig, what):
    """Whatever is unread or pending in any group, or lies above a hold, stays, however old and however large."""
    keys = rig.layout.keys[0]
    ids = append(rig, 1000)
    if what == "unread":
        rig.consumer().run_once()
        needed = ids[8]
    elif what == "pending":
        rig.fetch(0, "slow")(300, 0)
        rig.client.xack(keys.stream, GROUP, *ids[:250])
        needed = ids[250]
    else:
        rig.drain()
        needed = ids[400]
        if what == "hold":
            rig.client.hset(f"{keys.prefix}holds", "snapshot", ids[399])
        elif what == "another group":
            rig.client.xgroup_create(keys.stream, "archive", ids[399])
        else:
            rig.client.xgroup_create(keys.stream, "archive", ids[399])
            rig.client.xreadgroup("archive", "a", {keys.stream: ">"}, count=500)
    for retention in (NOTHING_KEPT, RetentionSettings(age="forever", bytes=1, backlog_bytes=0)):
        trim_all(rig, retention)
    assert first(rig) <= needed
    assert rig.client.xrange(keys.stream, needed, needed)
    done = trim(rig.client, keys, NOTHING_KEPT)
    assert done.holder == {"hold": "snapshot"}.get(what, "group archive" if "another" in what else f"group {GROUP}")


def test_without_its_group_nothing_goes(rig):
    """Where the counting group is gone nobody knows what was counted, and nothing is trimmed."""
    keys = rig.layout.keys[0]
    append(rig, 500)
    rig.drain()
    rig.client.xgroup_create(keys.stream, "archive", "$")
    rig.client.xgroup_destroy(keys.stream, GROUP)
    assert trim_all(rig) == 0
    assert rig.client.xlen(keys.stream) == 500


def test_a_stream_is_cut_to_its_bytes(rig):
    """Beyond its bytes the oldest counted entries go, and no more than need to."""
    append(rig, 5000)
    rig.drain()
    keys = rig.layout.keys[0]
    size = rig.client.memory_usage(keys.stream)
    wanted = size // 2
    trim_all(rig, RetentionSettings(age="forever", bytes=wanted))
    assert 2000 < rig.client.xlen(keys.stream) < 3000


def test_the_limit_of_the_stream_is_published(rig):
    """The most entries that the stream may have follow from their measured size; without a bound there is no limit."""
    keys = rig.layout.keys[0]
    append(rig, 2000)
    size = rig.client.memory_usage(keys.stream)
    retention = RetentionSettings(age="forever", bytes=size, backlog_bytes=2 * size)
    done = trim(rig.client, keys, retention)
    assert 3000 < done.limit < 5000
    assert int(rig.client.hget(keys.sequences, "!limit")) == done.limit
    assert not done.nearly_full
    full = trim(rig.client, keys, RetentionSettings(age="forever", bytes=size // 2, backlog_bytes=size // 2))
    assert full.nearly_full
    assert rig.client.xlen(keys.stream) == 2000, "a backlog is never deleted"
    trim(rig.client, keys, RetentionSettings(age="forever", backlog_bytes=0))
    assert rig.client.hget(keys.sequences, "!limit") is None


def test_a_hold_that_is_no_stream_id_is_an_error(rig):
    """A hold that cannot be read stops the trimming, with its name: to guess could delete what somebody needs."""
    append(rig, 500)
    rig.drain()
    keys = rig.layout.keys[0]
    rig.client.hset(f"{keys.prefix}holds", "snapshot", "yesterday")
    with pytest.raises(ResponseError, match="field snapshot is not a stream ID"):
        trim(rig.client, keys, NOTHING_KEPT)
    assert rig.client.xlen(keys.stream) == 500
