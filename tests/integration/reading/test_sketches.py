"""Estimates in bounded memory differ from exact counts by at most their stated error."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest

from tallystream.errors import EventError
from tallystream.producing.producer import Producer
from tallystream.reading.actor_rules import HLL_ERROR, query_uniques
from tallystream.reading.leaderboards import query_top
from tallystream.reading.sketches import DELTA
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream.storage.keys import partition_of
from tallystream.wire.window import DAY
from tests.harness import Harness
from tests.oracle_reads import estimate_error
from tests.waiting import until

QUOTA = 50
"""Exact subjects of `few` in each partition."""

PARTITIONS = 2
INVENTED = 200_000
RULES = Rules(
    {
        "path": Metric(exact=False, top=10),
        "visit": Metric(unique="day"),
        "order": Metric(seen="bloom"),
        "few": Metric(max_subjects=QUOTA, windows=("day",), top=5, unique="day"),
    }
)


@pytest.fixture
def harness(server):
    """Return a harness on an empty server, with the rules of this module."""
    with Harness(server.url, rules=RULES, partitions=PARTITIONS) as wired:
        yield wired


@pytest.fixture
def totals(harness):
    """Return a reader of the same server."""
    with Totals(harness.url) as reader:
        yield reader


def count(harness, events):
    """Emit events, each `(metric, subject, amount, at, actor)`, and count them."""
    with Producer(harness.url, linger=0.05, entry_events=5000) as producer:
        for metric, subject, amount, at, actor in events:
            producer.emit(metric, subject, amount, at=at, actor=actor)
    harness.drain()


def zipf(subjects, events, seed=7):
    """Return how often each subject is drawn in `events` draws with a Zipf distribution."""
    draw = random.Random(seed)
    names = [f"/page/{number}" for number in range(subjects)]
    weights = [1 / (rank + 1) ** 1.05 for rank in range(subjects)]
    return Counter(draw.choices(names, weights, k=events))


def invented(number):
    """Yield one event for each of `number` subjects that do not occur otherwise."""
    now = time.time()
    return (("few", f"made-up:{n:012d}", 1, now, f"user-{n % 3}") for n in range(number))


def ledger_of(harness, partition, field):
    """Return one field of a partition's ledger."""
    return int(harness.client.hget(harness.layout.keys[partition].ledger, field) or 0)


def test_a_sketch_keeps_its_bound(harness, totals):
    """No estimate is too low, and at most the share `DELTA` of them is too high by more than the stated bound."""
    exact = zipf(20_000, 200_000)
    now = time.time()
    count(harness, (("path", subject, amount, now, None) for subject, amount in exact.items()))
    for partition in range(PARTITIONS):
        mine = {name: amount for name, amount in exact.items() if partition_of(name, PARTITIONS) == partition}
        assert ledger_of(harness, partition, "sketched@path") == sum(mine.values())
        reading = totals.read((subject, "path") for subject in mine)
        bound = estimate_error([sum(mine.values())])
        assert reading.error() == bound
        excess = [reading.values[subject, "path"] - amount for subject, amount in mine.items()]
        assert min(excess) >= 0
        assert sum(each > bound for each in excess) <= DELTA * len(excess)
    assert harness.ledger()["total@path"] == 200_000


def test_the_top_of_a_sketch(harness, totals):
    """The leaderboard of a sketch has the largest subjects, and each value is within the stated error."""
    exact = zipf(5_000, 100_000)
    now = time.time()
    count(harness, (("path", subject, amount, now, None) for subject, amount in exact.items()))
    ranking = totals.run(query_top(harness.layout, RULES, "path", 10, now=now))
    assert ranking.error > 0
    assert all(exact[subject] <= value <= exact[subject] + ranking.error for subject, value in ranking.places)
    tenth = exact.most_common(10)[-1][1]
    assert all(exact[subject] >= tenth - ranking.error for subject, _ in ranking.places)
    assert len(ranking.places) == 10


def test_nothing_is_taken_from_a_sketch(harness, totals):
    """The producer rejects a negative amount for a sketch, and the worker dead-letters it if another client sent it."""
    with Producer(harness.url) as producer:
        producer.emit("path", "/a")
        producer.flush()
        with pytest.raises(EventError, match="must not be negative: path is kept in a sketch"):
            producer.emit("path", "/a", -1)
    harness.client.xadd(harness.layout.keys_of("/a").stream, {"metric": "path", "subject": "/a", "amount": "-1"})
    harness.drain()
    assert harness.ledger()["dead@path"] == 1
    assert totals.get("/a", "path").value == 1


