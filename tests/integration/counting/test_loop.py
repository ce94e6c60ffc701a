"""The counting loop survives failures: an outage dead-letters no entry, and a poison entry affects no other entry."""

from __future__ import annotations

import pytest
from redis.exceptions import OutOfMemoryError, ResponseError

from tallystream.client.durability import DurabilityCheck
from tallystream.errors import ConsumerGroupMissing, Unconfirmed
from tallystream_worker.counting.fold import Fold
from tallystream_worker.counting.quarantine import is_entry_error
from tests.harness import Harness


@pytest.fixture
def harness(server):
    """Yield a harness of one partition on an empty server."""
    with Harness(server.url, partitions=1) as harness:
        yield harness


def append(harness: Harness, *subjects: str, metric: str = "view") -> list[str]:
    """Append a plain event for each subject; return the IDs."""
    stream = harness.layout.keys[0].stream
    return [harness.client.xadd(stream, {"metric": metric, "subject": subject}).decode() for subject in subjects]


def poison(harness: Harness) -> str:
    """Append an entry that makes the script itself fail; return its ID."""
    harness.client.hset(harness.layout.keys[0].limit("vote", "total"), "p", "no number")
    return append(harness, "p", metric="vote")[0]


@pytest.fixture
def limited(server):
    """Yield a harness of one partition whose metric `vote` has a limit; `poison` breaks its key."""
    from tallystream.rules.metrics import Metric, Rules  # noqa: PLC0415

    rules = Rules({"view": Metric(ids=None), "vote": Metric(ids=None, limit=5, per="total", accept_late="1d")})
    with Harness(server.url, partitions=1, rules=rules) as harness:
        yield harness


def test_a_poison_entry_leaves_its_neighbours_alone(limited):
    """An entry that makes the script fail stays pending; all other entries are counted, also later ones."""
    append(limited, *(f"a{n}" for n in range(20)))
    bad = poison(limited)
    append(limited, *(f"b{n}" for n in range(20)))
    refused = []
    consumer = limited.consumer(on_refused=lambda entry, error: refused.append((entry.id, str(error))))
    while consumer.run_once():
        pass
    assert len(limited.totals()) == 40
    assert limited.pending() == [bad]
    assert [id_ for id_, _ in refused] == [bad]
    assert "arithmetic on" in refused[0][1]
    append(limited, "later")
    assert consumer.run_once() == 1


def test_a_poison_entry_does_not_hold_up_what_comes_after_an_outage(limited):
    """After a recovery a worker tries its own pending entries once, and then counts new ones."""
    bad = poison(limited)
    consumer = limited.consumer()
    consumer.run_once()
    for as_delivery in (False, True):
        consumer.fetch.recover(as_delivery=as_delivery)
        append(limited, "after")
        for _ in range(3):
            consumer.run_once()
        assert limited.pending() == [bad]
    assert limited.totals() == {("view", "after"): 2}


@pytest.mark.parametrize("run", [7, 9, 30])
def test_a_run_of_poison_entries_dead_letters_none_of_the_good_ones(limited, run):
    """The entries after a run of poison entries are counted, and only the poison entries are dead-lettered."""
    append(limited, *(f"before{n}" for n in range(300)))  # enough for large reads before the first poison entry
    bad = [poison(limited) for _ in range(run)]
    append(limited, *(f"after{n}" for n in range(100)))
    consumer = limited.consumer(claim_idle=0, max_deliveries=10)
    for _ in range(200):
        try:
            consumer.run_once()
        except ResponseError:
            consumer.fetch.recover(as_delivery=True)
        if not limited.pending() and limited.waiting() == 0:
            break
    assert len(limited.totals()) == 400
    assert sorted(dead[b"source"].decode() for dead in limited.dead()) == sorted(bad)


def test_a_stale_batch_is_tried_as_if_for_the_first_time(harness):
    """After a stale batch its pending entries are folded without the exclusions that the other entries caused."""
    stream, most = harness.layout.keys[0].stream, 2**53 - 1
    for amount in (most, -most, 5):
        harness.client.xadd(stream, {"metric": "view", "subject": "s", "amount": str(amount)})
    first, second, third = harness.fetch(0, "reader")(10, 0)
    for batch in ([first], [second], [first, third]):
        reads = iter([batch])
        harness.consumer(0, fetch=lambda *_, reads=reads: next(reads)).run_once()
    assert harness.totals() == {("view", "s"): 5}
    assert harness.dead() == []


def test_a_poison_entry_alone_is_dead_lettered(limited):
    """A poison entry is dead-lettered after `max_deliveries`, no other entry is, and the ledger balances."""
    append(limited, "a", "b")
    bad = poison(limited)
    append(limited, "c")
    for _ in range(5):
        limited.drain(claim_idle=0, max_deliveries=3)
    assert set(limited.totals()) == {("view", "a"), ("view", "b"), ("view", "c")}
    assert [dead[b"source"] for dead in limited.dead()] == [bad.encode()]
    ledger = limited.ledger()
    assert (ledger["appended"], ledger["counted"], ledger["dead"], limited.waiting()) == (4, 3, 1, 0)


