"""Buckets of time: finds the minute, hour, day or month of an event, and covers a range with few buckets.

Minutes and hours are UTC; days and months begin at midnight in the configured time zone. Nothing here reads a clock.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tallystream.errors import ConfigurationError
from tallystream.wire.window import DAY, HOUR, MINUTE, WINDOWS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_UNITS: Final = {"s": 1, "m": MINUTE, "h": HOUR, "d": DAY}
_DURATION: Final = re.compile(r"([1-9][0-9]{0,6})([smhd])")


_ALWAYS: Final = -(2**53)
_ID_LENGTHS: Final = {"minute": MINUTE, "hour": HOUR, "day": DAY, "month": 31 * DAY}

_FORMATS: Final = {"minute": "%Y-%m-%dT%H:%M", "hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m"}

LABEL_LENGTHS: Final = {"minute": 16, "hour": 13, "day": 10, "month": 7}
"""By window, the number of characters in the label of a bucket; it is different for each window."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bucket of a window.

    Attributes:
        label: The name of the bucket in keys, such as `2026-05-06T07` for an hour.
        start: The first second of the bucket, since 1970.
        end: The first second after the bucket, since 1970.
    """

    label: str
    start: int
    end: int


@cache
def zone_names() -> frozenset[str]:
    """Return the names of the time zones that mean the same on every host: those of the IANA database.

    Hosts have other names too: `localtime` and `posixrules` are the zone of the host, and files that an administrator
    added have any name.
    """
    return frozenset(files("tallystream.rules").joinpath("zones.txt").read_text(encoding="ascii").split())


def zone_of(name: str) -> ZoneInfo:
    """Return a time zone by its name, such as `Europe/Vienna`.

    Raises:
        ConfigurationError: no time zone has that name on every host, or this host lacks the data of the zone.
    """
    if name not in zone_names():
        raise ConfigurationError(
            f"zone: {name!r} is not a time zone such as UTC or Europe/Vienna, with the same meaning on every host"
        )
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigurationError(
            f"zone: this host has no data of the time zone {name}: install tzdata, from the system or with pip"
        ) from None


@lru_cache(maxsize=1024)  # called for each single event, with a handful of different durations
def seconds(duration: str) -> int | None:
    """Return a duration in seconds; `None` for `forever`.

    A duration is a number from 1 to 9999999 and a unit, `s`, `m`, `h` or `d`, such as `90s`.

    Raises:
        ValueError: `duration` is neither a duration nor `forever`.
    """
    if duration == "forever":
        return None
    found = _DURATION.fullmatch(duration)
    if found is None:
        raise ValueError(f"{duration!r} is not a duration: write 90s, 15m, 8h, 400d or forever")
    return int(found[1]) * _UNITS[found[2]]


@lru_cache(maxsize=65536)
def bucket(window: str, minute: int, zone: str = "UTC") -> Bucket:
    """Return the bucket of a window that contains a minute.

    Args:
        window: `minute`, `hour`, `day`, `month`, or a duration of whole minutes such as `30d`, whose buckets follow one
            another from 1970 in UTC. `forever` and `total` have one bucket, from 0 to 2^53.
        minute: Whole minutes since 1970.
        zone: The time zone in which days and months begin; it is not used for other windows.

    Raises:
        ValueError: `window` is not one of these; or it is one of the first four, and the minute is after the year 9999.
            A duration that is not of whole minutes, such as `90s`, raises no error: its buckets have that length.
        OverflowError: the window is one of the first four, and the minute is far after the year 9999; or it is `day` or
            `month`, and the bucket would end after the last day of that year.
        ConfigurationError: the window is `day` or `month`, and there is no time zone `zone`.
    """
    at = minute * MINUTE
    match window:
        case "minute":
            return Bucket(_utc(at).strftime(_FORMATS["minute"]), at, at + MINUTE)
        case "hour":
            start = at - at % HOUR
            return Bucket(_utc(start).strftime(_FORMATS["hour"]), start, start + HOUR)
        case "day" | "month":
            return _of_calendar(window, at, zone_of(zone))
        case "forever" | "total":
            return Bucket(window, 0, 2**53)
    length = seconds(window)
    assert length is not None  # noqa: S101  # the rules were checked when they were declared
    start = at - at % length
    return Bucket(f"{window}-{start // length}", start, start + length)


def _of_calendar(window: str, at: int, zone: ZoneInfo) -> Bucket:
    """Return the day or month (`window`) of a time zone that contains the second `at`, counted from 1970.

    It begins when its midnight is first reached. If clocks go back over midnight, the last hour of a day comes twice,
    and the second time it belongs to the next day: so the days follow one another.
    """
    date = _first_day(window, dt.datetime.fromtimestamp(at, zone).date())
    following = _first_day(window, date + _LONGER[window])
    start, end = _midnight(date, zone), _midnight(following, zone)
    if at >= end:
        date, following = following, _first_day(window, following + _LONGER[window])
        start, end = end, _midnight(following, zone)
    return Bucket(date.strftime(_FORMATS[window]), start, end)


_LONGER: Final = {"day": dt.timedelta(days=1), "month": dt.timedelta(days=31)}
"""The time from the first day of a window to some day in the next one."""


def _first_day(window: str, date: dt.date) -> dt.date:
    return date if window == "day" else date.replace(day=1)


def _midnight(date: dt.date, zone: ZoneInfo) -> int:
    """Return the first whole minute, in seconds since 1970, at which clocks of a zone show a date or a later one."""
    start = int(dt.datetime.combine(date, dt.time(), zone).timestamp())
    # The clocks may skip midnight: then the date begins when they jump.
    low, high = start - DAY, start
    if dt.datetime.fromtimestamp(start - 1, zone).date() >= date:
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (low, middle) if dt.datetime.fromtimestamp(middle, zone).date() >= date else (middle, high)
    return -(-high // MINUTE) * MINUTE  # until 1972, midnight of Liberia was 30 seconds after a minute


def straddled(finer: str, coarser: str, zone: str, since: int) -> Bucket | None:
    """Return the first bucket of `coarser` that begins within a bucket of `finer`; `None` if the two windows nest.

    They nest if each bucket of `finer` lies within one bucket of `coarser`. For example, hours do not nest in the days
    of Asia/Kolkata, whose midnight is not at a full hour of UTC. If `coarser` is the finer window of the two, return
    its bucket that contains the second `since`.

    Args:
        finer: `minute`, `hour`, `day`, `month` or `total`.
        coarser: The same.
        zone: The time zone in which days and months begin.
        since: A second since 1970. Buckets of `coarser` that end at or before it are not checked.

    Raises:
        ConfigurationError: there is no time zone `zone`; not raised if the result is the same in every zone.
    """
    order = (*WINDOWS, "total")
    if order.index(finer) > order.index(coarser):
        return bucket(coarser, since // MINUTE, zone)
    if finer != "hour" or coarser not in _LONGER or zone == "UTC":
        return None
    return _begins_within_an_hour(coarser, zone, since)


_LAST_CHANGE: Final = 2_208_988_800
"""A second, 2040-01-01, from which each zone repeats the offsets of the years before."""


@lru_cache(maxsize=64)
def _begins_within_an_hour(window: str, zone: str, since: int) -> Bucket | None:
    info = zone_of(zone)

    def offset(second: int) -> dt.timedelta | None:
        return dt.datetime.fromtimestamp(second, info).utcoffset()

    each = _of_calendar(window, since, info)
    while each.start < _LAST_CHANGE:
        if each.start % HOUR:
            return each
        # No zone changes its clocks and changes them back within a week.
        later = each.end + 6 * DAY
        each = _of_calendar(window, later if offset(each.start) == offset(later) else each.end, info)
    return None


def id_length(ids: str) -> int:
    """Return how many seconds at most lie between two successive copies of an event with an id, for a value of `ids`.

    Copies that are not successive may lie further apart. `ids` is `minute`, `hour`, `day` or `month` (31 days).
    """
    return _ID_LENGTHS[ids]


def id_period(ids: str, minute: int) -> Bucket:
    """Return the period that contains a minute, for a value of `ids`; the ids of a period are stored together.

    Periods follow one another from 1970, have the length `id_length`, and do not depend on a time zone. So successive
    copies are in one period or in neighbouring ones.

    Args:
        ids: A value of `Metric.ids`: `minute`, `hour`, `day` or `month`.
        minute: Whole minutes since 1970.
    """
    return bucket(id_window(ids), minute)


def labelled_id_period(ids: str, label: str) -> Bucket | None:
    """Return the period of ids that has the label `label`, as `id_period` makes it; `None` if no period has it.

    `ids` is the rule: `minute`, `hour`, `day` or `month`.
    """
    return labelled(id_window(ids), label)


def next_id_label(ids: str, label: str) -> str:
    """Return the label of the period of ids that follows the period with the label `label`.

    Return `""` if no period has this label. `ids` is `minute`, `hour`, `day` or `month`.
    """
    period = labelled_id_period(ids, label)
    return "" if period is None else id_period(ids, period.end // MINUTE).label


def id_window(ids: str) -> str:
    """Return the window whose buckets are the periods of ids, a duration such as `1d`, for `ids` such as `day`."""
    return {"minute": "60s", "hour": "1h", "day": "1d", "month": "31d"}[ids]


def labelled(window: str, label: str, zone: str = "UTC") -> Bucket | None:
    """Return the bucket of a window that has the label `label`; `None` if no bucket of the window has this label.

    Also return `None` if `window` is not a window.

    Args:
        window: As in `bucket`.
        label: The label, as `bucket` makes it: `2026-05-06T07:08` for a minute, `2026-05-06T07` for an hour,
            `2026-05-06` for a day, `2026-05` for a month, `30d-687` for the window `30d`. The labels of `forever` and
            `total` are these words.
        zone: The time zone in which days and months begin; it is not used for other windows.

    Raises:
        ConfigurationError: the window is `day` or `month`, and there is no time zone `zone`.
    """
    try:
        if window in _FORMATS:
            found = dt.datetime.strptime(label, _FORMATS[window])  # noqa: DTZ007  # the zone is put in below
            if window in ("minute", "hour"):
                at = found.replace(tzinfo=dt.UTC).timestamp()
            else:
                # When clocks change, some days have no midnight; every day has a noon.
                at = found.replace(hour=12, tzinfo=zone_of(zone)).timestamp()
        elif window in ("forever", "total"):
            at = 0
        else:
            at = int(label.rpartition("-")[2]) * (seconds(window) or 0)
        named = bucket(window, int(at) // MINUTE, zone)
    except (ValueError, OverflowError, OSError):
        return None
    return named if named.label == label else None


def cover(
    start: int,
    end: int,
    windows: Sequence[str],
    zone: str = "UTC",
    since: Mapping[str, int] | None = None,
    most: int | None = None,
) -> list[tuple[str, Bucket]]:
    """Return few buckets that cover the seconds from `start` to `end`, in order and without gaps, each with its window.

    The cover begins with a kept bucket that contains `start`; if every such bucket has expired, it begins later, with
    a bucket that is kept. It ends with a bucket that contains the last second. Fine buckets are preferred for the first
    and the last one; between the two, a coarser bucket replaces finer ones if it lies within the range. The list is
    empty if no kept buckets reach the end, or if `windows` is empty.

    Args:
        start: The first second of the range.
        end: The first second after the range; if it is not after `start`, the range is the second `start`.
        windows: The windows whose buckets may be used.
        zone: The time zone in which days and months begin.
        since: By window, the second at which the first bucket that is kept begins; a missing window is kept forever.
        most: The most buckets, if coarser bounds allow it; otherwise the list has one bucket more than that, and need
            not reach the end. `None` means no limit.

    Raises:
        ConfigurationError: `windows` has `day` or `month`, and there is no time zone `zone`.
    """
    finest_first = [window for window in WINDOWS if window in windows]
    since = since or {}
    last = (max(end, start + 1) - 1) // MINUTE
    starts = [max(bucket(window, start // MINUTE, zone).start, since.get(window, _ALWAYS)) for window in finest_first]
    ends = dict.fromkeys(bucket(window, last, zone).end for window in finest_first)
    before = dict.fromkeys(bound for bound in starts if bound <= start)
    too_many: list[tuple[str, Bucket]] = []
    for first in before or sorted(starts):
        for stop in ends:
            found = _tile(first, stop, finest_first[::-1], zone, since, most)
            if found is not None and (most is None or len(found) <= most):
                return found
            too_many = too_many or found or []
    return too_many


def _tile(
    first: int, stop: int, windows: Sequence[str], zone: str, since: Mapping[str, int], most: int | None
) -> list[tuple[str, Bucket]] | None:
    """Return kept buckets from `first` to `stop` without gaps; `None` if there are none.

    The search ends when it has more than `most` buckets: the result is then `most` + 1 buckets from `first` on, which
    need not reach `stop`, and it is not known whether any buckets do.

    Buckets of several windows may not meet: in a zone with a half-hour offset, days begin within an hour.

    Args:
        first: The second, since 1970, at which the first bucket begins.
        stop: The second at which the last bucket ends.
        windows: The windows whose buckets may be used, the preferred one first: coarse ones first give few buckets.
        zone: The time zone in which days and months begin.
        since: By window, the second at which the first bucket that is kept begins; a missing window is kept forever.
        most: The most buckets; `None` means no limit.
    """

    def beginning(at: int) -> Iterator[tuple[str, Bucket]]:
        for window in windows:
            if since.get(window, _ALWAYS) <= at:
                candidate = bucket(window, at // MINUTE, zone)
                if candidate.start == at and candidate.end <= stop:
                    yield window, candidate

    path: list[tuple[str, Bucket]] = []
    choices = [beginning(first)]
    dead: set[int] = set()  # bounds from which `stop` cannot be reached
    while choices:
        step = next(choices[-1], None)
        if step is None:
            choices.pop()
            if path:
                dead.add(path.pop()[1].end)
        elif step[1].end not in dead:
            path.append(step)
            if step[1].end == stop or (most is not None and len(path) > most):
                return path
            choices.append(beginning(step[1].end))
    return None


def _utc(at: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, dt.UTC)
