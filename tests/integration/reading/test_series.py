"""Series, sums over ranges, and leaderboards of windows are exactly those that the times of the events give."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest

from tallystream.errors import EventError
from tallystream.producing.producer import Producer
from tallystream.reading.leaderboards import query_top
from tallystream.reading.series import query_rolling, query_series
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules
from tallystream.rules.windows import bucket, seconds
from tallystream.wire.window import DAY, HOUR
from tests.harness import Harness

ZONE = "Europe/Vienna"
RULES = Rules(
    {
        "view": Metric(windows=("hour", "day", "month"), top=5),
        "like": Metric(windows=("day",), floor=0),
        "click": Metric(windows=("minute", "hour"), retention={"minute": "3h", "hour": "forever"}, top=2),
        "call": Metric(windows=("day",), limit=2, per="hour", accept_late="2d"),
        "daily": Metric(once="day", unique="hour", accept_late="3d"),
        "plain": Metric(),
    },
    zone=ZONE,
)
SUBJECT = "article:1"


@pytest.fixture
def harness(server):
    """Return a harness on an empty server, with the rules of this module."""
    with Harness(server.url, rules=RULES, partitions=2) as wired:
        yield wired


@pytest.fixture
def ask(harness):
    """Return a function that runs a query, made by a given function for this module's rules."""
    with Totals(harness.url) as totals:
        yield lambda query, *arguments, **named: totals.run(query(harness.layout, RULES, *arguments, **named))


def count(harness, events):
    """Emit events, each `(metric, subject, amount, at)`, and count them."""
    with Producer(harness.url, linger=0.001) as producer:
        for metric, subject, amount, at in events:
            producer.emit(metric, subject, amount, at=at, actor="u1" if metric == "daily" else None)
    harness.drain()


def scattered(now, days, events, subjects=1, seed=3):
    """Return views at random times in the last `days` days; the first subjects have most of them."""
    draw = random.Random(seed)
    names = [f"article:{number + 1}" for number in range(subjects)]
    weights = [1 / (rank + 1) for rank in range(subjects)]
    return [
        ("view", draw.choices(names, weights)[0], draw.choice([1, 1, 1, 4]), now - draw.random() * days * DAY)
        for _ in range(events)
    ]


