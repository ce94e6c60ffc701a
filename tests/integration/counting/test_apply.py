"""Applying a batch changes everything that belongs to it in one call, or nothing."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ResponseError

from tallystream.errors import KeyLost
from tallystream.storage.keys import GROUP, partition_of
from tallystream.wire.packer import EntryBuilder
from tallystream_worker.counting.apply import _APPLY, Applied, Stale, TotalsRejected, apply
from tallystream_worker.counting.fold import Fold
from tallystream_worker.counting.fold_result import OVERFLOW
from tests.harness import Harness
from tests.proxy import Proxy

MAX = 2**53 - 1


@pytest.fixture
def harness(server):
    """Yield a harness of one partition on an empty server."""
    with Harness(server.url, partitions=1) as harness:
        yield harness


def append(harness: Harness, *events: tuple[str, str, int]) -> str:
    """Append one entry of events, each a metric, a subject and an amount; return its ID."""
    pack = EntryBuilder()
    for metric, subject, amount in events:
        pack.add(metric, subject, amount, 60.0, None, None)
    fields = {"v": 1, "n": pack.events, "b": pack.build()}
    return harness.client.xadd(harness.layout.keys[0].stream, fields).decode()


def in_hand(harness: Harness):
    """Fetch and fold all entries; return the batch, not yet applied."""
    batch, rest = Fold(harness.layout, 0, harness.rules)(harness.fetch(0)(1000, 0))
    assert not rest
    return batch


def state(harness: Harness) -> tuple:
    """Return everything that an apply may change: totals, ledger, pending entries, number of dead letters."""
    keys = harness.layout.keys[0]
    return harness.totals(), harness.ledger(), harness.pending(), harness.client.xlen(keys.dead)


def test_a_batch_is_acknowledged_and_counted(harness):
    """Applying a batch acknowledges its entries, adds its sums and changes the ledger."""
    append(harness, ("view", "a", 1), ("view", "a", 1), ("like", "b", -3))
    assert apply(harness.client, harness.layout.keys[0], in_hand(harness)) == Applied()
    assert harness.totals() == {("view", "a"): 2, ("like", "b"): -3}
    assert harness.pending() == []
    assert harness.ledger() == {
        "appended": 3,
        "counted": 3,
        "counted@view": 2,
        "counted@like": 1,
        "total@view": 2,
        "total@like": -3,
    }


def test_a_second_apply_is_stale(harness):
    """Applying a batch a second time changes nothing."""
    append(harness, ("view", "a", 1))
    batch = in_hand(harness)
    apply(harness.client, harness.layout.keys[0], batch)
    before = state(harness)
    assert apply(harness.client, harness.layout.keys[0], batch) == Stale(frozenset())
    assert state(harness) == before


def test_a_partly_settled_batch_is_stale_as_a_whole(harness):
    """If some entries are acknowledged already, nothing is changed, and the reply names those still pending."""
    ids = [append(harness, ("view", "a", 1)) for _ in range(5)]
    batch = in_hand(harness)
    harness.client.xack(harness.layout.keys[0].stream, GROUP, ids[0], ids[3])
    before = state(harness)
    assert apply(harness.client, harness.layout.keys[0], batch) == Stale(frozenset(ids) - {ids[0], ids[3]})
    assert state(harness) == before


def test_the_gate_is_not_a_total(harness):
    """A batch with one acknowledged entry is stale, even if the number of pending entries equals its size."""
    first, _ = append(harness, ("view", "a", 1)), append(harness, ("view", "a", 1))
    batch = in_hand(harness)
    apply(harness.client, harness.layout.keys[0], Fold(harness.layout, 0, harness.rules)(harness.fetch(0)(1, 0))[0])
    append(harness, ("view", "b", 1))
    harness.fetch(0, "other")(10, 0)
    assert len(harness.pending()) == len(batch.ids) == 2
    assert first not in harness.pending()
    assert isinstance(apply(harness.client, harness.layout.keys[0], batch), Stale)
    assert harness.totals() == {("view", "a"): 1}


def test_a_consumer_goes_on_with_what_is_still_pending(harness):
    """If another worker has counted some entries of a batch, the worker counts the others once."""
    for _ in range(5):
        append(harness, ("view", "a", 1))
    entries = harness.fetch(0)(100, 0)
    batches = [entries[1:3], entries, entries]
    outcomes = []
    consumer = harness.consumer(
        fetch=lambda _count, _block: batches.pop(0) if batches else [], subscribers=[outcomes.append]
    )
    assert [consumer.run_once() for _ in range(4)] == [2, 3, 0, 0]
    assert harness.totals() == {("view", "a"): 5}
    assert [outcome.stale for outcome in outcomes] == [0, 1]


def test_a_lost_reply_counts_once(harness):
    """If the server applies a batch and the reply is lost, the next pass counts nothing."""
    append(harness, ("view", "a", 1), ("view", "b", 5))
    with Proxy(harness.url) as proxy:
        consumer = harness.consumer(client=harness.connect(proxy.url))
        harness.connect(proxy.url).script_load(_APPLY.text)
        proxy.lose_reply_to(_APPLY.sha.encode())
        with pytest.raises(RedisConnectionError):
            consumer.run_once()
        assert proxy.lost.wait(5)
        consumer.fetch.recover()
        assert consumer.run_once() == 0
    assert harness.totals() == {("view", "a"): 1, ("view", "b"): 5}
    assert harness.waiting() == 0
    assert harness.ledger()["counted"] == harness.ledger()["appended"] == 2


def test_a_lost_request_counts_once(harness):
    """If the connection breaks before the server receives a batch, the next pass counts it."""
    append(harness, ("view", "a", 1))
    with Proxy(harness.url) as proxy:
        consumer = harness.consumer(client=harness.connect(proxy.url))
        proxy.lose_request(_APPLY.sha.encode())
        with pytest.raises(RedisConnectionError):
            consumer.run_once()
        consumer.fetch.recover()
        assert consumer.run_once() == 1
    assert harness.totals() == {("view", "a"): 1}


def test_a_server_that_lost_its_scripts(harness):
    """After SCRIPT FLUSH the script is loaded again, and the batch is counted once."""
    append(harness, ("view", "a", 1))
    batch = in_hand(harness)
    harness.client.script_flush()
    assert apply(harness.client, harness.layout.keys[0], batch) == Applied()
    assert harness.totals() == {("view", "a"): 1}


@pytest.mark.parametrize(("stored", "amount"), [(MAX - 2, 7), (MAX, 1), (-MAX, -1), (MAX, MAX), (-MAX + 2, -7)])
def test_an_overflow_is_dead_lettered_alone(harness, stored, amount):
    """A counter that would exceed the bounds keeps its value; its event is dead-lettered, the others are counted."""
    key = harness.layout.keys[0].total("view", "a")
    harness.client.set(key, stored)
    append(harness, ("view", "a", amount), ("view", "b", 1), ("like", "a", 1))
    append(harness, ("view", "c", 1))
    harness.drain()
    assert harness.client.get(key) == str(stored).encode()
    assert harness.totals() == {("view", "a"): stored, ("view", "b"): 1, ("view", "c"): 1, ("like", "a"): 1}
    assert [(fields[b"reason"], fields[b"events"]) for fields in harness.dead()] == [(OVERFLOW.encode(), b"1")]
    assert {name: harness.ledger()[name] for name in ("appended", "counted", "dead", "dead@view")} == {
        "appended": 4,
        "counted": 3,
        "dead": 1,
        "dead@view": 1,
    }


def test_the_bounds_can_be_reached(harness):
    """A total of exactly +-(2^53 - 1) is stored."""
    harness.client.set(harness.layout.keys[0].total("view", "a"), MAX - 7)
    harness.client.set(harness.layout.keys[0].total("view", "b"), -MAX + 7)
    append(harness, ("view", "a", 7), ("view", "b", -7))
    harness.drain()
    assert harness.totals() == {("view", "a"): MAX, ("view", "b"): -MAX}
    assert harness.dead() == []


@pytest.mark.parametrize("value", ["3.5", "abc", "", "nan", "inf", "1e400", str(2**53), "\x00"])
def test_a_key_that_holds_no_number_is_left_alone(harness, value):
    """A counter's key whose value is not a valid total is not overwritten; the event is dead-lettered."""
    key = harness.layout.keys[0].total("view", "a")
    harness.client.set(key, value)
    append(harness, ("view", "a", 1), ("view", "b", 1))
    harness.drain()
    assert harness.client.get(key) == value.encode()
    assert harness.client.get(harness.layout.keys[0].total("view", "b")) == b"1"
    assert harness.ledger()["dead"] == 1


