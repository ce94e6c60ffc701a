"""Tests of `compare`: which counters differ in two generations, while events arrive."""

from __future__ import annotations

import random
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import LogCapture

from tallystream.deployment import Deployment
from tallystream.producing.producer import Producer
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.event import Event
from tallystream_worker.rebuild import compare as compare_module
from tallystream_worker.rebuild.compare import Comparison, compare
from tallystream_worker.rebuild.drop import drop
from tallystream_worker.rebuild.rebuild import Rebuild, propose
from tallystream_worker.rebuild.reset import reset
from tallystream_worker.runtime.app import counting
from tests.harness import Harness
from tests.integration.counting.test_rules_exact import RULES, feed, happenings
from tests.integration.rebuild.test_rebuild import emit, relaxed, settings_for

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = int(time.time()) // 86_400 * 86_400 - 86_400  # a midnight of UTC
_SUBJECTS = 20


@contextmanager
def rebuilding(harness: Harness, rules: Rules) -> Iterator[tuple[Rebuild, Deployment, int]]:
    """Build a generation by some rules until it has caught up; yield the rebuild, its deployment and its number."""
    generation = propose(harness.client, Deployment.load(harness.client), rules)
    deployment = Deployment.load(harness.client)
    with Rebuild(settings_for(harness.url, rules), deployment, generation) as run:
        run.begin()
        run.catch_up()
        yield run, deployment, generation


def send(harness: Harness, *events: Event) -> None:
    """Append events, each in one entry, and count them in the live generation only."""
    for each in events:
        feed(harness, [(each, False)], random.Random(0))
    harness.drain()


@pytest.mark.parametrize("ahead", ["live", "new"])
@relaxed
@given(first=happenings(), later=happenings(), seed=st.integers(0, 10_000))
def test_no_counter_that_an_entry_may_still_change_is_a_difference(server, ahead, first, later, seed):
    """If one generation has counted entries that the other lacks, by the same rules, no counter is a difference."""
    chance = random.Random(seed)
    server.clear()
    with Harness(server.url, rules=RULES, partitions=2) as harness, pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_module, "LOOKING", 0.0)
        feed(harness, first, chance)
        harness.finish()
        with rebuilding(harness, RULES) as (run, deployment, generation):
            feed(harness, later, chance)
            if ahead == "live":
                harness.drain()
            else:
                run.catch_up()
            assert compare(harness.client, deployment, generation).differences == []
            harness.drain()
            assert compare(harness.client, deployment, generation, run.follow) == Comparison([], 0)