@pytest.mark.parametrize("actors", [10, 1_000, 50_000])
def test_uniques_keep_their_error(harness, totals, actors):
    """The estimate of different actors is within three standard errors, however many events each actor has."""
    now = time.time()
    twice = [*range(actors), *range(0, actors, 3)]
    count(harness, (("visit", "article:1", 1, now, f"user-{actor}") for actor in twice))
    uniques = totals.run(query_uniques(harness.layout, RULES, "article:1", "visit", "day", now))
    assert uniques.error == HLL_ERROR
    assert abs(uniques.value - actors) <= 3 * HLL_ERROR * actors
    assert totals.get("article:1", "visit").value == len(twice)


def test_uniques_over_days(harness, totals):
    """Over several days an actor is counted once, and days outside the range are not counted."""
    now = time.time() // DAY * DAY - DAY / 2  # noon of yesterday: far from where days meet
    days = [now - ago * DAY for ago in range(4)]
    # Each day has 3,000 actors, and the next day has 2,000 of them again.
    visits = [(at, f"user-{1000 * ago + n}") for ago, at in enumerate(days) for n in range(3000)]
    count(harness, (("visit", "article:1", 1, at, actor) for at, actor in visits))

    def ask(over):
        return totals.run(query_uniques(harness.layout, RULES, "article:1", "visit", over, now)).value

    assert abs(ask("day") - 3000) <= 3 * HLL_ERROR * 3000
    assert abs(ask("30d") - 6000) <= 3 * HLL_ERROR * 6000
    # A duration of one day that ends now begins in the day before, and both days are read as whole buckets.
    assert abs(ask("1d") - 4000) <= 3 * HLL_ERROR * 4000


def test_subjects_beyond_the_quota_go_to_the_sketch(harness, totals):
    """Subjects up to the quota stay exact; the others are estimates with a stated error."""
    known = [f"article:{number}" for number in range(40)]
    now = time.time()
    count(harness, [("few", subject, 5, now, None) for subject in known])
    count(harness, invented(1000))
    count(harness, [("few", subject, 2, now, None) for subject in (*known, "made-up:000000000999")])
    reading = totals.read((subject, "few") for subject in known)
    assert set(reading.values.values()) == {7}
    assert reading.error() == 0
    for partition in range(PARTITIONS):
        assert ledger_of(harness, partition, "subjects@few") == QUOTA
    exact = len(harness.totals())
    assert exact == QUOTA * PARTITIONS
    ledger = harness.ledger()
    assert ledger["sketched@few"] == 1000 - (exact - len(known)) + 2
    assert ledger["total@few"] == 40 * 7 + 1002
    reading = totals.read([("made-up:000000000999", "few")])
    assert 3 <= reading.values["made-up:000000000999", "few"] <= 3 + reading.error()
    assert reading.error() > 0
    with Producer(harness.url) as producer:
        outcome = producer.decide("few", "made-up:000000000998")
    assert (outcome.accepted, outcome.total) == (True, None)


def test_a_lost_number_of_subjects_makes_no_total_wrong(harness, totals):
    """Without the number of exact subjects, a subject in the sketch stays there, and its total is not too low."""
    subjects = [f"made-up:{n:012d}" for n in range(400)]
    count(harness, invented(400))
    exact = harness.totals()
    for keys in harness.layout.keys:
        assert harness.client.hdel(keys.ledger, "subjects@few") == 1
    count(harness, invented(400))
    with Producer(harness.url) as producer:
        assert producer.decide("few", subjects[-1]).accepted
    assert harness.totals() == dict.fromkeys(exact, 2)
    reading = totals.read((subject, "few") for subject in subjects)
    sketched = [subject for subject in subjects if ("few", subject) not in exact]
    assert len(sketched) == 400 - QUOTA * PARTITIONS
    assert min(reading.values.values()) == 2
    assert all(reading.error((subject, "few")) > 0 for subject in sketched)


def test_a_lost_sum_of_a_sketch_is_stated(harness, totals):
    """Without the sum of the amounts in a sketch, an estimate is not 0, and its error is not too small."""
    count(harness, invented(400))
    exact = harness.totals()
    subject = next(f"made-up:{n:012d}" for n in range(400) if ("few", f"made-up:{n:012d}") not in exact)
    for after in (0, 1):
        for keys in harness.layout.keys:
            harness.client.hdel(keys.ledger, "sketched@few")
        count(harness, [("few", "another", 1, time.time(), None)] * after)
        reading = totals.read([(subject, "few")])
        assert reading.values[subject, "few"] >= 1
        assert reading.error() >= reading.values[subject, "few"] - after