@pytest.mark.parametrize("kind", ["hash", "list", "stream"])
def test_a_key_of_another_type_is_left_alone(harness, kind):
    """A counter's key of another type is not overwritten; its event is dead-lettered, and the others are counted."""
    key = harness.layout.keys[0].total("view", "a")
    if kind == "hash":
        harness.client.hset(key, "x", "y")
    elif kind == "list":
        harness.client.rpush(key, "x")
    else:
        harness.client.xadd(key, {"x": "y"})
    append(harness, ("view", "a", 1), ("view", "b", 1), ("view", "c", 1))
    harness.drain()
    assert harness.client.type(key) == kind.encode()
    assert harness.client.get(harness.layout.keys[0].total("view", "b")) == b"1"
    assert (harness.ledger()["counted"], harness.ledger()["dead"], harness.waiting()) == (2, 1, 0)


def test_a_refusal_names_the_counters(harness):
    """If counters cannot take their deltas, the reply names them, and nothing is changed."""
    harness.client.set(harness.layout.keys[0].total("view", "b"), "x")
    harness.client.hset(harness.layout.keys[0].total("like", "a"), "x", "y")
    append(harness, ("view", "a", 1), ("view", "b", 1), ("like", "a", 1), ("like", "b", 1))
    batch = in_hand(harness)
    keys = harness.layout.keys[0]
    assert apply(harness.client, keys, batch) == TotalsRejected(
        {("view", "b"): OVERFLOW, ("like", "a"): f"a key has the type hash: {keys.total('like', 'a')}"}
    )
    assert harness.pending() == batch.ids
    assert harness.client.get(harness.layout.keys[0].total("view", "a")) is None


