"""Archived entries are compared with those of the stream: all events, and whether an entry was decided."""

from __future__ import annotations

import pytest

from tallystream.wire.packer import EntryBuilder
from tallystream_worker.archive.rows import Rows
from tallystream_worker.counting.entry import Entry
from tallystream_worker.verify.archived_rows import ArchivedRows, RowComparison


def entry(amount: int, decided: bytes | None) -> Entry:
    """Return an entry with one event, which was decided by a generation, or not."""
    pack = EntryBuilder()
    pack.add("call", "a", amount, 1_790_000_000.0, None, None)
    fields = {b"v": b"1", b"n": b"1", b"b": pack.build()}
    return Entry("5-0", fields if decided is None else fields | {b"d": decided})


@pytest.mark.parametrize(
    ("live", "archived", "differs"),
    [
        (entry(1, b"2"), entry(1, b"2"), False),
        (entry(1, b"0"), entry(1, b"2"), False),  # a restore writes another number
        (entry(1, b"0"), entry(2, b"2"), True),
        (entry(1, None), entry(1, b"2"), True),
        (entry(1, b"2"), entry(1, None), True),
        (entry(1, None), entry(1, None), False),
    ],
)
def test_the_generation_that_decided_is_not_compared(live, archived, differs):
    """Only a difference of the events, or of whether the entry was decided, is found."""
    found, rows = [], Rows()
    rows.add(archived)
    table = rows.table()
    comparison = RowComparison(lambda id_, text: found.append((id_, text)))
    comparison.add(live, ArchivedRows(table, 0, table.num_rows))
    comparison.finish()
    assert [id_ for id_, _ in found] == ["5-0"] * differs
