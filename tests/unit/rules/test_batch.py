"""A batch: what events add up to, in the form that the script reads."""

from __future__ import annotations

import msgspec
import pytest

from tallystream.rules.batch import Batch, BucketResolver, board_length
from tallystream.rules.metrics import Metric, Rules
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
    """The places of the rules of this module."""
    return BucketResolver(RULES)


@pytest.fixture
def batch():
    """An empty batch."""
    return Batch(KEYS, "UTC")


@pytest.fixture
def add(batch, places):
    """Add one event at noon, or some milliseconds later."""

    def add(metric, subject="a", amount=1, *, after=0, actor=None, id_=None):
        at = NOON + after
        batch.add(places(metric, at // 60_000), subject, amount, at, actor, id_)

    return add


def encoded(batch, ids=(), ledger=None):
    """Return a batch as the script unpacks it."""
    return msgspec.msgpack.decode(batch.encode(list(ids), ledger or {}), strict=False)


def expiries(document):
    """Return until when each key is kept, 0 for ever."""
    return dict(zip(document["expire"][::2], document["expire"][1::2], strict=True))


def test_minutes_of_the_same_buckets_are_one_place(places):
    """All minutes of an hour are the same place of an hourly metric, and all minutes of any time of a plain one."""
    assert places("view", 0) is places("view", 59)
    assert places("view", 59) is not places("view", 60)
    assert places("plain", 0) is places("plain", 50_000_000)
    assert places("view", 0) is not places("plain", 0)


def test_the_labels_of_a_place(places):
    """A place is labelled by its limit's bucket first, empty without a limit, then by those of its windows."""
    minute = NOON // 60_000
    assert places("call", minute).labels == ("2026-03-01T12", "2026-03-01")
    assert places("view", minute).labels == ("", "2026-03-01T12", "2026-03-01")
    assert places("ever", minute).labels == ("total",)


def test_places_follow_the_zone():
    """A day's label is the zone's."""
    zoned = BucketResolver(Rules({"view": Metric(windows=("day",))}, zone="Pacific/Auckland"))
    assert zoned("view", NOON // 60_000).labels == ("", "2026-03-02")


def test_a_place_without_finer_windows(batch, places):
    """What goes to a day's bucket and coarser ones only leaves the hours alone; `total` leaves all buckets alone."""
    whole = places("view", NOON // 60_000)
    day, total = places.without_finer(whole, "day"), places.without_finer(whole, "total")
    assert (day.labels, total.labels) == (("", "", "2026-03-01"), ("", "", ""))
    assert places.without_finer(whole, "hour") is whole
    assert places.without_finer(whole, "day") is day
    batch.sums[day]["a"] -= 2
    assert encoded(batch)["windows"] == [[1, 2, "2026-03-01", 1]]
    batch.sums[total]["a"] -= 1
    document = encoded(batch)
    assert document["sums"] == [[1, ["a"], [-3]]]
    assert document["windows"] == [[1, 2, "2026-03-01", ["a"], [-2]]]
    assert expiries(document).keys() == {
        KEYS.window("day", "view", "2026-03-01"),
        KEYS.window_top("day", "view", "2026-03-01"),
    }


def test_events_of_one_hour_are_sent_once(batch, add):
    """Where all events lie in the same buckets, the windows refer to the column of the totals."""
    add("view", "a")
    add("view", "a", 4)
    add("view", "b", -1, after=60_000)
    document = encoded(batch)
    assert document["sums"] == [[1, ["a", "b"], [5, -1]]]
    assert document["windows"] == [[1, 1, "2026-03-01T12", 1], [1, 2, "2026-03-01", 1]]


def test_events_of_several_hours_are_added_by_bucket(batch, add):
    """Totals and days add up over hours; each hour has its own column."""
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
    """Events of a limited metric are no plain sum: the script must see how many were asked for in which bucket."""
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
    """Votes of a subject and period come together, each with actor, amount, time, place and record."""
    add("vote", actor="u1")
    add("vote", amount=-1, actor="u2", after=5)
    add("vote", "b", 0, actor="u1")
    vote_of_u2 = ["u2", -1, NOON + 5, 1, f"{NOON + 5} -1 - 2026-03-01"]
    document = encoded(batch)
    assert document["votes"] == [
        [1, KEYS.once("vote", "forever", "a"), "a", ["u1", 1, NOON, 1, f"{NOON} 1 - 2026-03-01"], vote_of_u2],
        [1, KEYS.once("vote", "forever", "b"), "b", ["u1", 0, NOON, 1, f"{NOON} 0 - 2026-03-01"]],
    ]
    assert document["labels"][0]["text"] == "- 2026-03-01"


def test_ids_go_by_period(batch, add):
    """Events with an id come by period; the record's field is subject and id, which no subject can forge."""
    add("plain", id_="x")
    add("plain", "b", 3, id_="x", after=12 * HOUR)
    document = encoded(batch)
    assert document["seen"] == [
        [1, KEYS.seen("plain", "2026-03-01"), ["a\nx", "a", 1, NOON, 1]],
        [1, KEYS.seen("plain", "2026-03-02"), ["b\nx", "b", 3, NOON + 12 * HOUR, 1]],
    ]
    assert document["labels"] == [{1: "", "text": ""}]


def test_an_id_that_no_rule_looks_at(batch, add):
    """Without `ids`, and in a sketch, an id changes nothing."""
    add("untold", id_="x")
    add("untold", id_="x")
    add("path", id_="x")
    document = encoded(batch)
    assert document["seen"] == []
    assert document["sums"] == [[1, ["a"], [2]]]
    assert document["sketches"] == [[2, ["a"], [1]]]


def test_actors_are_noted_once(batch, add):
    """An actor is in a batch once for each subject and bucket; an event without an actor is in none."""
    add("view", actor="u1")
    add("view", actor="u1")
    add("view")
    add("view", actor="u1", after=12 * HOUR)
    document = encoded(batch)
    assert document["uniques"] == [
        [1, KEYS.unique("view", "2026-03-01", ""), NOON + 12 * HOUR + 400 * 24 * HOUR, [["a", "u1"]]],
        [1, KEYS.unique("view", "2026-03-02", ""), NOON + 36 * HOUR + 400 * 24 * HOUR, [["a", "u1"]]],
    ]


def test_until_when_keys_are_kept(batch, add):
    """Each bucket's keys are kept from its end for as long as declared, and those of ever are kept for ever."""
    add("view", actor="u1")
    add("call")
    add("vote", actor="u1")
    add("daily", actor="u1")
    add("ever")
    add("plain", id_="x")
    day = 24 * HOUR
    midnight = NOON + 12 * HOUR
    found = expiries(encoded(batch))
    assert found == {
        KEYS.window("hour", "view", "2026-03-01T12"): NOON + HOUR + 8 * day,
        KEYS.window_top("hour", "view", "2026-03-01T12"): NOON + HOUR + 8 * day,
        KEYS.window("day", "view", "2026-03-01"): midnight + 400 * day,
        KEYS.window_top("day", "view", "2026-03-01"): midnight + 400 * day,
        KEYS.limit("call", "2026-03-01T12"): NOON + HOUR + 2 * HOUR,
        KEYS.window("day", "call", "2026-03-01"): midnight + 400 * day,
        KEYS.once("vote", "forever", "a"): 0,
        KEYS.window("day", "vote", "2026-03-01"): midnight + 400 * day,
        KEYS.once("daily", "2026-03-01", "a"): midnight + 7 * day,
        KEYS.limit("ever", "total"): 0,
        KEYS.seen("plain", "2026-03-01"): midnight + 7 * day,
    }


def test_what_the_script_is_told_of_a_rule(batch, add):
    """A rule is described once, by the key prefixes and the numbers that it goes by."""
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
    """The entries and the moves of the ledger go along; a batch without events is one all the same."""
    document = encoded(batch, ["1-0", "2-0"], {"appended": 3, "dead": 1})
    assert document["ids"] == ["1-0", "2-0"]
    assert document["ledger"] == ["appended", 3, "dead", 1]
    assert batch.counters == 0


def test_counters_grow_with_the_work(batch, add):
    """What a batch is bounded by grows with each counter that it touches, and not with events of the same."""
    work = [batch.counters]
    for metric in ("view", "plain", "call", "vote"):
        add(metric, actor="u1" if metric == "vote" else None)
        work.append(batch.counters)
    assert work == sorted(set(work))
    add("view")
    add("call")
    assert batch.counters == work[-1]


def test_boards_have_a_margin():
    """A leaderboard keeps at least 20 and half as many again as are shown; none is kept where none is declared."""
    assert [board_length(top) for top in (0, 1, 40, 100, 10_000)] == [0, 21, 60, 150, 15_000]
