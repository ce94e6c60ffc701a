"""Days and months are right in every time zone, and only windows that nest in it can be combined with a limit."""

from __future__ import annotations

import datetime as dt
from functools import lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystream.errors import ConfigurationError
from tallystream.rules.metrics import Metric, Rules, publish, read
from tallystream.rules.windows import bucket, labelled, straddled, zone_names, zone_of
from tallystream.wire.window import DAY, HOUR, WINDOWS
from tests.oracle_rules import label_of

ZONES = sorted(zone_names() & available_timezones())
FIRST, LAST = 0, 2_208_988_800
CALENDAR = ("day", "month")


@lru_cache(maxsize=1024)
def changes(name: str) -> tuple[int, ...]:
    """Return the seconds from 1970 to 2040 at which the clocks of a zone change."""
    found = []
    for low, high in pairwise(range(FIRST, LAST, 6 * DAY)):
        before, after = low, high
        if offset(name, low) == offset(name, high):
            continue
        while before + 1 < after:
            middle = (before + after) // 2
            before, after = (middle, after) if offset(name, middle) == offset(name, low) else (before, middle)
        found.append(after)
    return tuple(found)


def near_changes(name: str) -> list[int]:
    """Return minutes in which days of a zone may begin or end in a special way: near changes, and of leap days."""
    minutes = [change // 60 + near for change in changes(name) for near in (-1440, -61, -1, 0, 29, 60, 180)]
    leap_days = [int(dt.datetime(year, 2, 29, tzinfo=dt.UTC).timestamp()) // 60 for year in (1972, 2024, 2028)]
    return [max(0, minute) for minute in (*minutes, *(leap + day * 1440 for leap in leap_days for day in (-1, 0, 1)))]


@lru_cache(maxsize=1)
def different_zones() -> list[str]:
    """Return one name of each zone, because many names are of the same."""
    return list({(changes(zone), offset(zone, 0), offset(zone, LAST)): zone for zone in ZONES}.values())


def offset(name: str, second: int) -> dt.timedelta | None:
    """Return the offset of the clocks of a zone from UTC."""
    return dt.datetime.fromtimestamp(second, ZoneInfo(name)).utcoffset()


def test_days_and_months_follow_one_another_in_every_zone():
    """In every zone, also when its clocks change, each minute is in one day and month, which the oracle names alike."""
    for zone in different_zones():
        for window in CALENDAR:
            seen = set()
            for minute in near_changes(zone):
                found = bucket(window, minute, zone)
                assert found.start <= minute * 60 < found.end, (zone, window, minute)
                seen.add(found)
            for found in seen:
                assert bucket(window, found.start // 60, zone) == found, (zone, found)
                assert bucket(window, found.end // 60 - 1, zone) == found, (zone, found)
                following = bucket(window, found.end // 60, zone)
                assert following.start == found.end, (zone, found)
                assert following.label > found.label, (zone, found)
                assert labelled(window, found.label, zone) == found, (zone, found)


@given(zone=st.sampled_from(ZONES), window=st.sampled_from(WINDOWS), data=st.data())
def test_the_oracle_names_every_bucket_alike(zone, window, data):
    """In every zone, the bucket of a minute has the label that the oracle gives it."""
    minute = data.draw(st.one_of(st.integers(FIRST // 60, LAST // 60), st.sampled_from(near_changes(zone))))
    assert bucket(window, minute, zone).label == label_of(window, minute, zone)


def labels_in(finer: str, coarser: str, minute: int, zone: str) -> set[str]:
    """Return the labels of the buckets of `coarser` in which the minutes of one bucket of `finer` are."""
    each = bucket(finer, minute, zone)
    last = min(each.end // 60, each.start // 60 + 40 * 1440)
    step = 1 if finer in ("minute", "hour") else 30
    return {label_of(coarser, at, zone) for at in (*range(each.start // 60, last, step), last - 1)}


@given(
    zone=st.sampled_from(ZONES),
    pair=st.sampled_from([(finer, coarser) for finer in WINDOWS for coarser in WINDOWS]),
    since=st.sampled_from([0, 1_000_000_000, 1_577_836_800]),
    data=st.data(),
)
def test_windows_nest_by_the_definition(zone, pair, since, data):
    """Two windows nest in a zone if and only if each bucket of the finer one is in one bucket of the coarser one."""
    finer, coarser = pair
    found = straddled(finer, coarser, zone, since)
    if found is not None:
        if WINDOWS.index(finer) <= WINDOWS.index(coarser):
            assert len(labels_in(finer, coarser, found.start // 60, zone)) == 2
        return
    minutes = [minute for minute in near_changes(zone) if minute * 60 >= since]
    for minute in data.draw(st.lists(st.sampled_from(minutes), max_size=3)):
        begin = bucket(coarser, minute, zone)
        for at in (minute, begin.start // 60, begin.end // 60):
            if at * 60 >= since:
                assert len(labels_in(finer, coarser, at, zone)) == 1, (zone, pair, at)


def test_hours_nest_in_days_where_every_midnight_is_at_a_full_hour():
    """In every zone, hours nest in its days since 2020 if and only if each of these days begins at a full hour."""
    refused = {zone for zone in different_zones() if straddled("hour", "day", zone, 1_577_836_800) is not None}
    for zone in different_zones():
        minutes = [*near_changes(zone), *range(26_300_000, 35_000_000, 80_000)]
        starts = {bucket("day", minute, zone).start for minute in minutes if minute * 60 >= 1_577_836_800}
        assert any(start % HOUR for start in starts) == (zone in refused), zone


LIMITED = Metric(limit=10, per="hour", windows=("hour", "day"))


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns"])
@pytest.mark.parametrize("window", CALENDAR)
def test_a_limit_per_hour_with_days_that_begin_within_an_hour(zone, window):
    """A window that divides an hour of the limit is refused: the message names both, the zone and the remedy."""
    rule = Metric(limit=10, per="hour", windows=("hour", window))
    with pytest.raises(ConfigurationError) as refused:
        Rules({"m": rule}, zone=zone)
    for part in ("[metric.m] windows:", window, "per = hour", zone, "UTC, within an hour", 'per = "minute"'):
        assert part in str(refused.value)
    for fine in (
        Metric(limit=1, per="minute", windows=("hour", window)),
        Metric(limit=1, per="day", windows=("month",)),
    ):
        assert Rules({"m": fine}, zone=zone).metric["m"] == fine


@pytest.mark.parametrize("zone", ["UTC", "Europe/Vienna", "Pacific/Apia", "Antarctica/Troll", "Asia/Singapore"])
def test_a_limit_per_hour_with_days_of_full_hours(zone):
    """A limit per hour with days is accepted in a zone whose days begin at full hours."""
    assert Rules({"m": LIMITED}, zone=zone).zone == zone


def test_a_limit_that_accepts_events_of_any_age():
    """With `accept_late = "forever"` the days of every year count: in Singapore they began at half past until 1982."""
    rule = Metric(limit=10, per="hour", windows=("day",), accept_late="forever")
    with pytest.raises(ConfigurationError, match="the day 1970-01-01 begins at 16:30 UTC"):
        Rules({"m": rule}, zone="Asia/Singapore")


def test_published_rules_are_checked_like_declared_ones():
    """A process refuses published rules whose windows do not nest, and whose zone is that of its host."""
    text = publish(Rules({"m": LIMITED}, zone="Europe/Vienna"))
    assert read(text).zone == "Europe/Vienna"
    for zone, reason in (("Asia/Kolkata", "do not nest"), ("localtime", "the same meaning on every host")):
        with pytest.raises(ConfigurationError, match=f"published are not valid: .*{reason}"):
            read(text.replace(b"Europe/Vienna", zone.encode()))


@pytest.mark.parametrize(
    "zone",
    ["localtime", "posixrules", "Factory", "posix/Europe/Vienna", "right/Europe/Vienna", "europe/vienna", "Local"],
)
def test_zones_that_differ_between_hosts(zone):
    """A name that is the zone of the host, or that not every host has, is refused even if this host has it."""
    with pytest.raises(ConfigurationError, match="with the same meaning on every host"):
        zone_of(zone)
    with pytest.raises(ConfigurationError, match="with the same meaning on every host"):
        Rules({}, zone=zone)


def test_a_zone_that_this_host_lacks(monkeypatch):
    """If the host has no data of a zone, the error names the package to install."""
    monkeypatch.setattr("tallystream.rules.windows.ZoneInfo", lambda name: ZoneInfo(f"{name}/missing"))
    with pytest.raises(
        ConfigurationError, match="this host has no data of the time zone Europe/Vienna: install tzdata"
    ):
        zone_of("Europe/Vienna")


def test_every_zone_of_this_host_is_known():
    """The list of zones has each zone that this host has, except the names that mean something else on another host."""
    assert available_timezones() - zone_names() <= {"localtime", "posixrules", "Factory"}
