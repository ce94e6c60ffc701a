"""A leaderboard states by how much a subject that it does not list may exceed the last one that it lists."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tallystream.producing.producer import Producer
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream.wire.codec import Group, Payload, encode
from tests.harness import Harness

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tallystream.reading.leaderboards import Leaderboard

TOP = 2
STORED = 22  # subjects that such a leaderboard stores
SUBJECTS = [f"s{i:02}" for i in range(STORED + 8)]
METRICS = {
    "sum": Metric(ids=None, top=TOP, windows=("hour", "day")),
    "vote": Metric(once="forever", top=TOP, windows=("hour", "day")),
    "strewn": Metric(ids=None, top=TOP, windows=("hour", "day"), spread=True),
    "quota": Metric(ids=None, top=TOP, windows=("hour", "day"), max_subjects=3),
}


@pytest.fixture
def harness(server) -> Iterator[Harness]:
    """Return a harness with one partition, so that all subjects are in one leaderboard of each kind."""
    with Harness(server.url, rules=Rules(METRICS), partitions=1) as made:
        yield made


def add(harness: Harness, metric: str, amounts: Mapping[str, int]) -> None:
    """Count an amount of each subject; of a metric with votes, as many votes of 1, or votes of 0 to take them back."""
    with Producer(harness.url) as producer:
        for subject, amount in amounts.items():
            if metric == "vote":
                for actor in range(abs(amount)):
                    producer.emit(metric, subject, int(amount > 0), actor=f"u{actor}")
            else:
                producer.emit(metric, subject, amount)
    harness.drain()


def holds(board: Leaderboard, truth: Mapping[str, int]) -> bool:
    """Return whether a leaderboard and its error are right, if these are all values.

    A subject with the value 0 is not listed.
    """
    listed, error = dict(board.places), board.error
    last = board.places[-1][1] if board.places else 0
    return all(value and abs(value - truth[subject]) <= error for subject, value in board.places) and all(
        value <= last + error for subject, value in truth.items() if value and subject not in listed
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("window", [None, "day", "2d"])
def test_a_value_that_is_0_again_is_not_listed(harness, metric, window):
    """A subject whose value became 0 again is not listed, as if its events had been counted together."""
    add(harness, metric, {"s00": 2, "s01": 1})
    with closing(Totals(harness.url)) as totals:
        assert totals.top(metric, window).places == [("s00", 2), ("s01", 1)]
        add(harness, metric, {"s00": -2})
        assert totals.top(metric, window).places == [("s01", 1)]
        assert [each.subject for each in totals.search("s").subjects if each.metric == metric] == ["s01"]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("window", [None, "day", "2d"])
def test_the_error_covers_subjects_that_were_cut_off(harness, metric, window):
    """If all listed values fall below those that were cut off, the error is at least the difference."""
    add(harness, metric, dict.fromkeys(SUBJECTS[:STORED], 10))
    add(harness, metric, dict.fromkeys(SUBJECTS[STORED:], 9))
    with closing(Totals(harness.url)) as totals:
        if metric != "quota":
            assert totals.top(metric, window).error == 0
        add(harness, metric, dict.fromkeys(SUBJECTS[:STORED], -10 if metric == "vote" else -9))
        left = 0 if metric == "vote" else 1
        truth = dict.fromkeys(SUBJECTS[:STORED], left) | dict.fromkeys(SUBJECTS[STORED:], 9)
        assert holds(totals.top(metric, window), truth)


@pytest.mark.parametrize("rule", [{}, {"spread": True}, {"max_subjects": 100}])
@pytest.mark.parametrize("window", ["day", "2d"])
@pytest.mark.parametrize("later", [9, 100])
def test_amounts_in_a_sketch_are_in_the_error(harness, later, window, rule):
    """After `max_subjects` was raised or replaced, the error of a bucket includes the amounts in the sketch.

    So it covers a subject that is only in the sketch, and one whose later events are counted exactly.
    """
    add(harness, "quota", {"s00": 1, "s01": 1, "s02": 1, "s03": 20, "s04": 30})
    harness.rules = Rules(METRICS | {"quota": Metric(ids=None, top=TOP, windows=("hour", "day"), **rule)})
    harness.client.hset(harness.layout.meta, "rules", publish(harness.rules))
    add(harness, "quota", {"s00": 7, "s03": later, "s05": later})
    truth = {"s00": 8, "s01": 1, "s02": 1, "s03": 20 + later, "s04": 30, "s05": later}
    with closing(Totals(harness.url)) as totals:
        board = totals.top("quota", window)
        assert holds(board, truth), board


def test_a_search_shows_whole_totals(server):
    """A total that is in several partitions is shown whole, also if 1,000 larger sums of places were found."""
    rules = Rules({"strewn": Metric(ids=None, top=1000, spread=True)})
    sinking, shown, small = ([f"s{kind}{i:04}" for i in range(n)] for kind, n in (("a", 1000), ("b", 50), ("c", 950)))
    with Harness(server.url, rules=rules, partitions=2) as harness, closing(Totals(server.url)) as totals:
        # Only the first 1,000 places of each leaderboard are searched.
        first = dict.fromkeys(sinking, 10) | dict.fromkeys(shown, 5)
        second = dict.fromkeys(shown, 9) | dict.fromkeys(small, 1) | dict.fromkeys(sinking, -9)
        for keys, amounts in zip(harness.layout.keys, (first, second), strict=True):
            sums = {subject: (amount, 1) for subject, amount in amounts.items()}
            payload = Payload([Group("strewn", int(time.time()) // 60, [], {}, sums)], [])
            harness.client.xadd(keys.stream, {"v": 1, "n": payload.events, "b": encode(payload)})
        harness.drain()
        found = totals.search("s", 50)
    assert {each.subject: each.value for each in found.subjects} == dict.fromkeys(shown, 14)


@pytest.mark.parametrize("seed", range(6))
def test_random_amounts_stay_within_the_error(harness, seed):
    """Whatever values rise and fall, also below zero, each read of a leaderboard is right within its error."""
    draw = random.Random(seed)
    truth: dict[str, Counter[str]] = {metric: Counter() for metric in METRICS if metric not in ("vote", "quota")}
    with closing(Totals(harness.url)) as totals:
        for _ in range(12):
            with Producer(harness.url) as producer:
                for metric, values in truth.items():
                    for subject in draw.sample(SUBJECTS, draw.choice([1, 25])):
                        amount = draw.choice([-40, -5, -1, 1, 5, 20])
                        producer.emit(metric, subject, amount)
                        values[subject] += amount
            harness.drain()
            for metric, values in truth.items():
                for window in (None, "day", "2d"):
                    board = totals.top(metric, window)
                    assert holds(board, values), (metric, window, board, values)
