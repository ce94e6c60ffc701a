"""A read barrier waits until the partitions are counted far enough, or until its timeout."""

from __future__ import annotations

import pytest

from tallystream.errors import EventError, FlushTimeout
from tallystream.reading.freshness import POLL, ReadBarrier
from tallystream.reading.query import Query
from tallystream.wire.position import CountingPosition


def reading(*positions: tuple[str, int | None]) -> list[CountingPosition]:
    """Return partitions at these positions: as_of and lag."""
    return [CountingPosition(as_of, 0, lag) for as_of, lag in positions]


def test_without_a_wish_any_reading_will_do() -> None:
    """A barrier without a stream ID accepts the first positions."""
    assert ReadBarrier(None, 0).ends(reading(("0-0", 5)))


def test_every_partition_must_have_come_far_enough() -> None:
    """The wait ends when each partition is counted up to the stream ID, or has no lag."""
    patience = ReadBarrier("7-1", 60)
    assert patience.ends(reading(("7-1", 3), ("9-0", None), ("1-0", 0)))
    assert not patience.ends(reading(("7-1", 3), ("7-0", 1)))
    assert not patience.ends(reading(("7-0", None)))


def test_time_runs_out_with_a_message() -> None:
    """After the timeout, the error names the entry and the seconds waited."""
    with pytest.raises(FlushTimeout, match=r"entry 7-1 was not counted within 0 seconds"):
        ReadBarrier("7-1", 0).ends(reading(("7-0", 1)))


def test_looks_become_rarer() -> None:
    """The pauses between polls grow up to a bound, so that many waiting readers cause little load."""
    patience = ReadBarrier("7-1", 60)
    pauses = [patience.pause() for _ in range(20)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == POLL


def test_a_query_is_not_gone_on_with_before_its_time() -> None:
    """Until a partition is counted far enough, a guarded query has no answer and sends no further query."""
    group = [{"name": b"g", "last-delivered-id": b"7-0", "lag": 1}]
    replies = [group, {"pending": 0, "min": None}, b"5"]
    query: Query[int] = Query(
        [("XINFO GROUPS", "s"), ("XPENDING", "s", "g"), ("GET", "x")],
        lambda replies: Query([("GET", replies[2])], lambda replies: int(replies[0])),
    )
    assert ReadBarrier("7-1", 60).guard(query).parse(replies) is None
    follow_up = ReadBarrier("7-0", 60).guard(query).parse(replies)
    assert isinstance(follow_up, Query)
    assert (follow_up.commands, follow_up.parse([b"9"])) == ([("GET", b"5")], 9)


@pytest.mark.parametrize("after", ["", "x", "1-2-3", "-1", "1-", "\u0661-\u0662"])
def test_a_wish_that_is_no_stream_id_is_refused(after: str) -> None:
    """A text that is not a stream ID is rejected, and the error names the parameter and the valid form."""
    with pytest.raises(EventError, match="after: a stream ID must have the form 1763900000000-0"):
        ReadBarrier(after, 1)
