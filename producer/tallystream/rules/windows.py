"""Buckets of time: finds the minute, hour, day or month of an event, and covers a range with the fewest buckets.

Minutes and hours are UTC; days and months begin at midnight in the configured time zone. Nothing here reads a clock.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tallystream.errors import ConfigurationError
from tallystream.wire.window import DAY, HOUR, MINUTE, WINDOWS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_UNITS: Final = {"s": 1, "m": MINUTE, "h": HOUR, "d": DAY}
_DURATION: Final = re.compile(r"([1-9][0-9]{0,6})([smhd])")


_FORMATS: Final = {"minute": "%Y-%m-%dT%H:%M", "hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m"}


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


def zone_of(name: str) -> ZoneInfo:
    """Return a time zone by its name, such as `Europe/Vienna`.

    Raises:
        ConfigurationError: there is no time zone of that name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigurationError(f"zone: {name!r} is not a time zone such as UTC or Europe/Vienna") from None


@lru_cache(maxsize=1024)  # called for each single event, with a handful of different durations
def seconds(duration: str) -> int | None:
    """Return a duration such as `90s`, `15m`, `8h` or `400d` in seconds; `None` for `forever`.

    Raises:
        ValueError: `duration` has none of these forms.
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
        window: `minute`, `hour`, `day`, `month`, or a duration such as `30d`, whose buckets follow one another from
            1970 in UTC. `forever` and `total` have one bucket, from 0 to 2^53.
        minute: Whole minutes since 1970.
        zone: The time zone in which days and months begin.

    Raises:
        ValueError: `window` is not one of these.
        ConfigurationError: there is no time zone `zone`.
    """
    at = minute * MINUTE
    match window:
        case "minute":
            return Bucket(_utc(at).strftime(_FORMATS["minute"]), at, at + MINUTE)
        case "hour":
            start = at - at % HOUR
            return Bucket(_utc(start).strftime(_FORMATS["hour"]), start, start + HOUR)
        case "day":
            local = dt.datetime.fromtimestamp(at, zone_of(zone)).replace(hour=0, minute=0, second=0, fold=0)
            following = (local + dt.timedelta(days=1)).replace(fold=0)
            return Bucket(local.strftime(_FORMATS["day"]), int(local.timestamp()), int(following.timestamp()))
        case "month":
            local = dt.datetime.fromtimestamp(at, zone_of(zone)).replace(day=1, hour=0, minute=0, second=0, fold=0)
            following = (local + dt.timedelta(days=32)).replace(day=1, fold=0)
            return Bucket(local.strftime(_FORMATS["month"]), int(local.timestamp()), int(following.timestamp()))
        case "forever" | "total":
            return Bucket(window, 0, 2**53)
    length = seconds(window)
    assert length is not None  # noqa: S101  # the rules were checked when they were declared
    start = at - at % length
    return Bucket(f"{window}-{start // length}", start, start + length)


def labelled(window: str, label: str, zone: str = "UTC") -> Bucket | None:
    """Return the bucket of a window that has the label `label`; `None` if no bucket of the window has this label."""
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


def cover(start: int, end: int, windows: Sequence[str], zone: str = "UTC") -> Iterator[tuple[str, Bucket]]:
    """Yield the fewest buckets that cover the seconds from `start` until before `end`, in order, as (window, bucket).

    `windows` must name at least one window. If `end` is not after `start`, only second `start` is covered.

    First move `start` down and `end` up to the bounds of the finest window. Then use a coarser bucket if it begins at
    the position reached, and ends within the range at a bound of the finest window.
    """
    finest_first = [window for window in WINDOWS if window in windows]
    at = bucket(finest_first[0], start // MINUTE, zone).start
    stop = bucket(finest_first[0], (max(end, start + 1) - 1) // MINUTE, zone).end

    def begins(second: int) -> bool:
        return bucket(finest_first[0], second // MINUTE, zone).start == second

    while at < stop:
        for window in reversed(finest_first):
            candidate = bucket(window, at // MINUTE, zone)
            # When clocks change by half an hour, a day may end within an hour. Such a day is covered by hours.
            fits = candidate.start == at and candidate.end <= stop and begins(candidate.end)
            if fits or window == finest_first[0]:
                yield window, candidate
                at = candidate.end
                break


def _utc(at: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, dt.UTC)
