"""A reset brings totals and buckets to 0 by compensating events, and the ledger still agrees."""

from __future__ import annotations

import time

import pytest

from tallystream.deployment import Deployment
from tallystream.errors import EventError
from tallystream.producing.producer import Producer
from tallystream.reading.actor_rules import query_votes
from tallystream.reading.leaderboards import query_top
from tallystream.reading.ledger import query_ledger
from tallystream.reading.series import query_series
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules
from tallystream.rules.windows import bucket
from tallystream.wire.window import DAY, HOUR
from tallystream_worker.rebuild.reset import reset
from tests.harness import Harness

RULES = Rules(
    {
        "view": Metric(windows=("hour", "day", "month"), top=5),
        "like": Metric(windows=("day",), floor=0),
        "vote": Metric(windows=("day",), once="forever", top=5),
        "call": Metric(windows=("hour", "day"), limit=3, per="hour"),
        "path": Metric(exact=False),
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
    """Reset a subject and count the corrections; return the amounts taken back, by metric."""
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
    """A second reset takes nothing back and appends nothing."""
    count(harness, ("view", SUBJECT, 5, time.time(), None))
    take_back(harness, SUBJECT, "view")
    appended = harness.ledger()["appended"]
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
