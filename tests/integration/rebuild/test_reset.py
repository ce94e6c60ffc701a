"""A reset sets totals and buckets to 0 at its place in the log, and the ledger still agrees."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tallystream.client.server_time import server_time
from tallystream.deployment import Deployment
from tallystream.errors import EventError, FlushTimeout, StreamError
from tallystream.producing.appender import Appender
from tallystream.producing.partition_queue import SealedEntry
from tallystream.producing.producer import Producer
from tallystream.reading.actor_rules import query_votes
from tallystream.reading.leaderboards import query_top
from tallystream.reading.ledger import query_ledger
from tallystream.reading.series import query_series
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules
from tallystream.rules.windows import bucket
from tallystream.wire.packer import EntryBuilder
from tallystream.wire.window import DAY, HOUR
from tallystream_worker.dead_letters.retry import retry
from tallystream_worker.dead_letters.store import letters
from tallystream_worker.rebuild import reset as reset_module
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.reset import reset
from tallystream_worker.repartition.migration import repartition
from tests.harness import Harness
from tests.integration.rebuild.test_rebuild import rebuilt, settings_for
from tests.waiting import until

RULES = Rules(
    {
        "view": Metric(windows=("hour", "day", "month"), top=5),
        "like": Metric(windows=("day",), floor=0),
        "vote": Metric(windows=("day",), once="forever", top=5),
        "daily": Metric(windows=("day",), once="day"),
        "soon": Metric(windows=("minute", "hour"), top=5),
        "busy": Metric(windows=("hour",), spread=True),
        "bare": Metric(ids=None, windows=("hour",)),
        "call": Metric(windows=("hour", "day"), limit=3, per="hour"),
        "path": Metric(exact=False),
        "quota": Metric(max_subjects=1, top=5, ids=None),
    }
)
SUBJECT, OTHER = "article:1", "article:2"
AGO = (0, 60, HOUR, 5 * HOUR, DAY, 3 * DAY, 40 * DAY)


@pytest.fixture
def harness(server):
    """Provide a harness on an empty server, with the rules of this module."""
    with Harness(server.url, rules=RULES, partitions=2) as wired:
        yield wired


@pytest.fixture
def totals(harness):
    """Provide a reader of the harness's counters."""
    with Totals(harness.url) as reader:
        yield reader


def count(harness, *events):
    """Emit `(metric, subject, amount, at, actor)` and count them."""
    with Producer(harness.url, linger=0.001) as producer:
        for metric, subject, amount, at, actor in events:
            producer.emit(metric, subject, amount, at=at, actor=actor)
    harness.drain()


def take_back(harness, subject, *metrics):
    """Count everything and reset a subject; return the totals before, by metric."""
    harness.drain()
    taken = reset(harness.client, Deployment.create_or_load(harness.client), subject, list(metrics))
    harness.drain()
    return taken


def window_values(harness, metric, subject):
    """Return the value of a subject in every bucket of a metric, by key."""
    keys = harness.layout.keys_of(subject)
    found = {}
    for window in RULES.metric[metric].windows:
        for key in harness.client.scan_iter(match=f"{keys.prefix}{window}:{metric}:*", count=1000):
            if (value := harness.client.hget(key, subject)) is not None:
                found[key.decode().removeprefix(keys.prefix)] = int(value)
    return found


def balanced(totals):
    """Return whether every appended event is accounted for, and none is dead-lettered."""
    books = totals.run(query_ledger(totals.deployment.layout))
    return books.unaccounted == 0 and books.dead == 0


def test_totals_and_windows_come_to_nothing(harness, totals):
    """After a reset, the total and every bucket of the subject are 0; those of another subject do not change."""
    now = time.time()
    count(harness, *(("view", subject, 2, now - ago, None) for subject in (SUBJECT, OTHER) for ago in AGO))
    of_other = window_values(harness, "view", OTHER)
    assert take_back(harness, SUBJECT, "view") == {"view": 2 * len(AGO)}
    assert totals.get(SUBJECT, "view").value == 0
    assert set(window_values(harness, "view", SUBJECT).values()) == {0}
    assert totals.get(OTHER, "view").value == 2 * len(AGO)
    assert window_values(harness, "view", OTHER) == of_other
    assert harness.ledger()["total@view"] == 2 * len(AGO)
    assert balanced(totals)