@pytest.mark.parametrize(("window", "last"), [("hour", 30), ("day", 12), ("month", 2)])
def test_a_series_has_every_bucket(harness, ask, window, last):
    """A series has the latest buckets, oldest first, with 0 for buckets without events, in the days of the zone."""
    now = time.time()
    events = scattered(now, 10, 200)
    count(harness, events)
    expected = Counter()
    for _, _, amount, at in events:
        expected[bucket(window, int(at) // 60, ZONE).label] += amount
    series = ask(query_series, SUBJECT, "view", window, last, now)
    assert len(series.series) == last
    assert series.series[-1].bucket == bucket(window, int(now) // 60, ZONE).label
    assert [point.value for point in series.series] == [expected[point.bucket] for point in series.series]
    starts = [point.start for point in series.series]
    assert starts == sorted(set(starts))
    assert series.lag == 0


@pytest.mark.parametrize(("over", "begins"), [("24h", HOUR), ("7d", HOUR), ("90m", HOUR), ("40d", 25 * HOUR)])
def test_a_rolling_sum_is_exact(harness, ask, over, begins):
    """A sum over a range is exactly the sum between its stated bounds, which exceed the range by less than a bucket.

    The bucket is that of the finest window that is kept: hours, or days if the range began before the first hour.
    """
    now = time.time()
    events = scattered(now, 10, 400)
    count(harness, events)
    rolling = ask(query_rolling, SUBJECT, "view", over, now)
    assert rolling.value == sum(amount for _, _, amount, at in events if rolling.start <= at < rolling.end)
    begin = int(now) - seconds(over) + 1
    assert begin - begins < rolling.start <= begin
    assert rolling.complete
    assert now < rolling.end <= now + HOUR


def test_a_rolling_week_reads_few_buckets(ask):
    """Seven days are read from 7 to 54 buckets: at most six days and the hours of two days."""
    for hour in range(24):
        rolling = ask(query_rolling, SUBJECT, "view", "7d", time.time() + hour * HOUR)
        assert 7 <= rolling.buckets <= 6 + 2 * 24


def test_a_window_is_shown_from_its_floor(harness, ask):
    """A bucket below the floor is shown as the floor; in a sum over days, only the whole sum is compared with it."""
    now = bucket("day", int(time.time()) // 60, ZONE).start - DAY / 2  # about noon: far from where days meet
    yesterday = now - DAY
    count(harness, [("like", SUBJECT, -2, now), ("like", SUBJECT, 3, yesterday)])
    assert [point.value for point in ask(query_series, SUBJECT, "like", "day", 2, now).series] == [3, 0]
    assert ask(query_rolling, SUBJECT, "like", "1d", now).value == 1


def test_until_when_keys_are_kept(harness):
    """No key expires: a bucket is kept until it closes, state until an hour after its last event may arrive.

    A leaderboard is removed with its bucket. With `forever` a bucket never closes.
    """
    now = int(time.time())
    count(harness, [(metric, SUBJECT, 1, now) for metric in ("view", "click", "call", "daily")])
    keys = harness.layout.keys_of(SUBJECT)

    def label(window):
        return bucket(window, now // 60, ZONE).label

    def kept(key, window):
        """Return for how many seconds after its bucket a key is kept; `None` if it is not registered for removal."""
        assert harness.client.pexpiretime(key) == -1, key  # it exists
        end = bucket(window, now // 60, ZONE).end
        until = harness.client.zscore(keys.periods, f"{end * 1000} {key.removeprefix(keys.counters)}")
        return None if until is None else until / 1000 - end

    assert kept(keys.window("hour", "view", label("hour")), "hour") == 8 * DAY
    assert kept(keys.window_top("hour", "view", label("hour")), "hour") is None
    assert kept(keys.window("day", "view", label("day")), "day") == 400 * DAY
    assert kept(keys.window("month", "view", label("month")), "month") is None
    assert kept(keys.window("hour", "click", label("hour")), "hour") is None
    assert kept(keys.limit("call", label("hour")), "hour") == 2 * DAY + HOUR
    assert kept(keys.once("daily", label("day"), SUBJECT), "day") == 3 * DAY + HOUR
    assert kept(keys.unique("daily", label("hour"), SUBJECT), "hour") == 8 * DAY
    assert kept(keys.total("view", SUBJECT), "hour") is None
    assert kept(keys.top("view"), "hour") is None


def test_an_event_of_a_closed_bucket_is_not_added_to_it(harness, ask):
    """An event of an hour that has closed counts in its day, in the total, and in no hour; a series shows no figure."""
    now = time.time()
    long_ago = now - 30 * DAY
    count(harness, [("view", SUBJECT, 1, long_ago), ("view", SUBJECT, 1, now)])
    keys = harness.layout.keys_of(SUBJECT)
    assert not harness.client.exists(keys.window("hour", "view", bucket("hour", int(long_ago) // 60).label))
    hours, days = (
        ask(query_series, SUBJECT, "view", window, last, now) for window, last in (("hour", 800), ("day", 40))
    )
    known = [point.value for point in hours.series if point.value is not None]
    assert (len(known), sum(known), hours.complete) == (8 * 24 + 1, 1, False)
    assert [(span.start, span.end) for span in hours.missing] == [(hours.series[0].start, hours.start)]
    assert (sum(point.value for point in days.series), days.complete, days.missing) == (2, True, [])


@pytest.mark.parametrize("window", [None, "hour", "day", "month", "7d", "24h"])
def test_tops_are_exact(harness, ask, window):
    """If all subjects fit, a leaderboard of all time, of a bucket or of a range has the exact order of the sums."""
    now = time.time()
    events = scattered(now, 9, 500, subjects=20)
    count(harness, events)
    expected = Counter()
    rolling = ask(query_rolling, SUBJECT, "view", window, now) if window in ("7d", "24h") else None
    for _, subject, amount, at in events:
        if rolling is not None:
            inside = rolling.start <= at < rolling.end
        else:
            inside = window is None or bucket(window, int(at) // 60, ZONE) == bucket(window, int(now) // 60, ZONE)
        expected[subject] += amount * inside
    places = sorted((+expected).items(), key=lambda place: (place[1], place[0].encode()), reverse=True)
    ranking = ask(query_top, "view", 5, window, now=now)
    assert ranking.places == places[:5]
    assert ranking.error == 0


def test_a_rolling_top_states_what_it_cannot_know(harness, ask):
    """If some subjects do not fit, values are exact, and no subject left out has more than the last plus `error`."""
    now = time.time()
    events = scattered(now, 6, 4000, subjects=400)
    count(harness, events)
    exact = Counter()
    for _, subject, amount, _ in events:
        exact[subject] += amount
    ranking = ask(query_top, "view", 5, "7d", now=now)
    assert all(exact[subject] == value for subject, value in ranking.places)
    listed = {subject for subject, _ in ranking.places}
    best_unlisted = max(value for subject, value in exact.items() if subject not in listed)
    assert best_unlisted <= ranking.places[-1][1] + ranking.error


@pytest.mark.parametrize(
    ("query", "arguments", "field", "message"),
    [
        (
            query_series,
            (SUBJECT, "view", "week", 3),
            "window",
            "is not a window of view; its windows are: hour, day, month",
        ),
        (query_series, (SUBJECT, "plain", "day", 3), "window", "its windows are: none"),
        (query_series, (SUBJECT, "view", "hour", 1001), "last", "must be 1 to 1,000 buckets, not 1,001"),
        (query_series, (SUBJECT, "view", "hour", 0), "last", "must be 1 to 1,000 buckets, not 0"),
        (query_series, (SUBJECT, "veiw", "hour", 1), "metric", "veiw is not declared"),
        (query_series, ("a\nb", "view", "hour", 1), "subject", "control characters"),
        (query_rolling, (SUBJECT, "plain", "7d"), "metric", "plain has no windows: declare windows"),
        (query_rolling, (SUBJECT, "view", "a week"), "over", "'a week' is not a duration"),
        (query_rolling, (SUBJECT, "view", "forever"), "over", "must be at most 4000d"),
        (query_rolling, (SUBJECT, "view", "4001d"), "over", "must be at most 4000d"),
        (query_rolling, (SUBJECT, "click", "60d"), "over", "would read more than 1,000 minute buckets"),
    ],
)
def test_questions_that_cannot_be_answered(ask, query, arguments, field, message):
    """A query for a window or a range that cannot be read is rejected with the field and the allowed values."""
    with pytest.raises(EventError, match=message) as refused:
        ask(query, *arguments, time.time())
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("arguments", "field", "message"),
    [
        (("plain", 1, None), "metric", "plain has no leaderboard: declare top = 100"),
        (("view", 6, None), "n", "must be 1 to 5, the length of view's leaderboard, not 6"),
        (("view", 0, None), "n", "must be 1 to 5"),
        (("view", 5, "minute"), "window", "'minute' is not a window of view"),
        (("view", 5, "long"), "over", "'long' is not a duration"),
    ],
)
def test_tops_that_are_not_kept(ask, arguments, field, message):
    """A query for a leaderboard that does not exist or is shorter is rejected with the field and the allowed values."""
    with pytest.raises(EventError, match=message) as refused:
        ask(query_top, *arguments, now=time.time())
    assert refused.value.field == field
