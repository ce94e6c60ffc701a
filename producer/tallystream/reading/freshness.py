"""Freshness: how complete an answer is, and a barrier that waits until it is complete enough.

A query for figures reads positions first and values after them: so the values are complete up to the position, or
further.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Self, TypedDict

import msgspec
from msgspec.structs import replace

from tallystream.errors import EventError, FlushTimeout
from tallystream.reading.query import Query
from tallystream.reading.reach import UnreachablePartition  # noqa: TC001  # msgspec reads the type
from tallystream.wire.position import CountingPosition, parse_position
from tallystream.wire.stream_id import parse_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from tallystream.reading.query import Answer, Command

POLL: Final = (0.003, 0.05)
"""Seconds between two polls for a position: at first, and at most; until then, each is 1.5 times the one before."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every answer with figures: states how complete and how exact they are.

    Attributes:
        as_of: The stream ID up to which every entry of the partitions that were read is in the figures; `0-0` if
            nothing is counted in one of them, or no partition was read.
        lag: The number of entries of the partitions that were read that are not in the figures yet; `null` if it is not
            known.
        error: By how much a figure may be wrong; 0 if all are exact; `null` if it is not known: because a rule of the
            metric was changed (`tallystream rebuild` counts all events by the new one), or partitions are
            `unreachable`; see also `Leaderboard`. Of `Uniques`, it is the standard error, as a share. Of an estimate
            from a sketch (`exact = false`, `max_subjects`), it is exceeded with a probability of at most 2 %. It does
            not include events that the Bloom filter of `seen = "bloom"` takes for duplicates: with 400,000 ids in a
            period, 1 new event in 3,300.
        unreachable: The partitions that the figures lack, because their nodes of the cluster do not answer; empty if
            all were read. If there are any, `lag` and `error` are `null`, `as_of` is that of the other partitions, and
            a figure over several partitions is what these have: without negative amounts, the true one is at least
            that.
    """

    as_of: str
    lag: int | None
    error: float | None = 0
    unreachable: list[UnreachablePartition] = []

    def lacking(self, unreachable: list[UnreachablePartition]) -> Self:
        """Return a copy with the given partitions as `unreachable`; its `lag` and `error` are `None`."""
        return replace(self, lag=None, error=None, unreachable=unreachable)


class Gap(msgspec.Struct, frozen=True):
    """A part of a range of time that a figure does not cover, in seconds since 1970.

    Attributes:
        start: The first second of the part.
        end: The first second after it.
    """

    start: int
    end: int


class RangeFigure(Figure, frozen=True, kw_only=True):
    """Base of every answer over a range of time: states the bounds that it covers, and what has expired of the range.

    Figures are exact (or within `error`) for the events from `start` to `end`. If all of the range is stored, `start`
    is at or before the begin that was asked for. If the buckets of its begin have expired, or may lack events because a
    rule was changed, and no coarser ones replace them, `start` is later, and `complete` is false.

    Attributes:
        start: The first second (since 1970) that the figures cover; `null` for all time.
        end: The first second after the covered time; `null` for all time. It is in the future if the last bucket has
            not ended.
        complete: Whether the figures cover the whole range that was asked for, in all partitions.
        missing: The parts of that range that the figures do not cover, because their buckets have expired or may lack
            events, or because the buckets that are kept there are too short: one read takes at most 1,000 buckets.
            Partitions that were not read, and what a leaderboard of all time lacks, are not in it.
    """

    start: int | None
    end: int | None
    complete: bool = True
    missing: list[Gap] = []

    def lacking(self, unreachable: list[UnreachablePartition]) -> Self:
        """Return a copy with the given partitions as `unreachable`, without `lag` and `error`, and not `complete`."""
        return replace(super().lacking(unreachable), complete=False)


class Freshness(TypedDict):
    """The fields of a `Figure` without `unreachable`, as keyword arguments."""

    as_of: str
    lag: int | None
    error: float | None


def freshness(positions: Sequence[CountingPosition], error: float | None = 0) -> Freshness:
    """Return `as_of`, `lag` and `error` of a figure that was read from partitions with these positions.

    `as_of` is the smallest one of the partitions, `0-0` for no partition; `lag` is the sum of their lags, in entries,
    `None` if one of them is not known, 0 for no partition. `error` is the argument; `None` means that the error is not
    known.
    """
    return {"as_of": as_of(positions), "lag": lag_of(positions), "error": error}


def lag_of(positions: Sequence[CountingPosition]) -> int | None:
    """Return the sum of the lags of partitions, in entries; `None` if any lag is not known; 0 for no partition."""
    lags = [position.lag for position in positions]
    return None if None in lags else sum(lag for lag in lags if lag is not None)


def as_of(positions: Sequence[CountingPosition]) -> str:
    """Return the smallest `as_of` of several partitions: the ID up to which all are counted; `0-0` for no partition."""
    if len(positions) == 1:
        return positions[0].as_of
    return min((position.as_of for position in positions), key=parse_id, default="0-0")


class ReadBarrier:
    """A read barrier: lets a reader wait until everything up to a stream ID is counted in the partitions that it reads.

    It does not sleep itself: while a query that `guard` returned has the answer `None`, the reader sleeps for `pause()`
    seconds, and sends the query again. `ends` makes the same check for positions that the reader has. If the timeout
    has passed and the wait is not over, `ends` raises `FlushTimeout`, and so does the `parse` of the guarded query.

    Args:
        after: The stream ID to wait for; `None` means that there is nothing to wait for.
        timeout: The most seconds to wait, from the creation of this object, by the monotonic clock.

    Raises:
        EventError: `after` is not a stream ID.
    """

    def __init__(self, after: str | None, timeout: float) -> None:
        if after is not None:
            try:
                parse_id(after)
            except ValueError as error:
                raise EventError("after", str(error)) from None
        self._after = after
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._pause, self._longest = POLL

    def guard(self, query: Query[Answer]) -> Query[Answer | None]:
        """Return the same query, but with the answer `None` until its partitions are counted far enough: see `ends`.

        Its partitions are those whose `position_commands` are among its commands: a query without any does not wait. A
        further query that its `parse` returns is not guarded. If there is nothing to wait for, return `query` itself.

        Raises:
            FlushTimeout: the timeout has passed, and the partitions are not counted far enough; raised by the query's
                `parse`.
        """
        if self._after is None:
            return query  # type: ignore[return-value]  # an answer is an answer or None

        def parse(replies: list[Any]) -> Any:
            return query.parse(replies) if self.ends(positions_among(query.commands, replies)) else None

        return Query(query.commands, parse, query.atomic)

    def ends(self, positions: Sequence[CountingPosition]) -> bool:
        """Return whether the wait is over: every partition is counted up to the stream ID, or has the lag 0.

        Also return `True` if there is nothing to wait for, or no partition is given.

        Raises:
            FlushTimeout: the wait is not over, and the timeout has passed.
        """
        if self._after is None:
            return True
        if all(map(self.is_counted, positions)):
            return True
        if time.monotonic() >= self._deadline:
            raise FlushTimeout(f"entry {self._after} was not counted within {self._timeout:g} seconds")
        return False

    def is_counted(self, position: CountingPosition) -> bool:
        """Return whether a partition at this position is counted up to the stream ID, or has the lag 0.

        Also return `True` if there is nothing to wait for.
        """
        return self._after is None or position.lag == 0 or parse_id(position.as_of) >= parse_id(self._after)

    def await_replica(self) -> float:
        """Return the seconds to sleep before the next check whether a replica has the counting: see `pause`.

        Raises:
            FlushTimeout: the timeout has passed.
        """
        if time.monotonic() >= self._deadline:
            raise FlushTimeout(
                f"entry {self._after} was counted, but no replica had the counting within {self._timeout:g} seconds"
            )
        return self.pause()

    def pause(self) -> float:
        """Return the seconds to sleep before the next poll: 0.003 at the first call, up to 0.05 at later ones.

        A pause does not reach beyond the timeout: so it may be shorter than that, and it is 0 after the timeout.
        """
        pause = min(self._pause, max(0.0, self._deadline - time.monotonic()))
        self._pause = min(self._longest, self._pause * 1.5)
        return pause


def positions_among(commands: Sequence[Command], replies: Sequence[Any]) -> list[CountingPosition]:
    """Return the counting position for each pair of `position_commands` in `commands`, parsed from their `replies`.

    Raises:
        redis.RedisError: see `parse_position`.
    """
    return [
        parse_position([replies[place - 1], replies[place]], command[2])
        for place, command in enumerate(commands)
        if command[0] == "XPENDING"
    ]