@pytest.mark.parametrize("days", [-60, 60])
def test_the_clock_of_the_host_decides_nothing(harness, totals, monkeypatch, days):
    """A reset on a host whose clock is wrong brings totals, present buckets and votes to 0, without dead letters."""
    now = time.time()
    count(harness, ("view", SUBJECT, 2, now, None), ("vote", SUBJECT, 1, now, "u1"))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now + days * DAY)
        reset(harness.client, Deployment.create_or_load(harness.client), SUBJECT, ["view", "vote"])
    harness.drain()
    assert set(window_values(harness, "view", SUBJECT).values()) == {0}
    assert totals.get(SUBJECT, "view").value == totals.get(SUBJECT, "vote").value == 0
    assert balanced(totals)
    count(harness, ("vote", SUBJECT, 1, now + 60, "u1"))
    assert totals.get(SUBJECT, "vote").value == 1


def test_the_leaderboards_follow(harness, totals):
    """A subject that was reset loses its place in the leaderboards of totals, days and hours."""
    now = time.time()
    count(harness, ("view", SUBJECT, 9, now, None), ("view", OTHER, 1, now, None))
    take_back(harness, SUBJECT, "view")
    for window in (None, "day", "hour"):
        assert totals.run(query_top(harness.layout, RULES, "view", 1, window, now=now)).places == [(OTHER, 1)]


def test_votes_are_taken_back_one_by_one(harness, totals):
    """After a reset, no vote counts, up or down; an actor who voted before may vote again, and counts once."""
    now = time.time()
    count(
        harness,
        ("vote", SUBJECT, 1, now - DAY, "u1"),
        ("vote", SUBJECT, -1, now, "u2"),
        ("vote", SUBJECT, 1, now, "u3"),
        ("vote", SUBJECT, 0, now, "u4"),
    )
    assert take_back(harness, SUBJECT, "vote") == {"vote": 1}
    votes = totals.run(query_votes(harness.layout, RULES, SUBJECT, "vote"))
    assert (votes.score, votes.up, votes.down) == (0, 0, 0)
    assert set(window_values(harness, "vote", SUBJECT).values()) == {0}
    assert balanced(totals)
    count(harness, ("vote", SUBJECT, 1, time.time() + 1, "u1"))
    votes = totals.run(query_votes(harness.layout, RULES, SUBJECT, "vote"))
    assert (votes.score, votes.up, votes.down) == (1, 1, 0)


def test_a_limit_stays_used(harness, totals):
    """A reset brings a limited counter to 0, and does not allow more events in the bucket of the limit."""
    now = time.time()
    with Producer(harness.url) as producer:
        for _ in range(4):
            producer.decide("call", SUBJECT, at=now)
        assert take_back(harness, SUBJECT, "call") == {"call": 3}
        assert totals.get(SUBJECT, "call").value == 0
        assert set(window_values(harness, "call", SUBJECT).values()) == {0}
        assert not producer.decide("call", SUBJECT, at=now).accepted
    harness.drain()
    assert balanced(totals)


def test_a_reset_goes_below_the_floor(harness, totals):
    """A reset brings the stored value to 0 even if it is below the floor, which limits only the shown value."""
    count(harness, ("like", SUBJECT, -2, time.time(), None))
    assert take_back(harness, SUBJECT, "like") == {"like": -2}
    count(harness, ("like", SUBJECT, 1, time.time(), None))
    assert totals.get(SUBJECT, "like").value == 1
    assert balanced(totals)


def test_what_is_nothing_stays_nothing(harness):
    """A second reset takes nothing back, and no reset is an event."""
    count(harness, ("view", SUBJECT, 5, time.time(), None))
    appended = harness.ledger()["appended"]
    take_back(harness, SUBJECT, "view")
    assert take_back(harness, SUBJECT, "view", "vote", "call") == {"view": 0, "vote": 0, "call": 0}
    assert harness.ledger()["appended"] == appended


def test_counting_goes_on(harness, totals):
    """Events after a reset count from 0, in the total and in the buckets."""
    now = time.time()
    count(harness, ("view", SUBJECT, 5, now, None))
    take_back(harness, SUBJECT, "view")
    count(harness, ("view", SUBJECT, 3, now, None))
    assert totals.get(SUBJECT, "view").value == 3
    assert set(window_values(harness, "view", SUBJECT).values()) == {3}


