"""A batch adds events up, and encodes them in the form that the scripts read."""

from __future__ import annotations

import msgspec
import pytest

from tallystream.rules.batch import Batch, BucketResolver
from tallystream.rules.metrics import Metric, Rules
from tallystream.rules.parts import board_length
from tallystream.storage.keys import Layout

NOON = 1_772_366_400_000
"""2026-03-01T12:00 in milliseconds."""
HOUR = 3_600_000
RULES = Rules(
    {
        "view": Metric(windows=("hour", "day"), top=10, unique="day"),
        "plain": Metric(),
        "call": Metric(windows=("day",), limit=3, per="hour", accept_late="2h"),
        "ever": Metric(limit=3, per="total"),
        "vote": Metric(windows=("day",), once="forever"),
        "daily": Metric(once="day"),
        "path": Metric(exact=False, top=5),
        "few": Metric(max_subjects=7),
        "untold": Metric(ids=None),
    }
)
KEYS = Layout(1).keys[0]


@pytest.fixture
def places():
    """Return the resolver of the rules of this module."""
    return BucketResolver(RULES)


@pytest.fixture
def batch():
    """Return an empty batch."""
    return Batch(KEYS, "UTC")


@pytest.fixture
def add(batch, places):
    """Return a function that adds one event at noon, or `after` milliseconds later."""

    def add(metric, subject="a", amount=1, *, after=0, actor=None, id_=None):
        at = NOON + after
        batch.add(places(metric, at // 60_000), subject, amount, at, actor, id_)

    return add


def encoded(batch, ids=(), ledger=None):
    """Return a batch in the form in which the script unpacks it."""
    return msgspec.msgpack.decode(batch.encode(list(ids), ledger or {}), strict=False)


def expiries(document):
    """Return the millisecond until which the state of each rule is kept, or each bucket is open; 0 means forever."""
    return {key: until for _, _, until, *keys in document["periods"] for key in keys} | document["closes"]


def test_minutes_of_the_same_buckets_are_one_place(places):
    """An hourly metric has one place for all minutes of an hour, and a metric without windows one for all minutes."""
    assert places("view", 0) is places("view", 59)
    assert places("view", 59) is not places("view", 60)
    assert places("plain", 0) is places("plain", 50_000_000)
    assert places("view", 0) is not places("plain", 0)


def test_the_labels_of_a_place(places):
    """The labels of a place are that of its limit's bucket (`""` without a limit), then those of its windows."""
    minute = NOON // 60_000
    assert places("call", minute).labels == ("2026-03-01T12", "2026-03-01")
    assert places("view", minute).labels == ("", "2026-03-01T12", "2026-03-01")
    assert places("ever", minute).labels == ("total",)


def test_places_follow_the_zone():
    """The label of a day is the date in the declared time zone."""
    zoned = BucketResolver(Rules({"view": Metric(windows=("day",))}, zone="Pacific/Auckland"))
    assert zoned("view", NOON // 60_000).labels == ("", "2026-03-02")


def test_a_batch_of_a_reset_names_the_subject(batch, places):
    """A reset has the number of its rule, its subject and its place in the log; a batch without one has no such key."""
    assert "resets" not in encoded(batch)
    batch.add_reset(places("view", NOON // 60_000), "a", "5-0")
    document = encoded(batch)
    assert [rule["metric"] for rule in document["rules"]] == ["view"]
    assert document["resets"] == [[1, "a", "5-0"]]
    assert document["sums"] == document["windows"] == []


def test_a_place_without_closed_buckets(batch, places):
    """An event has no bucket that closed before the server received it, and is no actor of a closed bucket."""
    whole = places("view", NOON // 60_000)
    closes = NOON + HOUR + 8 * 24 * HOUR
    assert places.open(whole, closes - 1) is whole
    day = places.open(whole, closes)
    assert day.labels == ("", "", "2026-03-01")
    assert places.open(whole, closes + 1) is day
    assert places.open(whole, NOON + 500 * 24 * HOUR).labels == ("", "", "")
    for received in (closes, NOON + 401 * 24 * HOUR):
        batch.add(places.open(whole, received), "a", 1, NOON, f"u{received}", None, received=received)
        batch.add_visits(places.open(whole, received), NOON // 60_000, ["b"], [f"u{received}"], received=received)
    document = encoded(batch)
    assert document["sums"] == [[1, ["a", "b"], [2, 2]]]
    assert document["windows"] == [[1, 2, "2026-03-01", ["a", "b"], [1, 1]]]
    assert [by_subject for *_, by_subject in document["uniques"]] == [[["a", f"u{closes}"], ["b", f"u{closes}"]]]


def test_events_of_one_hour_are_sent_once(batch, add):
    """If all events are in the same buckets, the windows refer to the column of the totals."""
    add("view", "a")
    add("view", "a", 4)
    add("view", "b", -1, after=60_000)
    document = encoded(batch)
    assert document["sums"] == [[1, ["a", "b"], [5, -1]]]
    assert document["windows"] == [[1, 1, "2026-03-01T12", 1], [1, 2, "2026-03-01", 1]]


def test_events_of_several_hours_are_added_by_bucket(batch, add):
    """Events of several hours have one column for the totals, one for the day, and one for each hour."""
    add("view", "a")
    add("view", "b", after=HOUR)
    add("view", "a", 2, after=HOUR)
    document = encoded(batch)
    assert document["sums"] == [[1, ["a", "b"], [3, 1]]]
    assert document["windows"] == [
        [1, 1, "2026-03-01T12", ["a"], [1]],
        [1, 1, "2026-03-01T13", ["b", "a"], [1, 2]],
        [1, 2, "2026-03-01", ["a", "b"], [3, 1]],
    ]


def test_limited_events_are_counted_by_bucket(batch, add):
    """Events of a metric with a limit are sent by bucket of the limit, not as plain sums."""
    add("call")
    add("call")
    add("call", after=HOUR)
    document = encoded(batch)
    assert document["sums"] == []
    assert [column[2:] for column in document["limited"]] == [[["a"], [2]], [["a"], [1]]]
    assert [document["labels"][column[1] - 1]["text"] for column in document["limited"]] == [
        "2026-03-01T12 2026-03-01",
        "2026-03-01T13 2026-03-01",
    ]


def test_votes_go_by_actor_one_by_one(batch, add):
    """The votes for a subject in a period are sent together, each with actor, amount, time, labels and record.

    A vote without a place in the log has the two parts of its record between which the script writes the place.
    """
    add("vote", actor="u1")
    add("vote", amount=-1, actor="u2", after=5)
    add("vote", "b", 0, actor="u1")
    vote_of_u2 = ["u2", -1, NOON + 5, 1, f"{NOON + 5}@", " -1 - 2026-03-01"]
    document = encoded(batch)
    assert document["votes"] == [
        [1, KEYS.once("vote", "forever", "a"), "a", ["u1", 1, NOON, 1, f"{NOON}@", " 1 - 2026-03-01"], vote_of_u2],
        [1, KEYS.once("vote", "forever", "b"), "b", ["u1", 0, NOON, 1, f"{NOON}@", " 0 - 2026-03-01"]],
    ]
    assert document["labels"][0]["text"] == "- 2026-03-01"


def test_the_place_of_a_vote_is_in_its_record(batch):
    """The record of a vote has its place in the log: its entry's ID relative to its time, and its rank in the entry."""
    place = BucketResolver(RULES)("vote", NOON // 60_000)
    batch.add(place, "a", 1, NOON, "u1", None, (NOON + 7, 3, 0))
    batch.add(place, "a", 0, NOON, "u1", None, (NOON + 7, 3, 1))
    batch.add(place, "a", 1, NOON + 9, "u1", None, (NOON, 0, 0))
    assert [vote[4:] for vote in encoded(batch)["votes"][0][3:]] == [
        [f"{NOON}@7.3 1 - 2026-03-01", 7, 3, 0],
        [f"{NOON}@7.3.1 0 - 2026-03-01", 7, 3, 1],
        [f"{NOON + 9}@-9.0 1 - 2026-03-01", -9, 0, 0],
    ]


def test_ids_go_by_period(batch, add):
    """Events with an id are sent by period, each under subject, line feed and id: no subject contains a line feed.

    A period comes with the keys of its neighbours and its beginning.
    """
    add("plain", id_="x")
    add("plain", "b", 3, id_="x", after=12 * HOUR)
    document = encoded(batch)
    day = 24 * HOUR
    first, second, third, fourth = (KEYS.seen("plain", f"1d-{NOON // day + n}") for n in (-1, 0, 1, 2))
    midnight = NOON // day * day
    until = midnight + (1 + 1 + 7) * day + HOUR
    assert document["seen"] == [
        [1, second, first, third, midnight, ["a\nx", "a", 1, NOON, 1]],
        [1, third, second, fourth, midnight + day, ["b\nx", "b", 3, NOON + 12 * HOUR, 1]],
    ]
    assert batch.ends[second] == until
    assert document["labels"] == [{1: "", "text": ""}]


def test_an_id_that_no_rule_looks_at(batch, add):
    """An id is ignored if its metric has no `ids`."""
    add("untold", id_="x")
    add("untold", id_="x")
    document = encoded(batch)
    assert document["seen"] == []
    assert document["sums"] == [[1, ["a"], [2]]]


def test_actors_are_noted_once(batch, add):
    """A batch has each actor once for each subject and bucket of uniques; events without an actor add none."""
    add("view", actor="u1")
    add("view", actor="u1")
    add("view")
    add("view", actor="u1", after=12 * HOUR)
    document = encoded(batch)
    midnight, day, kept = NOON + 12 * HOUR, 24 * HOUR, 400 * 24 * HOUR
    assert document["uniques"] == [
        [1, KEYS.unique("view", "2026-03-01", ""), midnight + kept, midnight, [], [["a", "u1"]]],
        [1, KEYS.unique("view", "2026-03-02", ""), midnight + day + kept, midnight + day, [], [["a", "u1"]]],
    ]


def test_until_when_keys_are_kept(batch, add):
    """Keys are kept for the declared time after their period, state an hour longer; `forever` and `total` are none."""
    add("view", actor="u1")
    add("call")
    add("vote", actor="u1")
    add("daily", actor="u1")
    add("ever")
    day = 24 * HOUR
    midnight = NOON + 12 * HOUR
    found = expiries(encoded(batch))
    assert found == {
        KEYS.window("hour", "view", "2026-03-01T12"): NOON + HOUR + 8 * day,
        KEYS.window_top("hour", "view", "2026-03-01T12"): NOON + HOUR + 8 * day,
        KEYS.window("day", "view", "2026-03-01"): midnight + 400 * day,
        KEYS.window_top("day", "view", "2026-03-01"): midnight + 400 * day,
        KEYS.limit("call", "2026-03-01T12"): NOON + HOUR + 3 * HOUR,
        KEYS.window("day", "call", "2026-03-01"): midnight + 400 * day,
        KEYS.window("day", "vote", "2026-03-01"): midnight + 400 * day,
        KEYS.once("daily", "2026-03-01", "a"): midnight + 7 * day + HOUR,
    }


def test_what_the_script_is_told_of_a_rule(batch, add):
    """A batch describes each rule once, with its key prefixes and numbers."""
    add("call")
    add("call", "b")
    add("few")
    add("view")
    call, few, view = sorted(encoded(batch)["rules"], key=lambda rule: rule["metric"])
    assert (call["limit"], call["limits"], call["top"]) == (3, KEYS.limit("call", ""), 0)
    assert (few["quota"], few["sketch"], few["windows"]) == (7, KEYS.sketch("few"), [])
    assert view["top"] == board_length(10)
    assert view["windows"] == [KEYS.window("hour", "view", ""), KEYS.window("day", "view", "")]
    assert view["tops"][1:] == [KEYS.window_top("hour", "view", ""), KEYS.window_top("day", "view", "")]


def test_what_else_goes_with_a_batch(batch):
    """A batch has the IDs of its entries and the additions to the ledger, even without events."""
    document = encoded(batch, ["1-0", "2-0"], {"appended": 3, "dead": 1})
    assert document["ids"] == ["1-0", "2-0"]
    assert document["ledger"] == ["appended", 3, "dead", 1]
    assert batch.counters == 0


def test_counters_grow_with_the_work(batch, add):
    """`Batch.counters` grows with each counter that the batch changes, not with more events of the same counter."""
    work = [batch.counters]
    for metric in ("view", "plain", "call", "vote"):
        add(metric, actor="u1" if metric == "vote" else None)
        work.append(batch.counters)
    assert work == sorted(set(work))
    add("view")
    add("call")
    assert batch.counters == work[-1]


def test_boards_have_a_margin():
    """A leaderboard keeps 20 subjects more than it shows, or half as many again; without `top` it keeps none."""
    assert [board_length(top) for top in (0, 1, 40, 100, 10_000)] == [0, 21, 60, 150, 15_000]