@pytest.mark.parametrize(
    ("rule", "before", "later", "resting"),
    [
        (
            Metric(windows=("hour",), top=1, ids=None),
            [Event("m", f"s{n}", 5 + n, at=NOW) for n in range(21)],  # as many as a leaderboard of 1 stores
            [Event("m", "b", 9, at=NOW + 3600)],
            "hour:m:{0} -> s0",
        ),
        (
            Metric(windows=("hour",), once="forever"),
            [Event("m", "a", 1, "u", NOW), Event("m", "b", 1, "u", NOW)],
            [Event("m", "a", 1, "u", NOW + 7200)],
            "hour:m:{0} -> b",
        ),
        (
            Metric(windows=("hour",), once="day"),
            [Event("m", "a", 1, "u", NOW), Event("m", "a", 1, "u", NOW - 3600)],
            [Event("m", "a", 1, "u", NOW + 7200)],
            "hour:m:{1} -> a",
        ),
        (
            Metric(windows=("hour",), ids="hour"),
            [Event("m", "a", 1, at=NOW + 3600, id="i"), Event("m", "a", 1, at=NOW - 3600)],
            [Event("m", "a", 1, at=NOW + 3599, id="i")],
            "hour:m:{1} -> a",
        ),
        (
            Metric(windows=("hour",), limit=1, per="hour", ids="day"),
            [Event("m", "a", 1, at=NOW + 3600, id="i"), Event("m", "b", 1, at=NOW)],
            [Event("m", "a", 1, at=NOW + 100, id="i")],
            "hour:m:{0} -> b",
        ),
    ],
    ids=["leaderboard", "vote", "daily vote", "id", "limit"],
)
def test_an_entry_may_change_counters_of_earlier_events(server, monkeypatch, rule, before, later, resting):
    """Counters that an uncounted entry may take back or remove are moving; a counter that rests is a difference."""
    monkeypatch.setattr(compare_module, "LOOKING", 0.2)
    with Harness(server.url, rules=Rules({"m": rule}), partitions=1) as harness:
        send(harness, *before)
        with rebuilding(harness, harness.rules) as (run, deployment, generation):
            send(harness, *later)
            found = compare(harness.client, deployment, generation)
            assert found.differences == []
            assert found.moving > 0
            label = [time.strftime("%Y-%m-%dT%H", time.gmtime(at)) for at in (NOW, NOW - 3600)]
            key, field = resting.format(*label).split(" -> ")
            harness.client.hincrby(deployment.layout.of(generation).keys[0].counters + key, field, 7)
            found = compare(harness.client, deployment, generation)
            assert [(each.counter, each.difference) for each in found.differences] == [(f"{key} -> {field}", 7)]
            found = compare(harness.client, deployment, generation, run.follow)
            assert [(each.counter, each.difference) for each in found.differences] == [(f"{key} -> {field}", 7)]
            assert found.moving == 0


def test_a_reset_may_change_every_counter_of_its_subject(server, monkeypatch):
    """While one generation lacks a reset, no counter of the subject is a difference; those of other subjects are."""
    monkeypatch.setattr(compare_module, "LOOKING", 0.2)
    rules = Rules(
        {"m": Metric(windows=("hour", "day"), top=2, ids=None), "v": Metric(once="forever", windows=("day",))}
    )
    with Harness(server.url, rules=rules, partitions=1) as harness:
        votes = [Event("v", "a", 1, actor, NOW) for actor in ("u1", "u2")]
        send(harness, Event("m", "a", 3, at=NOW), Event("m", "b", 3, at=NOW), *votes)
        with rebuilding(harness, rules) as (run, deployment, generation):
            reset(harness.client, deployment, "a", ["m", "v"])
            harness.drain()
            harness.client.incr(deployment.layout.of(generation).keys[0].total("m", "b"))
            found = compare(harness.client, deployment, generation)
            assert [each.counter for each in found.differences] == ["total:m:b"]
            assert found.moving > 0
            found = compare(harness.client, deployment, generation, run.follow)
            assert ([each.counter for each in found.differences], found.moving) == (["total:m:b"], 0)


def test_pending_entries_are_not_counted_yet(server, monkeypatch):
    """The counters of entries that a generation has fetched and not counted are moving, also if others were counted."""
    monkeypatch.setattr(compare_module, "LOOKING", 0.2)
    with Harness(server.url, partitions=1) as harness:
        emit(harness, "a", 3)
        harness.drain()
        with rebuilding(harness, harness.rules) as (run, deployment, generation):
            emit(harness, "held", 2)
            held = harness.fetch(0, "other")(10, 0)
            assert len(held) == 2
            emit(harness, "a", 3)
            harness.drain()
            run.catch_up()
            assert compare(harness.client, deployment, generation, run.follow) == Comparison([], 1)


