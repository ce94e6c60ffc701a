"""The tests of the tutorial that tallystream began with, against a running worker with the shipped metrics."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tallystream.producing.producer import Producer
from tallystream.reading.actor_rules import query_limit
from tallystream.reading.totals import Totals
from tallystream.wire.window import HOUR
from tallystream_worker.process import logs
from tallystream_worker.runtime.app import counting
from tallystream_worker.settings.settings import RedisSettings, Settings

LIMIT = 1000


@dataclass(frozen=True)
class Shop:
    """The producer and the reader of an application."""

    producer: Producer
    totals: Totals

    def count(self, metric: str, subject: str, times: int = 1, amount: int = 1) -> None:
        """Emit the same event several times, and wait until it is counted."""
        for _ in range(times):
            self.producer.emit(metric, subject, amount)
        self.producer.flush(10, wait="counted")


@pytest.fixture
def shop(server, monkeypatch):
    """An application and a running worker."""
    monkeypatch.setattr("tallystream_worker.runtime.partition_worker.BLOCK", 0.05)  # the worker is stopped often
    settings = Settings(redis=RedisSettings(url=server.url))
    with (
        counting(settings, logs.configure(quiet=True)),
        Producer(server.url, linger=0.001) as producer,
        Totals(server.url) as totals,
    ):
        yield Shop(producer, totals)


def test_five_views_in_a_row(shop):
    """Five decisions on one subject return the totals 1 to 5."""
    answers = [shop.producer.decide("view", "article:1").total for _ in range(5)]
    assert answers == [1, 2, 3, 4, 5]
    assert shop.totals.get("article:1", "view").value == 5


def test_likes_unlikes_and_the_rate_of_engagement(shop):
    """Three likes and one unlike make a total of 2, and with five views an engagement rate of 40.00 %."""
    shop.count("view", "article:1", times=5)
    shop.count("like", "article:1", times=3)
    shop.count("like", "article:1", amount=-1)
    stats = shop.totals.of("article:1")
    assert (stats.counters["view"], stats.counters["like"], stats.counters["share"]) == (5, 2, 0)
    rate = stats.ratios["engagement_rate"]
    assert f"{rate:.2%}" == "40.00%"


def test_the_rate_without_views(shop):
    """A ratio whose denominator is 0 is 0."""
    shop.count("like", "article:9")
    assert shop.totals.of("article:9").ratios == {"engagement_rate": 0.0}


def test_an_unlike_alone_shows_no_less_than_zero(shop):
    """A metric with `floor = 0` shows 0 after an unlike alone, and still 0 after the next like."""
    shop.count("like", "article:1", amount=-1)
    assert shop.totals.get("article:1", "like").value == 0
    shop.count("like", "article:1")
    assert shop.totals.get("article:1", "like").value == 0


def test_a_hundred_increments_at_once(shop):
    """100 views emitted by 100 threads and 100 views decided by 100 threads make a total of exactly 200."""
    with ThreadPoolExecutor(100) as threads:
        list(threads.map(lambda _: shop.producer.emit("view", "article:1"), range(100)))
        totals = list(threads.map(lambda _: shop.producer.decide("view", "article:1").total, range(100)))
    shop.producer.flush(10, wait="counted")
    assert len(set(totals)) == 100
    assert shop.totals.get("article:1", "view").value == 200


def test_the_call_after_the_thousandth_is_refused(shop):
    """1,000 calls of a key in a clock hour are accepted; the next is rejected, with the end of the hour."""
    at = time.time()
    reset_at = at // HOUR * HOUR + HOUR
    passed = [shop.producer.decide("api-call", "key-1", at=at) for _ in range(LIMIT)]
    assert all(outcome.accepted and outcome.reset_at == reset_at for outcome in passed)
    assert [outcome.remaining for outcome in passed] == list(range(LIMIT - 1, -1, -1))
    refused = shop.producer.decide("api-call", "key-1", at=at)
    assert (refused.accepted, refused.reason) == (False, "limit")
    assert (refused.remaining, refused.reset_at, refused.total) == (0, reset_at, LIMIT)
    other = shop.producer.decide("api-call", "key-2", at=at)
    assert (other.accepted, other.remaining) == (True, LIMIT - 1)
    deployment = shop.totals.deployment
    limit = shop.totals.run(query_limit(deployment.layout, deployment.rules, "key-1", "api-call", at))
    assert (limit.limit, limit.used, limit.remaining, limit.reset_at) == (LIMIT, LIMIT + 1, 0, reset_at)


def test_one_vote_per_user(shop):
    """A user's second vote is rejected, another user's vote is counted, and a vote that is taken back is subtracted."""
    vote = shop.producer.decide
    first = vote("vote", "post:123", actor="user1")
    assert (first.accepted, first.total, first.reason) == (True, 1, None)
    again = vote("vote", "post:123", actor="user1")
    assert (again.accepted, again.total, again.reason) == (False, 1, "once")
    assert vote("vote", "post:123", actor="user2").total == 2
    at = time.time() + 1
    assert vote("vote", "post:123", -1, actor="user2", at=at).total == 0
    votes = shop.totals.votes("post:123", "vote")
    assert (votes.score, votes.up, votes.down) == (0, 1, 1)


def test_the_dashboard(shop):
    """`get_many` returns counters of plain, voted and limited metrics in one call."""
    shop.count("view", "article:1", times=5)
    shop.count("view", "article:2", times=2)
    shop.count("like", "article:1", times=2)
    shop.producer.decide("vote", "post:123", actor="user1")
    shop.producer.decide("api-call", "anonymous")
    subjects = {
        "view": ["article:1", "article:2"],
        "like": ["article:1", "article:2"],
        "vote": ["post:123"],
        "api-call": ["anonymous"],
    }
    found = shop.totals.get_many((subject, metric) for metric, names in subjects.items() for subject in names).values
    dashboard = {metric: {name: found[name, metric] for name in names} for metric, names in subjects.items()}
    assert dashboard == {
        "view": {"article:1": 5, "article:2": 2},
        "like": {"article:1": 2, "article:2": 0},
        "vote": {"post:123": 1},
        "api-call": {"anonymous": 1},
    }