def test_many_that_fail_are_no_poison(harness):
    """If eight entries fail one after another, the error is raised; when the fault is mended, all are counted."""
    append(harness, *(f"a{n}" for n in range(20)))
    ledger = harness.layout.keys[0].ledger
    harness.client.hset(ledger, "counted", "many")
    consumer = harness.consumer()
    with pytest.raises(ResponseError, match="counted is not a whole number"):
        consumer.run_once()
    assert len(harness.pending()) == 8
    harness.client.hdel(ledger, "counted")
    consumer.fetch.recover()
    while consumer.run_once():
        pass
    assert (len(harness.totals()), harness.ledger().get("dead", 0)) == (20, 0)


def test_an_outage_is_no_delivery(harness):
    """Entries of a batch that failed often because the server had no memory are counted later, not dead-lettered."""
    append(harness, *(f"a{n}" for n in range(20)))
    consumer = harness.consumer(max_deliveries=3)
    harness.client.config_set("maxmemory", 1)
    try:
        for _ in range(10):
            with pytest.raises(OutOfMemoryError):
                consumer.run_once()
            consumer.fetch.recover()
    finally:
        harness.client.config_set("maxmemory", 0)
    while consumer.run_once():
        pass
    assert (len(harness.totals()), harness.dead(), harness.waiting()) == (20, [], 0)


def test_a_bug_in_folding_stands_alone(harness, monkeypatch):
    """An entry that makes the fold raise an unexpected error is left pending, and the others are counted."""
    append(harness, "a", "b", "c")
    real = Fold.__call__

    def fragile(fold, entries, excluded):
        if any(entry.fields[b"subject"] == b"b" for entry in entries):
            raise RecursionError("too deep")
        return real(fold, entries, excluded)

    monkeypatch.setattr(Fold, "__call__", fragile)
    harness.consumer().run_once()
    assert set(harness.totals()) == {("view", "a"), ("view", "c")}
    assert len(harness.pending()) == 1


@pytest.mark.parametrize("entries", [1, 20])
def test_a_subscriber_that_raises_changes_nothing(harness, entries):
    """If a subscriber raises, the batch is counted once, no entry is refused, and other subscribers are called."""
    ids = append(harness, *(f"a{n}" for n in range(entries)))
    problems, refused, results = [], [], []

    def fragile(_result):
        raise KeyError("a metric")

    consumer = harness.consumer(
        subscribers=[fragile, results.append],
        on_refused=lambda entry, error: refused.append((entry.id, error)),
        on_subscriber_error=problems.append,
        max_keys=6,
    )
    settled = []
    while count := consumer.run_once():
        settled.append(count)
    assert sum(settled) == len(ids) == len(harness.totals()) == sum(result.entries for result in results)
    assert refused == []
    assert [type(problem) for problem in problems] == [KeyError] * len(results)
    assert (harness.pending(), harness.dead(), harness.waiting()) == ([], [], 0)
    assert [result.stale for result in results] == [0] * len(results)  # no batch was sent twice
    ledger = harness.ledger()
    assert (ledger["appended"], ledger["counted"]) == (entries, entries)


@pytest.mark.parametrize("entries", [1, 5])
def test_a_confirmation_that_fails_is_no_poison(fresh_server, entries):
    """If the server rejects WAITAOF after the script, the entries are counted and published, and none is refused."""
    server = fresh_server(extra=["--appendonly", "no"])
    refused, results = [], []
    with Harness(server.url, partitions=1) as harness:
        append(harness, *(f"a{n}" for n in range(entries)))
        consumer = harness.consumer(
            subscribers=[results.append],
            durability=DurabilityCheck("fsync"),
            on_refused=lambda entry, error: refused.append((entry.id, error)),
        )
        with pytest.raises(Unconfirmed, match="was counted, and the server could not confirm it: "):
            consumer.run_once()
        assert (len(harness.totals()), harness.waiting(), refused) == (entries, 0, [])
        assert [result.entries for result in results] == [entries]


def test_a_lost_group_has_an_error_of_its_own(harness):
    """If the group is gone when a batch is applied, the loop raises `ConsumerGroupMissing` and refuses no entry."""
    append(harness, "a", "b")
    keys, refused = harness.layout.keys[0], []
    entries = harness.fetch(0)(10, 0)
    consumer = harness.consumer(
        fetch=lambda _count, _block: entries, on_refused=lambda entry, error: refused.append((entry.id, error))
    )
    harness.client.xgroup_destroy(keys.stream, keys.group)
    with pytest.raises(ConsumerGroupMissing, match=f"{keys.stream}: consumer group 'tally' is missing"):
        consumer.run_once()
    assert (harness.totals(), refused) == ({}, [])


@pytest.mark.parametrize(
    ("error", "about_entries"),
    [
        (ResponseError("WRONGTYPE Operation against a key"), True),
        (ResponseError("ERR value is not an integer"), True),
        (KeyError("b"), True),
        (ResponseError("NOGROUP No such key"), False),
        (ResponseError("MISCONF Redis is configured to save"), False),
        (OutOfMemoryError("command not allowed"), False),
        (ConnectionResetError(), True),
    ],
)
def test_what_an_error_is_about(error, about_entries):
    """An error reply about the state of the server is not caused by an entry; any other error may be."""
    assert is_entry_error(error) is about_entries
