"""How fresh an answer is, and how to wait for one that is fresh enough.

Every query asks for positions first and values after: the values are complete up to the position, or further.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypedDict

import msgspec

from tallystream.errors import EventError, FlushTimeout
from tallystream.reading.query import Query
from tallystream.wire.position import CountingPosition, parse_position
from tallystream.wire.stream_id import parse_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from tallystream.reading.query import Answer, Command

POLL: Final = (0.003, 0.05)
"""Seconds between the first polls while waiting for a position, and at most: many readers may be waiting."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A figure: complete up to the stream ID `as_of`, but for `lag` entries (`null`: not known).

    `error` is by how much it may be off: 0 when it is exact. It leaves out what `seen = "bloom"`, an approximation,
    takes for copies: with 400,000 ids in a filter, 1 new event in 6,600.
    """

    as_of: str
    lag: int | None
    error: float = 0


class Freshness(TypedDict):
    """The fields of a `Figure`."""

    as_of: str
    lag: int | None
    error: float


def freshness(positions: Sequence[CountingPosition], error: float = 0) -> Freshness:
    """Return the fields of a figure that was read at these positions."""
    return {"as_of": as_of(positions), "lag": lag_of(positions), "error": error}


def lag_of(positions: Sequence[CountingPosition]) -> int | None:
    """Return the entries that are not counted yet in several partitions; `None` if the server cannot tell."""
    lags = [position.lag for position in positions]
    return None if None in lags else sum(lag for lag in lags if lag is not None)


def as_of(positions: Sequence[CountingPosition]) -> str:
    """Return the stream ID up to which several partitions are all complete."""
    if len(positions) == 1:
        return positions[0].as_of
    return min((position.as_of for position in positions), key=parse_id, default="0-0")


class ReadBarrier:
    """Makes a reader wait until everything up to a stream ID is counted, in the partitions that it reads.

    Args:
        after: The stream ID; `None` waits for nothing.
        timeout: Seconds to wait.

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
        """Return the same query, with the answer `None` while its partitions have not come far enough.

        Raises:
            FlushTimeout: they have not, and the time is up; raised by the query's `parse`.
        """
        if self._after is None:
            return query  # type: ignore[return-value]  # an answer is an answer or None

        def parse(replies: list[Any]) -> Any:
            return query.parse(replies) if self.ends(positions_among(query.commands, replies)) else None

        return Query(query.commands, parse, query.atomic)

    def ends(self, positions: Sequence[CountingPosition]) -> bool:
        """Tell whether every partition has counted the entry, or has nothing left to count.

        Raises:
            FlushTimeout: one has not, and the time is up.
        """
        if self._after is None:
            return True
        wanted = parse_id(self._after)
        if all(position.lag == 0 or parse_id(position.as_of) >= wanted for position in positions):
            return True
        if time.monotonic() >= self._deadline:
            raise FlushTimeout(f"entry {self._after} was not counted within {self._timeout:g} seconds")
        return False

    def pause(self) -> float:
        """Return the seconds to let pass before the next poll: more from poll to poll."""
        pause = min(self._pause, max(0.0, self._deadline - time.monotonic()))
        self._pause = min(self._longest, self._pause * 1.5)
        return pause


def positions_among(commands: Sequence[Command], replies: Sequence[Any]) -> list[CountingPosition]:
    """Return the positions that a query's replies tell of: those to each pair of `position_commands`."""
    return [
        parse_position([replies[place - 1], replies[place]], command[2])
        for place, command in enumerate(commands)
        if command[0] == "XPENDING"
    ]
