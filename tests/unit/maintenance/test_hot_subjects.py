"""The subject with the most events is found in bounded memory, and its share is never too high."""

from __future__ import annotations

import random

from tallystream.rules.alerts import Alert
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.codec import Group, Payload, Single
from tallystream_worker.counting.outcome import BatchResult
from tallystream_worker.maintenance.frequent_subjects import KEPT, ROOM, FrequentSubjects
from tallystream_worker.maintenance.hot_subjects import HotSubject, HotSubjectTracker, advice


def payload(subjects: dict[str, int]) -> Payload:
    """Return a payload with this number of events of each subject."""
    ones = [subject for subject, events in subjects.items() if events == 1]
    return Payload([Group("view", 1, ones, {s: n for s, n in subjects.items() if n > 1}, {})], [])


def test_a_hot_subject_is_found_among_endless_others():
    """Among 700,000 other subjects the most frequent one is found; its share is at most 1/257 too low."""
    summary = FrequentSubjects()
    for entry in range(1000):
        summary.take(payload({"hot": 300} | {f"s{entry}-{n}": 1 for n in range(700)}))
        assert sum(map(len, summary._counts.values())) <= ROOM
    metric, subject, share = summary.largest
    assert (metric, subject) == ("view", "hot")
    assert 0.3 - 1 / (KEPT + 1) <= share <= 0.3


def test_what_was_hot_fades():
    """A subject that was the most frequent one is replaced by a later one."""
    summary = FrequentSubjects()
    for subject in ("before", "after"):
        for _ in range(500):
            summary.take(payload({subject: 900} | {f"s{n}": 1 for n in random.sample(range(9999), 100)}))
    _, subject, share = summary.largest
    assert subject == "after"
    assert share > 0.6


def test_of_a_few_events_nothing_is_said():
    """With fewer than 100 events there is no largest subject; events are counted, not their amounts."""
    summary = FrequentSubjects()
    summary.take(payload({"a": 5}))
    assert summary.largest is None
    summary.take(Payload([Group("like", 1, [], {}, {"b": (10**9, 3)})], [Single("vote", "c", 1, 0, "u", None)] * 200))
    assert summary.largest == ("vote", "c", 200 / 208)


def test_equally_frequent_subjects_have_no_largest():
    """Among 5,000 subjects with one event each there is no largest subject, and a later frequent one is found."""
    summary = FrequentSubjects()
    summary.take(payload({f"s{n}": 1 for n in range(5000)}))
    assert summary.largest is None
    summary.take(payload({"hot": 900}))
    assert summary.largest[:2] == ("view", "hot")


def test_a_partition_is_hot_where_it_is_busy():
    """A subject is hot only if its share is large and its partition has many events a second."""
    hottest = HotSubjectTracker(2)
    sample = payload({"a": 900, "b": 100})
    for _ in range(200):
        hottest(BatchResult(1, 1, {"view": 1000}, {}, 2, 0.001, 0, sample))
    hottest.tick()
    assert hottest.of(0) is None
    hot = hottest.of(1)
    assert (hot.metric, hot.subject, hot.share) == ("view", "a", 0.9)
    assert hot.is_hot
    assert not HotSubject("view", "a", 0.9, 10.0).is_hot
    assert not HotSubject("view", "a", 0.2, 1e6).is_hot


def test_the_advice_fits_the_rules():
    """The advice for a hot subject depends on what the rules of its metric allow."""
    rules = Rules(
        {"view": Metric(), "call": Metric(limit=1, per="hour"), "hit": Metric(spread=True), "like": Metric()},
        alert=(Alert("many", "like", above=9),),
    )
    assert "spread = true in [metric.view]" in advice(HotSubject("view", "a", 0.9, 1e5), rules)
    assert "has limit, so it cannot be spread" in advice(HotSubject("call", "a", 0.9, 1e5), rules)
    assert "is spread" in advice(HotSubject("hit", "a", 0.9, 1e5), rules)
    assert "has an alert, so it cannot be spread" in advice(HotSubject("like", "a", 0.9, 1e5), rules)