def test_a_sketch_gives_nothing_back(harness):
    """The reset of a metric that is counted in a sketch is refused, with the reason."""
    with pytest.raises(EventError, match=r"path is counted in a sketch \(exact = false\), which cannot be reset"):
        reset(harness.client, Deployment.create_or_load(harness.client), SUBJECT, ["path"])


def test_a_reset_of_a_subject_in_the_sketch_states_an_error(harness, totals):
    """If a subject has no exact total, a reset takes nothing out of the sketch, and reads state this as their error."""
    count(harness, *(("quota", subject, 1, None, None) for subject in ("s1", "s2", "s3", "s4", "s5", "s6")))
    count(harness, *(("quota", f"s{n}", 4, None, None) for n in (1, 2, 3, 4, 5, 6)))
    keys = [harness.layout.keys_of(f"s{n}").total("quota", f"s{n}") for n in range(1, 7)]
    exact = {f"s{n}": harness.client.exists(key) for n, key in enumerate(keys, 1)}
    inside = next(subject for subject, has_key in exact.items() if not has_key)
    outside = next(subject for subject, has_key in exact.items() if has_key)
    take_back(harness, outside, "quota")
    assert (totals.get(outside, "quota").value, totals.get(outside, "quota").error) == (0, 0)
    assert totals.run(query_top(harness.layout, RULES, "quota", 3, now=time.time())).error is not None
    take_back(harness, inside, "quota")
    count(harness, ("quota", inside, 2, None, None))
    found = totals.get(inside, "quota")
    assert found.value - found.error <= 2 <= found.value + found.error
    assert totals.run(query_top(harness.layout, RULES, "quota", 3, now=time.time())).error is None