@pytest.mark.parametrize("lost", ["group", "stream"])
def test_a_missing_group_is_an_error(harness, lost):
    """If the group or the stream is gone, applying raises NOGROUP, and nothing is changed."""
    append(harness, ("view", "a", 1))
    batch = in_hand(harness)
    keys = harness.layout.keys[0]
    if lost == "group":
        harness.client.xgroup_destroy(keys.stream, GROUP)
    else:
        harness.client.delete(keys.stream)
    with pytest.raises(ResponseError, match=r"^NOGROUP"):
        apply(harness.client, keys, batch)
    assert (harness.totals(), harness.ledger()) == ({}, {})


def test_a_full_server_leaves_nothing_half_done(harness):
    """If the server has no memory left, it rejects the whole call; the batch is counted once when there is memory."""
    append(harness, ("view", "a", 1), ("undeclared", "a", 1))
    batch = in_hand(harness)
    before = state(harness)
    harness.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            apply(harness.client, harness.layout.keys[0], batch)
        assert state(harness) == before
    finally:
        harness.client.config_set("maxmemory", 0)
    assert apply(harness.client, harness.layout.keys[0], batch) == Applied()
    assert harness.totals() == {("view", "a"): 1}


@pytest.mark.parametrize("key", ["dead", "ledger"])
def test_a_ledger_of_another_type_is_an_error_before_any_write(harness, key):
    """If the ledger or the dead stream has another type, the call fails before its first write."""
    append(harness, ("view", "a", 1), ("undeclared", "a", 1))
    batch = in_hand(harness)
    harness.client.set(getattr(harness.layout.keys[0], key), "x")
    with pytest.raises(KeyLost if key == "ledger" else ResponseError, match=r":ledger has the type string|WRONGTYPE"):
        apply(harness.client, harness.layout.keys[0], batch)
    assert (harness.totals(), harness.pending()) == ({}, batch.ids)


def test_a_ledger_that_holds_no_number_is_an_error_before_any_write(harness):
    """If a ledger field is not a number, the error names it, and nothing is changed."""
    append(harness, ("view", "a", 1))
    batch = in_hand(harness)
    keys = harness.layout.keys[0]
    harness.client.hset(keys.ledger, "counted", "many")
    with pytest.raises(ResponseError, match="field counted is not a whole number"):
        apply(harness.client, keys, batch)
    assert (harness.totals(), harness.pending()) == ({}, batch.ids)
    harness.client.hdel(keys.ledger, "counted")
    assert apply(harness.client, keys, batch) == Applied()