def test_entries_that_were_trimmed_make_no_difference(server, monkeypatch):
    """If an entry is trimmed between the reading of a counter and that of the entries, the counter is read again."""
    with Harness(server.url, partitions=1) as harness:
        emit(harness, "a", 3)
        harness.drain()
        with rebuilding(harness, harness.rules) as (run, deployment, generation):
            emit(harness, "a", 1)
            harness.drain()
            read, calls = compare_module._Partition._differing, []

            def trimmed(partition, chunk):
                found = list(read(partition, chunk))
                calls.append(chunk)
                if len(calls) == 3:  # the second is of the new generation, and the third of the first look
                    run.follow(0)
                    harness.client.xtrim(harness.layout.keys[0].stream, maxlen=0, approximate=False)
                return iter(found)

            monkeypatch.setattr(compare_module._Partition, "_differing", trimmed)
            assert compare(harness.client, deployment, generation) == Comparison([], 0)
            assert len(calls) == 4


def test_a_lost_group_counts_nothing_more(server):
    """If workers cannot count, because their group is lost, the counters that lack their entries differ."""
    with Harness(server.url, partitions=1) as harness:
        emit(harness, "a", 3)
        harness.drain()
        harness.client.xgroup_destroy(harness.layout.keys[0].stream, harness.layout.keys[0].group)
        emit(harness, "a", 2)
        with rebuilding(harness, harness.rules) as (run, deployment, generation):
            found = compare(harness.client, deployment, generation, run.follow)
            assert [(each.counter, each.expected, each.found) for each in found.differences] == [("total:view:a", 3, 5)]
            assert found.moving == 0


def test_under_a_load_exactly_the_true_differences_are_found(server):
    """While workers count all the time, a changed limit changes exactly the counters that differ without a load."""
    before = Rules(
        {"view": Metric(windows=("hour", "day"), top=5), "call": Metric(limit=2, per="hour", windows=("hour",))}
    )
    after = Rules(before.metric | {"call": Metric(limit=4, per="hour", windows=("hour",))})
    stop = threading.Event()
    with (
        counting(settings_for(server.url, before), structlog.wrap_logger(None, processors=[LogCapture()])),
        Producer(server.url) as producer,
        Harness(server.url, rules=before, partitions=2) as harness,
    ):
        for _ in range(6):
            for n in range(_SUBJECTS):
                producer.emit("call", f"key:{n}", at=NOW)
        producer.flush(10, wait="counted")

        def write() -> None:
            chance = random.Random(1)
            while not stop.wait(0.001):
                producer.emit("view", f"s{min(int(chance.paretovariate(1)), 1000)}")
                producer.emit("call", f"once:{producer.stats.emitted}")

        thread = threading.Thread(target=write)
        thread.start()
        try:
            found = {}
            for name, rules in (("same", before), ("other", after)):
                with rebuilding(harness, rules) as (run, deployment, generation):
                    emitted = producer.stats.emitted
                    found[name] = compare(harness.client, deployment, generation, run.follow)
                    assert producer.stats.emitted > emitted
                    if name == "other":
                        break
                drop(harness.client, Deployment.load(harness.client), generation)
        finally:
            stop.set()
            thread.join()
        producer.flush(20, wait="counted")
        assert found["same"].differences == []
        with Rebuild(settings_for(server.url, after), deployment, generation) as run:
            run.begin()
            run.catch_up()
            assert found["other"].differences == compare(harness.client, deployment, generation, run.follow).differences
        totals = [each for each in found["other"].differences if each.counter.startswith("total:")]
        assert [(each.expected, each.found) for each in totals] == [(2, 4)] * _SUBJECTS


def test_the_largest_differences_come_first(server):
    """Differences are in the order of their size."""
    with Harness(server.url, partitions=1) as harness:
        emit(harness, "a", 3)
        harness.drain()
        with rebuilding(harness, harness.rules) as (_, deployment, generation):
            keys = deployment.layout.of(generation).keys[0]
            for subject, value in (("a", 5), ("b", -9), ("c", 1), ("d", 9)):
                harness.client.set(keys.total("view", subject), value)
            found = compare(harness.client, deployment, generation).differences
            assert [(each.counter[-1], each.difference) for each in found] == [("b", -9), ("d", 9), ("a", 2), ("c", 1)]
