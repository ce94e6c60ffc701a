"""A rule that is added or changed counts from a place in the log: a figure that lacks earlier events states it."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from tallystream.producing.producer import Producer
from tallystream.reading.actor_rules import query_uniques
from tallystream.reading.leaderboards import query_top
from tallystream.reading.series import query_rolling, query_series
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream.wire.event import MAX_AHEAD
from tallystream_worker.counting.adopt import adopt
from tests.harness import Harness
from tests.integration.rebuild.test_rebuild import rebuilt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream.reading.query import Answer, Query

SUBJECTS = [f"s{i:02}" for i in range(40)]
PLAIN = Metric(ids=None, windows=("day",))


@pytest.fixture
def harness(server) -> Iterator[Harness]:
    """Return a harness with one partition, whose metric `m` has a total and days."""
    with Harness(server.url, rules=Rules({"m": PLAIN}), partitions=1) as made:
        yield made


def declare(harness: Harness, rule: Metric, *, adopted: bool = True) -> None:
    """Publish another rule of the metric `m`, as a worker does when it starts."""
    harness.rules = replace(harness.rules, metric=harness.rules.metric | {"m": rule})
    harness.client.hset(harness.layout.meta, "rules", publish(harness.rules))
    if adopted:
        for keys in harness.layout.keys:
            adopt(harness.client, keys, harness.rules)


def count(harness: Harness, amounts: dict[str, int], **event: Any) -> None:
    """Count one event of each subject."""
    with Producer(harness.url) as producer:
        for subject, amount in amounts.items():
            producer.emit("m", subject, amount, **event)
    harness.drain()


def later(harness: Harness, made: Any, *arguments: Any, after: float, **more: Any) -> Any:
    """Return the answer to a query that is asked some seconds after now."""
    with closing(Totals(harness.url)) as totals:
        found = totals.deployment
        query: Query[Answer] = made(
            found.layout, found.rules, *arguments, now=found.now + after, removed=found.removed, **more
        )
        return totals.run(query)


@pytest.mark.parametrize("adopted", [True, False])
def test_buckets_of_an_added_window_are_missing(harness, adopted):
    """Buckets that may have had events before the window was added are missing, also those of events ahead of time."""
    now = time.time()
    count(harness, {"s00": 1})
    count(harness, {"s00": 2}, at=now + MAX_AHEAD - 100)
    declare(harness, replace(PLAIN, windows=("hour", "day")), adopted=adopted)
    if not adopted:
        (unread,) = later(harness, query_series, "s00", "m", "hour", 1, after=0).series
        assert unread.value is None
    count(harness, {"s00": 4})
    found = later(harness, query_series, "s00", "m", "hour", 12, after=6 * 3600)
    assert not found.complete
    values = [point.value for point in found.series]
    assert values[-4:] == [0] * 4, "the hours after the change are complete"
    ahead = [point for point in found.series if point.start <= now + MAX_AHEAD - 100]
    assert [point.value for point in ahead] == [None] * len(ahead)
    total = later(harness, query_rolling, "s00", "m", "12h", after=6 * 3600)
    assert total.start <= now or (total.value, total.complete) == (0, False), "days begin before, or hours are missing"
    rebuilt(harness)
    found = later(harness, query_series, "s00", "m", "hour", 12, after=6 * 3600)
    assert (found.complete, sum(point.value for point in found.series)) == (True, 7)


def test_an_old_worker_that_counts_after_the_change_moves_the_place(harness):
    """In a rolling restart, a window counts from the place after the last batch of a worker without it."""
    keys = harness.layout.keys[0]

    def mark() -> int:
        return int(harness.client.hget(keys.forgotten, "hour:m") or 0)

    def last() -> int:
        return int(harness.client.xinfo_stream(keys.stream)["last-generated-id"].split(b"-")[0])

    old = harness.consumer(0, "old")
    new_rule = replace(PLAIN, windows=("hour", "day"))
    count(harness, {"s00": 1})
    declare(harness, new_rule)
    for consumer in (harness.consumer(0, "new"), old, harness.consumer(0, "new"), old):
        with Producer(harness.url) as producer:
            producer.emit("m", "s00")
        assert consumer.run_once() == 1
    by_old = last()
    adopt(harness.client, keys, harness.rules)
    assert mark() > by_old + MAX_AHEAD * 1000
    count(harness, {"s00": 1})
    kept = mark()
    count(harness, {"s00": 1})
    assert mark() == kept, "while nothing changes, the place stays"


def test_a_range_begins_with_the_first_bucket_after_the_change(harness):
    """A sum and a leaderboard over a range miss only what is before the first whole bucket that lacks nothing."""
    harness.rules = Rules({"m": Metric(ids=None)})
    declare(harness, Metric(ids=None))
    count(harness, {"s00": 1})
    declare(harness, Metric(ids=None, windows=("hour",), top=3))
    last = int(harness.client.xinfo_stream(harness.layout.keys[0].stream)["last-generated-id"].split(b"-")[0]) / 1000
    first = (int(last + MAX_AHEAD) // 3600 + 1) * 3600
    for made, arguments in ((query_rolling, ("s00", "m", "12h")), (query_top, ("m", 3, "12h"))):
        found = later(harness, made, *arguments, after=6 * 3600)
        assert (found.start, found.complete, found.missing[0].end) == (first, False, first), made


@pytest.mark.parametrize("window", [None, "day", "2d"])
def test_a_leaderboard_that_is_added_states_that_it_lacks_subjects(harness, window):
    """Until a rebuild, the error of all time is not known, and the buckets of the change are missing."""
    count(harness, {subject: 100 + i for i, subject in enumerate(SUBJECTS)})
    declare(harness, replace(PLAIN, top=30))
    count(harness, {"s00": 1})
    with closing(Totals(harness.url)) as totals:
        board = totals.top("m", window, n=30)
        assert not board.complete
        assert (board.error is None) == (window is None)
        if window is not None:
            assert board.places == []
        rebuilt(harness)
    with closing(Totals(harness.url)) as totals:
        board = totals.top("m", window, n=30)
        assert (board.complete, board.error, len(board.places)) == (True, 0, 30)


def test_a_leaderboard_that_is_removed_and_added_again_has_no_old_values(harness):
    """Values from before the removal are not shown."""
    declare(harness, replace(PLAIN, top=30))
    count(harness, {"s00": 100, "s01": 50})
    declare(harness, PLAIN)
    count(harness, {"s00": -90})
    declare(harness, replace(PLAIN, top=30))
    count(harness, {"s02": 1})
    with closing(Totals(harness.url)) as totals:
        board = totals.top("m")
        assert (board.places, board.error) == ([("s02", 1)], None)


def test_the_error_of_a_raised_leaderboard_covers_what_was_cut_off(harness):
    """After `top` is raised, a subject that was cut off is within the error until it gets an event."""
    declare(harness, replace(PLAIN, top=1))
    amounts = {subject: 100 + i for i, subject in enumerate(SUBJECTS)}
    count(harness, amounts)
    declare(harness, replace(PLAIN, top=30))
    count(harness, {"s39": 1})
    with closing(Totals(harness.url)) as totals:
        board = totals.top("m", n=30)
        listed = dict(board.places)
        unlisted = max(value for subject, value in amounts.items() if subject not in listed)
        assert len(listed) < 30
        assert board.error >= unlisted
        assert totals.top("m", n=5).error == 0, "the first places are right"
    answer = later(harness, query_top, "m", 30, "day", after=0)
    assert (answer.places, answer.complete) == ([], False)


SKETCHES = [
    (PLAIN, Metric(ids=None, exact=False)),
    (Metric(ids=None, exact=False), PLAIN),
    (Metric(ids=None, max_subjects=3), PLAIN),
    (Metric(ids=None, max_subjects=3), Metric(ids=None, max_subjects=30)),
    (Metric(ids=None, max_subjects=3), Metric(ids=None, exact=False)),
]


@pytest.mark.parametrize(("before", "after"), SKETCHES)
def test_a_total_is_the_sum_of_its_key_and_its_estimate(harness, before, after):
    """If a metric begins or ceases to be in a sketch, its totals have the events before and after the change."""
    harness.rules = Rules({"m": before})
    declare(harness, before)
    for times, rule in enumerate((before, after, before), 1):
        declare(harness, rule)
        count(harness, dict.fromkeys(SUBJECTS, 5))
        with closing(Totals(harness.url)) as totals:
            for subject in SUBJECTS:
                answer = totals.get(subject, "m")
                assert 0 <= answer.value - 5 * times <= answer.error, (subject, answer, times)


def test_a_decision_does_not_state_a_part_of_a_total(harness):
    """If a part of a total may be in the sketch, a decision states no total."""
    declare(harness, Metric(ids=None, max_subjects=1))
    count(harness, {"s00": 1, "s01": 5})
    declare(harness, Metric(ids=None))
    with Producer(harness.url) as producer:
        assert producer.decide("m", "s01").total is None


def test_votes_that_are_added_state_that_the_score_has_older_events(harness):
    """The number of votes is never negative, and the error is not known until a rebuild."""
    count(harness, {"s00": 10}, actor="u0")
    declare(harness, Metric(once="forever", ids=None))
    count(harness, {"s00": -1}, actor="u1")
    count(harness, {"s00": 1}, actor="u2")
    with closing(Totals(harness.url)) as totals:
        votes = totals.votes("s00", "m")
        assert (votes.score, votes.up, votes.error) == (10, 1, None)
        assert votes.down >= 0


def test_a_limit_that_is_added_states_that_events_are_not_included(harness):
    """In a period that began before the change, the number of used events is not known."""
    count(harness, {"s00": 1})
    declare(harness, Metric(ids=None, limit=5, per="total"))
    count(harness, {"s00": 1})
    with closing(Totals(harness.url)) as totals:
        assert totals.limit("s00", "m").error is None
        declare(harness, Metric(ids=None, limit=7, per="total"))
        rebuilt(harness)
    with closing(Totals(harness.url)) as totals:
        found = totals.limit("s00", "m")
        assert (found.used, found.error) == (2, 0)


def test_uniques_that_are_added_miss_the_buckets_before(harness):
    """The bucket of the change is missing; a bucket that begins later is complete."""
    count(harness, {"s00": 1}, actor="u0")
    declare(harness, replace(PLAIN, unique="hour"))
    count(harness, {"s00": 1}, actor="u1")
    assert not later(harness, query_uniques, "s00", "m", None, after=0).complete
    assert later(harness, query_uniques, "s00", "m", None, after=3 * 3600).complete


def test_a_new_metric_and_a_lowered_leaderboard_lack_nothing(harness):
    """A metric without events gets no marks, nor does a change that only leaves something out."""
    declare(harness, replace(PLAIN, top=30, windows=("hour", "day")))
    count(harness, {"s00": 1})
    declare(harness, replace(PLAIN, top=10, windows=("day",)))
    count(harness, {"s00": 1})
    with closing(Totals(harness.url)) as totals:
        for window in (None, "day"):
            board = totals.top("m", window)
            assert (board.places, board.complete, board.error) == ([("s00", 2)], True, 0)


FORMS = [
    (Metric(ids="day"), Metric(ids="day", seen="bloom")),
    (Metric(ids="day", seen="bloom"), Metric(ids="day")),
    (Metric(ids="day"), Metric(ids="month")),
    (Metric(ids="month"), Metric(ids="hour")),
    (Metric(ids="hour", seen="bloom"), Metric(ids="month")),
]


@pytest.mark.parametrize(("before", "after"), FORMS)
def test_ids_of_another_form_are_still_known(harness, before, after):
    """After `ids` or `seen` is changed, copies of earlier events are duplicates, and new events are not late."""
    keys = harness.layout.keys[0]
    declare(harness, before)
    count(harness, {"s00": 1}, id="first")
    # Workers have removed the ids of a week ago.
    harness.client.hset(keys.forgotten, "seen:m", int((time.time() - 7 * 86_400) * 1000))
    declare(harness, after)
    for id_ in ("first", "second", "second", "first"):
        count(harness, {"s00": 1}, id=id_)
    declare(harness, before)
    for id_ in ("first", "second", "third", "third"):
        count(harness, {"s00": 1}, id=id_)
    with closing(Totals(harness.url)) as totals:
        assert totals.get("s00", "m").value == 3
    outcomes = {name: events for name, events in harness.ledger().items() if "@" not in name}
    assert outcomes == {"appended": 9, "counted": 3, "duplicate": 6}