@pytest.mark.parametrize("total", [10**6, 10**15, 10**15 + 1, 9 * 10**15, MAX, -(10**15), -MAX, 999_999, -(10**6), 0])
def test_large_totals_are_exact(harness, total):
    """Totals and the sum of a metric are stored exactly, however large they are."""
    append(harness, ("view", "a", total))
    harness.drain()
    assert harness.client.get(harness.layout.keys[0].total("view", "a")) == str(total).encode()
    append(harness, ("view", "a", -1 if total > 0 else 1))
    harness.drain()
    after = total - 1 if total > 0 else total + 1
    assert harness.client.get(harness.layout.keys[0].total("view", "a")) == str(after).encode()
    assert harness.ledger()["total@view"] == after


def test_the_sum_over_a_metric_may_leave_64_bits(harness):
    """Thousands of totals at their bound are counted, although the sum of the metric exceeds 64 bits."""
    for first in range(0, 3000, 1000):
        append(harness, *(("view", f"s{number}", MAX) for number in range(first, first + 1000)))
    harness.drain()
    assert set(harness.totals().values()) == {MAX}
    assert (len(harness.totals()), harness.ledger()["counted"], harness.waiting()) == (3000, 3000, 0)


@pytest.mark.parametrize("subjects", [3000, 9000])
def test_thousands_of_counters_in_one_call(harness, subjects):
    """One call changes thousands of old and new counters, also more than Lua can unpack at once."""
    for _ in range(2):
        for first in range(0, subjects, 1000):
            append(harness, *(("view", f"s{number}", 1) for number in range(first, first + 1000)))
    outcomes = []
    harness.drain(max_keys=100_000, subscribers=[outcomes.append])
    append(harness, *(("view", f"s{number}", 2) for number in range(0, subjects, 2)))
    harness.drain(max_keys=100_000)
    assert max(outcome.keys for outcome in outcomes) == subjects
    assert harness.totals() == {("view", f"s{n}"): 2 if n % 2 else 4 for n in range(subjects)}


def test_a_call_is_bounded_in_counters(harness):
    """A backlog of many counters is applied in calls of about `max_keys` counters each."""
    for number in range(0, 2000, 10):
        append(harness, *(("view", f"s{i}", 1) for i in range(number, number + 10)))
    outcomes = []
    harness.drain(max_keys=100, subscribers=[outcomes.append])
    assert max(outcome.keys for outcome in outcomes) <= 109
    assert sum(outcome.events for outcome in outcomes) == len(harness.totals()) == 2000


def test_what_is_dead_lettered_says_why(harness):
    """A dead letter contains source, reason, number of events, attempts, and the unchanged fields of the entry."""
    keys = harness.layout.keys[0]
    source = harness.client.xadd(keys.stream, {"v": "99", "n": "3", "b": b"\x00\xff"})
    harness.drain()
    (dead,) = harness.dead()
    assert dead[b"source"] == source
    assert b"version" in dead[b"reason"]
    assert (dead[b"events"], dead[b"attempts"]) == (b"3", b"1")
    assert (dead[b"e.v"], dead[b"e.n"], dead[b"e.b"]) == (b"99", b"3", b"\x00\xff")
    assert harness.ledger() == {"appended": 3, "dead": 3}


def test_a_poison_entry_is_dead_lettered_after_enough_tries(harness):
    """An entry that exceeds `max_deliveries` is dead-lettered, and the entries after it are counted."""
    append(harness, ("view", "a", 1))
    for _ in range(3):
        assert len(harness.fetch(0)(10, 0)) == 1
    append(harness, ("view", "b", 1))
    harness.drain(max_deliveries=3)
    assert harness.totals() == {("view", "b"): 1}
    assert [fields[b"reason"] for fields in harness.dead()] == [b"delivered 3 times without success"]


def test_a_subject_in_the_wrong_stream(harness):
    """An event in another partition's stream is dead-lettered with the name of the right stream."""
    harness.client.flushall()
    with Harness(harness.url, partitions=4) as four:
        wrong = (partition_of("article:1", 4) + 1) % 4
        four.client.xadd(four.layout.keys[wrong].stream, {"metric": "view", "subject": "article:1"})
        four.drain()
        (dead,) = four.dead(wrong)
        assert four.layout.keys_of("article:1").stream in dead[b"reason"].decode()
        assert four.totals() == {}