def test_a_bucket_that_has_expired_shows_no_debt(harness, totals):
    """A reset of a total whose hours or days have expired brings no bucket below 0."""
    at = time.time() - 20 * DAY
    keys = harness.layout.keys_of(SUBJECT)
    count(harness, ("view", SUBJECT, 5, at, None), ("like", SUBJECT, 3, at, None))
    harness.client.delete(
        keys.window("hour", "view", bucket("hour", int(at) // 60).label),
        keys.window("day", "like", bucket("day", int(at) // 60).label),
    )
    assert take_back(harness, SUBJECT, "view", "like") == {"view": 5, "like": 3}
    assert window_values(harness, "like", SUBJECT) == {}
    assert totals.get(SUBJECT, "like").value == 0
    assert totals.get(SUBJECT, "view").value == 0
    points = totals.run(query_series(harness.layout, RULES, SUBJECT, "view", "hour", 1000, time.time())).series
    assert min(point.value for point in points if point.value is not None) == 0
    days = totals.run(query_series(harness.layout, RULES, SUBJECT, "view", "day", 30, time.time())).series
    assert {point.value for point in days} == {0}


@contextlib.contextmanager
def counting(harness):
    """Count in the background, as a worker does."""
    stop = threading.Event()

    def work():
        while not stop.is_set():
            harness.drain()

    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(work)
        try:
            yield
        finally:
            stop.set()
            worker.result(30)


def test_two_resets_at_once_take_everything_once(harness, totals):
    """Two operators who reset a subject at once, while the worker lags, leave 0."""
    with Producer(harness.url) as producer:
        producer.emit("view", SUBJECT, 100)
        producer.flush(10)
    deployment = Deployment.create_or_load(harness.client)
    with ThreadPoolExecutor(2) as pool:
        clients = [harness.connect(), harness.connect()]
        running = [pool.submit(reset, client, deployment, SUBJECT, ["view"]) for client in clients]
        keys = harness.layout.keys_of(SUBJECT)
        until(lambda: harness.client.hexists(keys.sequences, "!hold"))
        harness.drain()
        assert sorted(each.result(30)["view"] for each in running) == [0, 100]
    assert totals.get(SUBJECT, "view").value == 0
    assert set(window_values(harness, "view", SUBJECT).values()) == {0}
    harness.drain()
    assert balanced(totals)


@pytest.mark.parametrize("metric", ["vote", "daily"])
def test_a_voter_votes_again_after_a_reset(harness, totals, metric):
    """A reset leaves no vote up or down; each voter may vote again, and withdrawing the old vote changes nothing."""
    now = time.time()
    amounts = {"u1": 1, "u2": -1, "u3": 1, "u4": 1}
    count(harness, *((metric, SUBJECT, amount, now - 60, actor) for actor, amount in amounts.items()))
    assert take_back(harness, SUBJECT, metric) == {metric: 2}
    assert votes_of(totals, metric) == (0, 0, 0)
    count(harness, (metric, SUBJECT, 0, now, "u1"), (metric, SUBJECT, 1, now, "u2"), (metric, SUBJECT, -1, now, "u3"))
    with Producer(harness.url) as producer:
        assert producer.decide(metric, SUBJECT, 1, actor="u4", at=now).accepted
    assert votes_of(totals, metric) == (1, 2, 1)
    assert sum(window_values(harness, metric, SUBJECT).values()) == 1
    assert audit(harness.client, Deployment.create_or_load(harness.client), RULES).differences == []


def votes_of(totals, metric):
    """Return the score and the numbers of votes up and down."""
    votes = totals.run(query_votes(totals.deployment.layout, RULES, SUBJECT, metric))
    return votes.score, votes.up, votes.down


def test_buckets_that_have_not_begun_are_reset_too(harness, totals):
    """A reset takes away what lies in buckets that begin later, and what lies in old buckets."""
    now = time.time()
    count(harness, *(("soon", SUBJECT, 5, now + after, None) for after in (-90_000, 0, 60, 600, 3000)))
    take_back(harness, SUBJECT, "soon")
    values = window_values(harness, "soon", SUBJECT)
    assert len(values) >= 6  # one more if the last event is in the next hour
    assert set(values.values()) == {0}
    keys = harness.layout.keys_of(SUBJECT)
    for board in harness.client.scan_iter(f"{keys.prefix}top:*"):
        assert {score for _, score in harness.client.zrange(board, 0, -1, withscores=True)} == {0}
    assert balanced(totals)


def test_an_entry_that_is_not_counted_delays_a_reset(harness, monkeypatch):
    """A reset waits for what was appended before it; if no worker counts, it fails, and appends continue."""
    monkeypatch.setattr(reset_module, "PATIENCE", 0.3)
    count(harness, ("view", SUBJECT, 5, time.time(), None))
    with Producer(harness.url) as producer:
        producer.emit("view", SUBJECT, 1)
        producer.flush(10)
        assert harness.fetch(harness.layout.keys.index(harness.layout.keys_of(SUBJECT)), "slow")(10, 0)
        with pytest.raises(StreamError, match=r"entry \S+ was not counted within 0.3 seconds"):
            reset(harness.client, Deployment.create_or_load(harness.client), SUBJECT, ["view"])
        assert harness.totals()["view", SUBJECT] == 5
        producer.emit("view", SUBJECT, 2)
        producer.flush(10)
    harness.finish()
    assert harness.totals()["view", SUBJECT] == 8


def test_producers_keep_their_events_while_a_reset_waits(harness, totals):
    """While a reset waits, no entry is appended; afterwards each event is there, and counts."""
    keys = harness.layout.keys_of(SUBJECT)
    deployment = Deployment.create_or_load(harness.client)
    with Producer(harness.url) as producer, ThreadPoolExecutor(1) as pool:
        producer.emit("view", SUBJECT, 7)
        producer.flush(10)
        running = pool.submit(reset, harness.client, deployment, SUBJECT, ["view"])
        until(lambda: harness.client.hexists(keys.sequences, "!hold"))
        length = harness.client.xlen(keys.stream)
        producer.emit("view", SUBJECT, 2)
        with pytest.raises(FlushTimeout):
            producer.flush(0.3)
        assert harness.client.xlen(keys.stream) == length
        harness.drain()
        assert running.result(30) == {"view": 7}
        producer.flush(10)
    harness.drain()
    assert totals.get(SUBJECT, "view").value == 2
    assert balanced(totals)


def test_a_hold_of_a_crashed_reset_ends(harness):
    """A hold that no reset renews ends after a second, and one that the clock of another time wrote does not hold."""
    keys = harness.layout.keys_of(SUBJECT)
    for ahead in (900, 86_400_000):
        harness.client.hset(keys.sequences, "!hold", server_time(harness.client) + ahead)
        with Producer(harness.url) as producer:
            producer.emit("view", SUBJECT, 1)
            producer.flush(5)
    harness.drain()
    assert harness.totals()["view", SUBJECT] == 2


def test_events_before_and_after_a_reset_under_load(harness, totals):
    """While producers and deciders run, each reset takes away what was confirmed before it, and nothing later."""
    deployment, stop, emitted = Deployment.create_or_load(harness.client), threading.Event(), Counter()

    def load(name):
        with Producer(harness.url, linger=0.001) as producer:
            while not stop.is_set():
                producer.emit("bare", SUBJECT)
                if name:
                    producer.decide("bare", SUBJECT)
                    emitted[name] += 1
                emitted[name] += 1
                producer.flush(10)

    with counting(harness), ThreadPoolExecutor(3) as pool:
        loads = [pool.submit(load, name) for name in range(3)]
        for _ in range(5):
            before = sum(emitted.values())
            until(lambda before=before: sum(emitted.values()) > before + 30)
            low = sum(emitted.values())
            taken = reset(harness.connect(), deployment, SUBJECT, ["bare"])["bare"]
            emitted["taken"] -= taken
            assert low - 5 <= sum(emitted.values()) + taken
            assert sum(emitted.values()) >= -5
        stop.set()
        for each in loads:
            each.result(30)
    harness.finish()
    assert totals.get(SUBJECT, "bare").value == sum(emitted.values())
    assert sum(window_values(harness, "bare", SUBJECT).values()) == sum(emitted.values())
    assert audit(harness.client, deployment, RULES).differences == []


def test_a_spread_subject_is_reset_in_every_partition(harness, totals):
    """The entries of a reset of a spread subject have one time in all partitions, so that a move keeps their place."""
    deployment = Deployment.create_or_load(harness.client)
    pack = EntryBuilder()
    pack.add("busy", SUBJECT, 5, time.time(), None, None)
    body = pack.build()

    def append(number):
        appender = Appender(harness.client, harness.layout)
        for partition in range(harness.layout.partitions):
            appender.push(partition, SealedEntry(number, 1, len(body), body))
        appender.send()
        harness.drain()

    append(1)
    assert reset(harness.client, deployment, SUBJECT, ["busy", "view"]) == {"busy": 10, "view": 0}
    assert totals.get(SUBJECT, "busy").value == 0
    last = [harness.client.xrevrange(keys.stream, count=1)[0][0] for keys in harness.layout.keys]
    assert len(set(last)) == 1
    append(1)
    assert totals.get(SUBJECT, "busy").value == 10
    repartition(settings_for(harness.url, RULES, 0), deployment, 3)
    with Totals(harness.url) as moved:
        assert moved.get(SUBJECT, "busy").value == 10
    assert audit(harness.client, Deployment.create_or_load(harness.client), RULES).differences == []


def test_a_dead_letter_from_before_a_reset_adds_nothing(harness, totals):
    """A dead letter is counted at the place of its entry: a later reset has taken away what it adds, also its votes."""
    keys, now = harness.layout.keys_of(SUBJECT), time.time()
    number = harness.layout.keys.index(keys)
    harness.rules = Rules({"like": Metric()})
    count(harness, ("bare", SUBJECT, 5, now, None), ("vote", SUBJECT, 1, now, "u1"), ("bare", OTHER, 2, now, None))
    harness.rules = RULES
    take_back(harness, SUBJECT, "bare", "vote")
    count(harness, ("bare", SUBJECT, 3, now, None))
    for partition in {number, harness.layout.keys.index(harness.layout.keys_of(OTHER))}:
        for letter in list(letters(harness.client, harness.layout, partition)):
            assert retry(harness.client, harness.layout, RULES, letter).dead == 0
    assert harness.totals()["bare", SUBJECT] == 3
    assert harness.totals()["bare", OTHER] == 2
    assert votes_of(totals, "vote") == (0, 0, 0)
    assert audit(harness.client, Deployment.create_or_load(harness.client), RULES).differences == []


def test_a_dead_letter_whose_effect_is_not_known_is_refused(harness):
    """After a reset, a dead letter with an id or a limit of this subject is not retried; a rebuild counts it."""
    now = time.time()
    harness.rules = Rules({"like": Metric()})
    count(harness, ("call", SUBJECT, 1, now, None))
    harness.rules = RULES
    take_back(harness, SUBJECT, "call")
    partition = harness.layout.keys.index(harness.layout.keys_of(SUBJECT))
    (letter,) = letters(harness.client, harness.layout, partition)
    with pytest.raises(StreamError, match="its subject was reset since"):
        retry(harness.client, harness.layout, RULES, letter)
    rebuilt(harness)
    assert harness.totals()["call", SUBJECT] == 0
    assert harness.client.hvals(
        harness.layout.keys_of(SUBJECT).limit("call", bucket("hour", int(now) // 60).label)
    ) == [b"1"]
