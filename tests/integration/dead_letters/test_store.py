"""Dead letters: looked at, counted once after all, or dropped; the books balance throughout."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from tallystream.errors import StreamError
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.codec import Group, Payload, Single, encode
from tallystream_worker.counting.fold import OVERFLOW
from tallystream_worker.dead_letters.store import Retried, drop, find, letters, retry, shorten
from tests.harness import Rig

DECLARED = Rules({"view": Metric(ids=None, windows=("day",)), "clap": Metric(ids=None), "vote": Metric(once="forever")})


@pytest.fixture
def rig(server):
    """The parts, wired to an empty server, with one partition and one metric."""
    with Rig(server.url, partitions=1, metrics=["view"]) as rig:
        yield rig


def parked(rig: Rig) -> list:
    """Return what is parked."""
    return list(letters(rig.client, rig.layout, 0))


def unaccounted(rig: Rig) -> int | None:
    """Return what the books say."""
    with closing(Totals(rig.url)) as totals:
        return totals.run(query_ledger(rig.layout)).unaccounted


def test_a_retry_counts_once(rig):
    """After its metric is declared a parked entry is counted, packed or plain; a second retry finds nothing."""
    stream = rig.layout.keys[0].stream
    rig.client.xadd(stream, {"metric": "clap", "subject": "a", "amount": "3"})
    packed = encode(Payload([Group("clap", 1, ["b"], {"c": 4}, {}), Group("view", 1, ["b"], {}, {})], []))
    rig.client.xadd(stream, {"v": 1, "n": 6, "b": packed})
    rig.drain()
    found = parked(rig)
    assert [(letter.events, letter.attempts) for letter in found] == [(1, 1), (5, 1)]
    assert [retry(rig.client, rig.layout, DECLARED, letter) for letter in found] == [Retried(1, 0), Retried(5, 0)]
    assert [retry(rig.client, rig.layout, DECLARED, letter) for letter in found] == [None, None]
    assert rig.totals() == {("clap", "a"): 3, ("clap", "b"): 1, ("clap", "c"): 4, ("view", "b"): 1}
    ledger = rig.ledger()
    assert (ledger["appended"], ledger["counted"], ledger.get("dead", 0)) == (7, 7, 0)
    assert (parked(rig), unaccounted(rig)) == ([], 0)


def test_retries_at_a_time_count_once(rig):
    """However many retry the same entries at once, each is counted once."""
    for number in range(50):
        rig.client.xadd(rig.layout.keys[0].stream, {"metric": "clap", "subject": f"s{number % 5}"})
    rig.drain()
    found = parked(rig)
    became = []

    def retry_all(client) -> None:
        became.extend(retry(client, rig.layout, DECLARED, letter) for letter in found)

    threads = [threading.Thread(target=retry_all, args=[rig.connect()]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert became.count(Retried(1, 0)) == 50
    assert rig.totals() == {("clap", f"s{number}"): 10 for number in range(5)}
    assert unaccounted(rig) == 0


def test_a_retry_that_fails_is_parked_again(rig):
    """What still cannot be counted stays parked with one attempt more, and nothing else moves."""
    rig.client.xadd(rig.layout.keys[0].stream, {"metric": "clap", "subject": "a"})
    rig.drain()
    before = rig.ledger()
    for attempts in (2, 3, 4):
        (letter,) = parked(rig)
        assert retry(rig.client, rig.layout, rig.rules, letter) == Retried(0, 1)
        (again,) = parked(rig)
        assert (again.attempts, again.source, again.reason) == (attempts, letter.source, letter.reason)
    assert (rig.ledger(), unaccounted(rig)) == (before, 0)


def test_a_retry_into_an_overflow_is_parked_again(rig):
    """A counter that cannot take the event parks it again, and the events beside it are counted."""
    packed = encode(Payload([], [Single("clap", subject, 7, 1, None, "x") for subject in ("full", "free")]))
    rig.client.xadd(rig.layout.keys[0].stream, {"v": 1, "n": 2, "b": packed})
    rig.drain()
    rig.client.set(rig.layout.keys[0].total("clap", "full"), 2**53 - 3)
    found = parked(rig)
    assert sum(letter.events for letter in found) == 2
    for letter in found:
        retry(rig.client, rig.layout, DECLARED, letter)
    assert rig.client.get(rig.layout.keys[0].total("clap", "free")) == b"7"
    assert [(letter.reason, letter.events) for letter in parked(rig)] == [(OVERFLOW, 1)]
    assert (rig.ledger()["counted"], rig.ledger()["dead"], unaccounted(rig)) == (1, 1, 0)


def test_a_retry_is_as_of_the_time_the_entry_came(rig):
    """A plain entry without a time goes to the bucket of its source, and what was late then is late now."""
    stream = rig.layout.keys[0].stream
    rig.client.xadd(stream, {"metric": "clap", "subject": "a"}, id=f"{1_700_000_000_000}-0")
    rig.client.xadd(stream, {"metric": "clap", "subject": "b", "at": "1699000000"}, id=f"{1_700_000_000_000}-1")
    rig.drain()
    rules = Rules(
        {"clap": Metric(ids=None, windows=("day",), accept_late="2d", late="aside", retention={"day": "forever"})}
    )
    assert [retry(rig.client, rig.layout, rules, letter) for letter in parked(rig)] == [Retried(1, 0)] * 2
    assert rig.totals() == {("clap", "a"): 1}
    assert rig.client.hgetall(rig.layout.keys[0].window("day", "clap", "20231114")) == {b"a": b"1"} or (
        [key for key in rig.client.scan_iter("*day:clap:*") if b"2023" in key]
    )
    assert (rig.ledger()["late"], rig.ledger().get("dead", 0), unaccounted(rig)) == (1, 0, 0)


def test_a_replay_under_todays_rules_agrees_with_the_retry(rig):
    """Retried events are not in the log twice: counting the whole log anew gives the totals that the retry led to."""
    for number in range(20):
        metric = "view" if number % 2 else "clap"
        rig.client.xadd(rig.layout.keys[0].stream, {"metric": metric, "subject": f"s{number % 3}"})
    rig.drain()
    for letter in parked(rig):
        retry(rig.client, rig.layout, DECLARED, letter)
    totals, entries = rig.totals(), rig.client.xrange(rig.layout.keys[0].stream)
    rig.client.flushall()
    with Rig(rig.url, partitions=1, rules=DECLARED) as again:
        for id_, fields in entries:
            again.client.xadd(again.layout.keys[0].stream, fields, id=id_)
        again.drain()
        assert again.totals() == totals


def test_a_retry_into_counters_of_the_past_is_refused(rig):
    """Where a rebuild has made another generation live, nothing is counted into the one that nobody reads."""
    rig.client.xadd(rig.layout.keys[0].stream, {"metric": "clap", "subject": "a"})
    rig.drain()
    rig.client.set(rig.layout.keys[0].live, 2)
    with pytest.raises(StreamError, match="rebuilt meanwhile"):
        retry(rig.client, rig.layout, DECLARED, parked(rig)[0])
    assert (len(parked(rig)), rig.totals()) == (1, {})


def test_dropped_entries_stay_in_the_books(rig):
    """Dropping removes an entry for good, once; its events stay dead, and the books say that they were dropped."""
    keys = rig.layout.keys[0]
    rig.client.xadd(keys.stream, {"v": "99", "n": "3", "b": "x"})
    rig.drain()
    (letter,) = parked(rig)
    assert drop(rig.client, keys, [letter.id]) == (1, 3)
    assert drop(rig.client, keys, [letter.id]) == (0, 0)
    assert find(rig.client, rig.layout, 0, letter.id) is None
    assert (rig.ledger()["dead"], rig.ledger()["dropped"], unaccounted(rig)) == (3, 3, 0)


def test_the_dead_stream_is_bounded(rig):
    """Beyond its bytes the oldest go, counted event by event; within them nothing does."""
    keys = rig.layout.keys[0]
    for number in range(500):
        rig.client.xadd(keys.stream, {"metric": "clap", "subject": f"{number}" * 50})
    rig.drain()
    size = rig.client.memory_usage(keys.dead)
    assert shorten(rig.client, keys, 2 * size)[1:] == (0, 0)
    newest = parked(rig)[-1]
    while (done := shorten(rig.client, keys, size // 2))[0] > 1:
        assert done[1] == done[2] <= 100
    left = parked(rig)
    assert 0 < len(left) < 400
    assert left[-1] == newest
    assert rig.ledger()["dropped"] == 500 - len(left)
    assert (rig.ledger()["dead"], unaccounted(rig)) == (500, 0)
