"""Dead letters can be listed, retried and dropped: a retry counts them once, and the ledger always balances."""

from __future__ import annotations

import threading
from contextlib import closing

import msgspec
import pytest

from tallystream.deployment import Deployment
from tallystream.errors import CodecError, StreamError
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream.rules.retraction import Retraction
from tallystream.wire.codec import Group, Payload, Single, encode
from tallystream_worker.counting.fold_result import OVERFLOW
from tallystream_worker.dead_letters.retry import Retried, retry
from tallystream_worker.dead_letters.store import drop, find, letters, shorten
from tallystream_worker.rebuild.rebuild import Rebuild, propose
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.harness import Harness

DECLARED = Rules({"view": Metric(ids=None, windows=("day",)), "clap": Metric(ids=None), "vote": Metric(once="forever")})


@pytest.fixture
def harness(server):
    """Yield a harness of one partition and one metric on an empty server."""
    with Harness(server.url, partitions=1, metrics=["view"]) as harness:
        yield harness


def dead_letters(harness: Harness) -> list:
    """Return the dead letters of the partition."""
    return list(letters(harness.client, harness.layout, 0))


def unaccounted(harness: Harness) -> int | None:
    """Return the events that the ledger does not account for; `None` if it is not known."""
    with closing(Totals(harness.url)) as totals:
        return totals.run(query_ledger(harness.layout)).unaccounted


def test_a_retry_counts_once(harness):
    """When its metric is declared, a retry counts a dead letter, packed or plain; a second retry returns `None`."""
    stream = harness.layout.keys[0].stream
    harness.client.xadd(stream, {"metric": "clap", "subject": "a", "amount": "3"})
    packed = encode(Payload([Group("clap", 1, ["b"], {"c": 4}, {}), Group("view", 1, ["b"], {}, {})], []))
    harness.client.xadd(stream, {"v": 1, "n": 6, "b": packed})
    harness.drain()
    found = dead_letters(harness)
    assert [(letter.events, letter.attempts) for letter in found] == [(1, 1), (5, 1)]
    assert [retry(harness.client, harness.layout, DECLARED, letter) for letter in found] == [
        Retried(1, 0),
        Retried(5, 0),
    ]
    assert [retry(harness.client, harness.layout, DECLARED, letter) for letter in found] == [None, None]
    assert harness.totals() == {("clap", "a"): 3, ("clap", "b"): 1, ("clap", "c"): 4, ("view", "b"): 1}
    ledger = harness.ledger()
    assert (ledger["appended"], ledger["counted"], ledger.get("dead", 0)) == (7, 7, 0)
    assert (dead_letters(harness), unaccounted(harness)) == ([], 0)


def test_a_retry_during_a_rebuild_leaves_both_ledgers_balanced(harness):
    """A retry does not enter its plain entry a second time, so the ledger of a generation being built balances too."""
    keys = harness.layout.keys[0]
    harness.client.xadd(keys.stream, {"metric": "clap", "subject": "a"})
    harness.drain()
    harness.client.hset(harness.layout.meta, "rules", publish(DECLARED))
    plain = harness.client.hget(keys.ledger, "plain")
    deployment = Deployment.load(harness.client)
    generation = propose(harness.client, deployment, DECLARED)
    with Rebuild(Settings(RedisSettings(harness.url)), Deployment.load(harness.client), generation) as run:
        run.begin()
        (letter,) = dead_letters(harness)
        assert retry(harness.client, harness.layout, DECLARED, letter) == Retried(1, 0)
        assert harness.client.hget(keys.ledger, "plain") == plain
        run.catch_up()
        run.switch()
    with closing(Totals(harness.url)) as totals:
        ledger = totals.run(query_ledger(Deployment.load(harness.client).layout))
    assert (ledger.appended, ledger.counted, ledger.unaccounted) == (1, 1, 0)


