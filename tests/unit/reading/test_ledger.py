"""The sums of a ledger agree: each figure is calculated from the replies of a server."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from tallystream.reading.ledger import Ledger, query_ledger
from tallystream.storage.keys import Layout

GROUP = {"name": b"tally", "last-delivered-id": b"5-0", "lag": 0}
NOTHING_PENDING = {"pending": 0, "min": None}


def books(*ledgers: dict[bytes, bytes], pending: dict[str, object] = NOTHING_PENDING, lag: int | None = 0) -> Ledger:
    """Return the ledger from the replies of a server with these partitions, at second 100.5."""
    replies: list[object] = []
    for ledger in ledgers:
        replies += [(100, 500_000), [GROUP | {"lag": lag}], pending, 2, ledger, [None, None]]
    return query_ledger(Layout(len(ledgers))).parse(replies)


def test_outcomes_add_up_over_partitions() -> None:
    """Every outcome is the sum over partitions and rules, and appended events without an outcome are unaccounted."""
    found = books(
        {b"appended": b"10", b"counted": b"4", b"rejected:once": b"1", b"rejected:limit": b"2", b"dead": b"1"},
        {b"appended": b"5", b"counted": b"1", b"duplicate": b"1", b"late": b"1", b"trimmed": b"1"},
    )
    assert dict(found.events) == {
        "appended": 15, "counted": 5, "rejected": 3, "duplicate": 1, "late": 1, "dead": 1, "trimmed": 1,
    }  # fmt: skip
    assert found.unaccounted == 3
    assert found.dead == 4


def test_events_by_metric_leave_nothing_out() -> None:
    """The events by metric add up to those of the outcome; events without a known metric are under `""`."""
    found = books({b"dead": b"7", b"dead@view": b"2", b"dead@like": b"1"}, {b"dead": b"3", b"dead@view": b"3"})
    assert found.by_metric("dead") == {"view": 5, "like": 1, "": 4}
    assert found.by_metric("counted") == {}


def test_events_by_metric_and_rule() -> None:
    """Rejected events are listed by metric and by the rule that rejected them."""
    found = books({b"rejected:once": b"3", b"rejected:once@vote": b"2", b"rejected:once@like": b"1"})
    assert found.by_metric_and_rule("rejected") == {("vote", "once"): 2, ("like", "once"): 1}
    assert found.by_metric("rejected") == {"vote": 2, "like": 1}


def test_totals_may_be_negative() -> None:
    """The sum of a metric's amounts is added over partitions, may be negative, and is not an outcome."""
    found = books({b"total@like": b"-3"}, {b"total@like": b"1", b"total@view": b"9007199254740991"})
    assert found.totals == {"like": -2, "view": 9007199254740991}
    assert found.unaccounted == 0


@pytest.mark.parametrize(
    ("pending", "lag"),
    [(NOTHING_PENDING, 1), (NOTHING_PENDING, None), ({"pending": 1, "min": b"3-0"}, 0)],
)
def test_an_open_ledger_has_no_unaccounted_events(pending: dict[str, object], lag: int | None) -> None:
    """While entries wait, or the lag is not known, the number of unaccounted events is `None`."""
    assert books({b"appended": b"5"}, pending=pending, lag=lag).unaccounted is None


def test_the_age_of_the_oldest_pending_entry() -> None:
    """The age of the oldest pending entry is the server's time minus that of its ID; unknown if it is negative."""
    (partition,) = books({}, pending={"pending": 1, "min": b"98000-7"}).partitions
    assert partition.oldest_pending == 2.5
    (partition,) = books({}, pending={"pending": 1, "min": b"999000-0"}).partitions
    assert partition.oldest_pending is None


def test_how_far_stream_ids_are_ahead_of_the_clock() -> None:
    """Delivered IDs that are more than a second later than the server's time are reported as ahead of it."""
    for last, ahead in ((b"100500-3", 0), (b"101400-0", 0), (b"103000-0", 2.5)):
        replies = [(100, 500_000), [GROUP | {"last-delivered-id": last}], NOTHING_PENDING, 2, {}, [None, None]]
        (partition,) = query_ledger(Layout(1)).parse(replies).partitions
        assert partition.ids_ahead == ahead


def test_a_key_of_another_type_is_an_error() -> None:
    """If the key of a ledger is not a hash, reading it raises the server's error."""
    query = query_ledger(Layout(1))
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        query.parse([(1, 0), [GROUP], NOTHING_PENDING, 0, ResponseError("WRONGTYPE Operation against a key")])