def test_the_error_of_a_spread_metric_is_that_of_all_its_sketches(server):
    """If a metric was in sketches before it was spread, an estimate adds up all of them, and so does its error."""
    before, after = Rules({"few": Metric(max_subjects=1)}), Rules({"few": Metric(spread=True)})
    with Harness(server.url, rules=before, partitions=PARTITIONS) as harness, Totals(server.url) as totals:
        now = time.time()
        names = [f"/page/{number}" for number in range(100_000)]
        large = [name for name in names if partition_of(name, PARTITIONS) == 0]
        small = [name for name in names if partition_of(name, PARTITIONS) == 1][:200]
        count(harness, [("few", subject, 1000, now, None) for subject in large])
        count(harness, [("few", subject, 1, now, None) for subject in small])
        harness.client.hset(harness.layout.meta, "rules", publish(after))
        count(harness, [("few", "other", 1, now, None)])
        reading = totals.read((subject, "few") for subject in small)
        sketched = [ledger_of(harness, partition, "sketched@few") for partition in range(PARTITIONS)]
        bound = estimate_error(sketched)
        excess = [reading.values[subject, "few"] - 1 for subject in small]
        assert 0 <= min(excess) <= max(excess)
        assert sum(excess) > 0
        assert {reading.error((subject, "few")) for subject in small[1:]} == {bound}
        assert sum(each > bound for each in excess) <= DELTA * len(excess)


def test_the_error_of_a_bucket_covers_subjects_in_the_sketch(harness, totals):
    """A subject beyond the quota is in no bucket, and may have more in it than every subject that is listed."""
    now = time.time()
    count(harness, invented(QUOTA * PARTITIONS * 4))
    count(harness, [("few", "late:1", 50, now, None)])
    for window in ("day", "1d"):
        board = totals.top("few", window, n=5)
        assert "late:1" not in dict(board.places)
        assert board.places[-1][1] + board.error >= 50


def test_a_quota_bounds_the_memory(harness):
    """200,000 subjects beyond the quota add only a sketch, and no keys or fields."""
    count(harness, invented(1000))
    before = harness.client.info("memory")["used_memory"]
    streams = sum(harness.client.memory_usage(keys.stream, samples=0) for keys in harness.layout.keys)
    count(harness, invented(INVENTED))
    grown = harness.client.info("memory")["used_memory"] - before
    grown -= sum(harness.client.memory_usage(keys.stream, samples=0) for keys in harness.layout.keys) - streams
    assert grown < 50 * INVENTED  # a counter takes about 100 bytes
    assert len(harness.totals()) == QUOTA * PARTITIONS
    assert sum(
        harness.client.hlen(key) for keys in harness.layout.keys for key in harness.client.keys(f"{keys.prefix}day:*")
    ) == (QUOTA * PARTITIONS)
    assert sum(len(harness.client.keys(f"{keys.prefix}unique:*")) for keys in harness.layout.keys) == QUOTA * PARTITIONS
    assert harness.ledger()["counted"] == INVENTED + 1000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_million_invented_subjects(harness, server):
    """A million new subjects add counters up to the quota and a sketch, and the memory stays bounded.

    A cluster and Redis get a fifth of them: the scripts are the same, and a million take a minute of a core.
    """
    events = 1_000_000 if server.kind == "valkey" else 200_000
    before = harness.client.info("memory")["used_memory"]
    count(harness, invented(events))
    for keys in harness.layout.keys:
        harness.client.delete(keys.stream)
    until(lambda: harness.client.info("memory")["used_memory"] - before < 20 * 2**20, what="the streams to be freed")
    assert len(harness.totals()) == QUOTA * PARTITIONS
    assert sum(ledger_of(harness, n, "counted") for n in range(PARTITIONS)) == events
    sketched = sum(ledger_of(harness, n, "sketched@few") for n in range(PARTITIONS))
    assert sketched == events - QUOTA * PARTITIONS


@pytest.mark.slow
def test_a_bloom_filter_keeps_its_rate(harness):
    """A Bloom filter finds every repeated id, and takes at most 1 in 6,600 of 400,000 new ids for a duplicate."""
    new, copies = 400_000, 2_000
    subject = next(f"s{n}" for n in range(9) if partition_of(f"s{n}", PARTITIONS) == 0)
    with Producer(harness.url) as producer:
        for number in (*range(new), *range(copies)):
            producer.emit("order", subject, id=f"order-{number}")
    harness.drain()
    wrong = ledger_of(harness, 0, "duplicate@order") - copies
    assert 0 <= wrong <= new / 6_600
    assert harness.totals()["order", subject] == new - wrong