def test_retries_at_a_time_count_once(harness):
    """If four threads retry the same dead letters at the same time, each is counted once."""
    for number in range(50):
        harness.client.xadd(harness.layout.keys[0].stream, {"metric": "clap", "subject": f"s{number % 5}"})
    harness.drain()
    found = dead_letters(harness)
    became = []

    def retry_all(client) -> None:
        became.extend(retry(client, harness.layout, DECLARED, letter) for letter in found)

    threads = [threading.Thread(target=retry_all, args=[harness.connect()]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert became.count(Retried(1, 0)) == 50
    assert harness.totals() == {("clap", f"s{number}"): 10 for number in range(5)}
    assert unaccounted(harness) == 0


def test_a_retry_that_fails_is_dead_lettered_again(harness):
    """Events that still cannot be counted are dead-lettered again with one attempt more; the ledger is unchanged."""
    harness.client.xadd(harness.layout.keys[0].stream, {"metric": "clap", "subject": "a"})
    harness.drain()
    before = harness.ledger()
    for attempts in (2, 3, 4):
        (letter,) = dead_letters(harness)
        assert retry(harness.client, harness.layout, harness.rules, letter) == Retried(0, 1)
        (again,) = dead_letters(harness)
        assert (again.attempts, again.source, again.reason) == (attempts, letter.source, letter.reason)
    assert (harness.ledger(), unaccounted(harness)) == (before, 0)


@pytest.mark.parametrize("source", ["xyz", "", b"\xff!"])
def test_a_damaged_source_is_named(harness, source):
    """If another client has changed the source of a dead letter, no command counts or drops it; the error names it."""
    harness.client.xadd(harness.layout.keys[0].stream, {"metric": "clap", "subject": "a"})
    harness.drain()
    ((id_, fields),) = harness.client.xrange(harness.layout.keys[0].dead)
    harness.client.delete(harness.layout.keys[0].dead)
    harness.client.xadd(harness.layout.keys[0].dead, {**fields, b"source": source}, id=id_)
    (letter,) = dead_letters(harness)
    with pytest.raises(CodecError, match=f"of the dead letter {letter.id} is not a stream ID.*XDEL"):
        retry(harness.client, harness.layout, DECLARED, letter)
    with pytest.raises(CodecError, match=f"of the dead letter {letter.id} is not a stream ID.*XDEL"):
        drop(harness.client, harness.layout.keys[0], [letter])
    assert dead_letters(harness) == [letter]


def test_a_retry_into_an_overflow_is_dead_lettered_again(harness):
    """A retried event whose total cannot take it is dead-lettered again; the other events are counted."""
    packed = encode(Payload([], [Single("clap", subject, 7, 1, None, "x") for subject in ("full", "free")]))
    harness.client.xadd(harness.layout.keys[0].stream, {"v": 1, "n": 2, "b": packed})
    harness.drain()
    harness.client.set(harness.layout.keys[0].total("clap", "full"), 2**53 - 3)
    found = dead_letters(harness)
    assert sum(letter.events for letter in found) == 2
    for letter in found:
        retry(harness.client, harness.layout, DECLARED, letter)
    assert harness.client.get(harness.layout.keys[0].total("clap", "free")) == b"7"
    assert [(letter.reason, letter.events) for letter in dead_letters(harness)] == [(OVERFLOW, 1)]
    assert (harness.ledger()["counted"], harness.ledger()["dead"], unaccounted(harness)) == (1, 1, 0)


def test_a_retry_is_as_of_the_time_the_entry_came(harness):
    """A retry counts with the time of the original entry: an event without a time gets it, and a late one is late."""
    stream = harness.layout.keys[0].stream
    harness.client.xadd(stream, {"metric": "clap", "subject": "a"}, id=f"{1_700_000_000_000}-0")
    harness.client.xadd(stream, {"metric": "clap", "subject": "b", "at": "1699000000"}, id=f"{1_700_000_000_000}-1")
    harness.drain()
    rules = Rules(
        {"clap": Metric(ids=None, windows=("day",), accept_late="2d", late="aside", retention={"day": "forever"})}
    )
    retried = [retry(harness.client, harness.layout, rules, letter) for letter in dead_letters(harness)]
    assert retried == [Retried(1, 0)] * 2
    assert harness.totals() == {("clap", "a"): 1}
    assert harness.client.hgetall(harness.layout.keys[0].window("day", "clap", "20231114")) == {b"a": b"1"} or (
        [key for key in harness.client.scan_iter("*day:clap:*") if b"2023" in key]
    )
    assert (harness.ledger()["late"], harness.ledger().get("dead", 0), unaccounted(harness)) == (1, 0, 0)


def test_a_retry_leaves_out_retracted_events(harness):
    """A retry counts the events of a dead letter that are not retracted; the others are `retracted` in the ledger."""
    keys = harness.layout.keys[0]
    packed = encode(Payload([Group("clap", 1, ["a", "b"], {"c": 3}, {})], [Single("clap", "a", 7, 1, "u1", None)]))
    harness.client.xadd(keys.stream, {"v": 1, "n": 6, "b": packed})
    harness.client.xadd(keys.stream, {"metric": "clap", "subject": "a"})
    harness.drain()
    last = harness.client.xinfo_stream(keys.stream)["last-generated-id"].decode()
    retraction = Retraction({keys.stream: last}, metric="clap", subject="a")
    rules = msgspec.structs.replace(DECLARED, retracted=(retraction,))
    retried = [retry(harness.client, harness.layout, rules, letter) for letter in dead_letters(harness)]
    assert sum(each.counted for each in retried) == 7
    assert sum(each.dead for each in retried) == 0
    assert harness.totals() == {("clap", "b"): 1, ("clap", "c"): 3}
    ledger = harness.ledger()
    assert (ledger["appended"], ledger["counted"], ledger["retracted"], ledger.get("dead", 0)) == (7, 4, 3, 0)
    assert (dead_letters(harness), unaccounted(harness)) == ([], 0)


def test_a_replay_under_todays_rules_agrees_with_the_retry(harness):
    """A retry appends nothing to the stream: counting the whole stream again gives the same totals."""
    for number in range(20):
        metric = "view" if number % 2 else "clap"
        harness.client.xadd(harness.layout.keys[0].stream, {"metric": metric, "subject": f"s{number % 3}"})
    harness.drain()
    for letter in dead_letters(harness):
        retry(harness.client, harness.layout, DECLARED, letter)
    totals, entries = harness.totals(), harness.client.xrange(harness.layout.keys[0].stream)
    harness.client.flushall()
    with Harness(harness.url, partitions=1, rules=DECLARED) as again:
        for id_, fields in entries:
            again.client.xadd(again.layout.keys[0].stream, fields, id=id_)
        again.drain()
        assert again.totals() == totals


def test_a_retry_into_counters_of_the_past_is_refused(harness):
    """If a rebuild has made another generation live, a retry raises an error and counts nothing."""
    harness.client.xadd(harness.layout.keys[0].stream, {"metric": "clap", "subject": "a"})
    harness.drain()
    harness.client.set(harness.layout.keys[0].live, 2)
    with pytest.raises(StreamError, match="rebuilt meanwhile"):
        retry(harness.client, harness.layout, DECLARED, dead_letters(harness)[0])
    assert (len(dead_letters(harness)), harness.totals()) == (1, {})


def test_dropped_entries_stay_in_the_ledger(harness):
    """A dropped dead letter is removed for good; its events stay in `dead` and are added once to `dropped`."""
    keys = harness.layout.keys[0]
    harness.client.xadd(keys.stream, {"v": "99", "n": "3", "b": "x"})
    harness.drain()
    (letter,) = dead_letters(harness)
    assert drop(harness.client, keys, [letter]) == (1, 3)
    assert drop(harness.client, keys, [letter]) == (0, 0)
    assert find(harness.client, harness.layout, 0, letter.id) is None
    assert (harness.ledger()["dead"], harness.ledger()["dropped"], unaccounted(harness)) == (3, 3, 0)


def test_the_dead_stream_is_bounded(harness):
    """If the dead stream exceeds its bytes, the oldest dead letters are dropped; otherwise none is."""
    keys = harness.layout.keys[0]
    for number in range(500):
        harness.client.xadd(keys.stream, {"metric": "clap", "subject": f"{number}" * 50})
    harness.drain()
    size = harness.client.memory_usage(keys.dead)
    assert shorten(harness.client, keys, 2 * size)[1:] == (0, 0)
    newest = dead_letters(harness)[-1]
    while (done := shorten(harness.client, keys, size // 2))[0] > 1:
        assert done[1] == done[2] <= 100
    left = dead_letters(harness)
    assert 0 < len(left) < 400
    assert left[-1] == newest
    assert harness.ledger()["dropped"] == 500 - len(left)
    assert (harness.ledger()["dead"], unaccounted(harness)) == (500, 0)
