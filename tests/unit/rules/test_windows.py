"""Buckets begin and end at the right times in every zone, and the fewest of them cover a range."""

from __future__ import annotations

import datetime as dt
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystream.errors import ConfigurationError
from tallystream.rules.windows import bucket, cover, labelled, seconds, zone_of
from tallystream.wire.window import DAY, HOUR, WINDOWS

ZONES = [
    "UTC",
    "Europe/Vienna",
    "America/New_York",
    "Africa/Cairo",
    "Asia/Kolkata",
    "America/Havana",
    "Australia/Lord_Howe",
]
moments = st.integers(0, 4_000_000_000)


def at(text: str) -> int:
    """Return a UTC time as seconds since 1970."""
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp())


@pytest.mark.parametrize(
    ("window", "label", "start", "end"),
    [
        ("minute", "2026-02-28T23:59", "2026-02-28T23:59", "2026-03-01T00:00"),
        ("hour", "2026-02-28T23", "2026-02-28T23:00", "2026-03-01T00:00"),
        ("day", "2026-02-28", "2026-02-28", "2026-03-01"),
        ("month", "2026-02", "2026-02-01", "2026-03-01"),
    ],
)
def test_labels(window, label, start, end):
    """The label of a bucket is the time at which it begins, and it ends when the next one begins."""
    found = bucket(window, at("2026-02-28T23:59:59") // 60)
    assert (found.label, found.start, found.end) == (label, at(start), at(end))


@pytest.mark.parametrize("window", ["forever", "total"])
def test_the_bucket_of_everything(window):
    """`forever` and `total` have one bucket for all times."""
    assert bucket(window, 0) == bucket(window, 50_000_000)
    assert bucket(window, 0).label == window


@pytest.mark.parametrize(
    ("day", "hours", "start", "end"),
    [
        ("2026-03-29", 23, "2026-03-28T23:00", "2026-03-29T22:00"),
        ("2026-10-25", 25, "2026-10-24T22:00", "2026-10-25T23:00"),
        ("2026-07-01", 24, "2026-06-30T22:00", "2026-07-01T22:00"),
    ],
)
def test_days_of_a_zone(day, hours, start, end):
    """The bucket of a day in Vienna has 23 hours when summer time begins, and 25 when it ends."""
    first, last = at(start), at(end) - 1
    for moment in (first, last, (first + last) // 2):
        found = bucket("day", moment // 60, "Europe/Vienna")
        assert (found.label, found.start, found.end) == (day, at(start), at(end))
    assert found.end - found.start == hours * HOUR


def test_months_of_a_zone():
    """The bucket of a month begins at midnight of the zone, and is an hour shorter if summer time begins in it."""
    found = bucket("month", at("2026-03-01T00:30") // 60, "Europe/Vienna")
    assert (found.label, found.start, found.end) == ("2026-03", at("2026-02-28T23:00"), at("2026-03-31T22:00"))
    assert found.end - found.start == 31 * DAY - HOUR


@given(moment=moments)
def test_aligned_days(moment):
    """Buckets of 30d follow one another from 1970, the same in every zone."""
    found = bucket("30d", moment // 60, "Europe/Vienna")
    number = moment // (30 * DAY)
    assert (found.label, found.start, found.end) == (f"30d-{number}", number * 30 * DAY, (number + 1) * 30 * DAY)


@given(window=st.sampled_from(WINDOWS), moment=moments, zone=st.sampled_from(ZONES))
def test_buckets_tile_time(window, moment, zone):
    """Each moment is in one bucket of a window; the next bucket begins when it ends, and has a larger label."""
    found = bucket(window, moment // 60, zone)
    assert found.start <= moment < found.end
    assert bucket(window, (found.end - 1) // 60, zone) == found
    following = bucket(window, found.end // 60, zone)
    assert following.start == found.end
    assert following.label > found.label


@given(
    start=moments,
    length=st.one_of(st.integers(0, 3 * HOUR), st.integers(0, 90 * DAY)),
    windows=st.sampled_from(
        [["hour"], ["day"], ["hour", "day"], ["month", "hour", "day"], ["day", "month"], ["minute", "day"]]
    ),
    zone=st.sampled_from(ZONES),
)
def test_cover(start, length, windows, zone):
    """Adjacent buckets cover a range up to the bounds of the finest window, and each is the largest that fits."""
    length = min(length, 2 * DAY) if "minute" in windows else length
    end = start + length
    covering = list(cover(start, end, windows, zone))
    finest = min(windows, key=WINDOWS.index)
    first, last = covering[0][1], covering[-1][1]
    assert first.start == bucket(finest, start // 60, zone).start
    assert last.end == bucket(finest, max(end - 1, start) // 60, zone).end
    for (_, before), (_, after) in pairwise(covering):
        assert before.end == after.start
    for window, each in covering:
        assert each == bucket(window, each.start // 60, zone)
        for coarser in WINDOWS[WINDOWS.index(window) + 1 :]:
            larger = bucket(coarser, each.start // 60, zone)
            fits = larger.start == each.start and larger.end <= last.end
            ends_at_a_bound = bucket(finest, larger.end // 60, zone).start == larger.end
            assert coarser not in windows or not (fits and ends_at_a_bound)


@given(
    now=st.integers(1_000_000_000, 2_000_000_000),
    length=st.integers(1, 60 * DAY),
    kept=st.dictionaries(st.sampled_from(["hour", "day", "month"]), st.integers(0, 90 * DAY), min_size=1),
    zone=st.sampled_from(ZONES),
)
def test_a_cover_of_what_is_kept(now, length, kept, zone):
    """A cover has only kept buckets, begins at the nearest bound at or before the range, or with the first kept one."""
    since = {window: bucket(window, (now - age) // 60, zone).start for window, age in kept.items()}
    start, windows = now - length + 1, list(kept)
    covering = cover(start, now + 1, windows, zone, since)
    assert all(each.start >= since[window] for window, each in covering)
    assert all(before.end == after.start for (_, before), (_, after) in pairwise(covering))
    holding = {window: bucket(window, start // 60, zone).start for window in windows}
    possible = [begin for window, begin in holding.items() if begin >= since[window]]
    begin = covering[0][1].start
    assert begin in possible if possible else begin == min(since.values())
    ends = [bucket(window, now // 60, zone).end for window in windows]
    assert now < covering[-1][1].end in ends


def test_a_cover_where_days_begin_within_an_hour():
    """In Kolkata hours and days have no bound in common: if hours are kept too short, days cover the whole range."""
    now = at("2026-03-10T15:00")
    since = {"hour": at("2026-03-02T15:00")}
    covering = cover(now - 30 * DAY, now, ["hour", "day"], "Asia/Kolkata", since)
    assert {window for window, _ in covering} == {"day"}
    assert covering[0][1].start == at("2026-02-07T18:30")
    assert covering[-1][1].end == at("2026-03-10T18:30")
    assert {window for window, _ in cover(now - 7 * DAY, now, ["hour", "day"], "Asia/Kolkata", since)} == {"hour"}


@given(start=st.integers(0, 10_000), hours=st.integers(1, 100))
def test_a_cover_has_the_fewest_buckets(start, hours):
    """`cover` returns the fewest hours and days that cover a range."""
    fewest = {start: 0}
    for hour in range(start + 1, start + hours + 1):
        fewest[hour] = fewest[hour - 1] + 1
        if hour % 24 == 0 and hour - 24 >= start:
            fewest[hour] = min(fewest[hour], fewest[hour - 24] + 1)
    covering = list(cover(start * HOUR, (start + hours) * HOUR, ["day", "hour"]))
    assert len(covering) == fewest[start + hours]


def test_a_day_that_ends_within_an_hour():
    """If a day ends within an hour because the clocks go back by half an hour, hours cover it, and none of it twice."""
    end = at("2026-04-08T00:00")
    covering = [each for _, each in cover(end - 7 * DAY, end, ["hour", "day"], "Australia/Lord_Howe")]
    assert all(before.end == after.start for before, after in pairwise(covering))
    assert sum(each.end - each.start for each in covering) == 7 * DAY


def test_a_week_takes_few_buckets():
    """Seven days that end in the middle of a day are covered by six days and 24 hours."""
    end = at("2026-03-10T15:00")
    covering = list(cover(end - 7 * DAY, end, ["hour", "day", "month"]))
    assert [window for window, _ in covering] == ["hour"] * 9 + ["day"] * 6 + ["hour"] * 15


@pytest.mark.parametrize(
    ("duration", "expected"),
    [("90s", 90), ("15m", 900), ("8h", 28_800), ("400d", 400 * DAY), ("forever", None)],
)
def test_durations(duration, expected):
    """A duration is a whole number and a unit, or `forever`; `seconds` returns its length."""
    assert seconds(duration) == expected


@pytest.mark.parametrize("duration", ["", "d", "0d", "-1d", "1", "1w", "1.5h", " 1h", "1h\n", "99999999s", "\u0661d"])
def test_what_is_no_duration(duration):
    """The error for an invalid duration shows the valid forms."""
    with pytest.raises(ValueError, match="is not a duration: write 90s, 15m, 8h, 400d or forever"):
        seconds(duration)


@pytest.mark.parametrize("zone", ["", "Wien", "../etc/passwd", "/etc/localtime", "Europe", "a\0b"])
def test_what_is_no_zone(zone):
    """The name of a time zone that does not exist, or that would be a path, is a configuration error."""
    with pytest.raises(ConfigurationError, match="is not a time zone such as UTC or Europe/Vienna"):
        zone_of(zone)


@given(second=moments, zone=st.sampled_from(ZONES), window=st.sampled_from([*WINDOWS, "forever", "30d", "6h"]))
def test_a_label_names_its_bucket(second, zone, window):
    """`labelled` returns the bucket of a label in every zone, and `None` for a text that is no label."""
    found = bucket(window, second // 60, zone)
    assert labelled(window, found.label, zone) == found
    assert labelled(window, f"{found.label}x", zone) is None
