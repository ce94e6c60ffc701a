"""The range of entries that only the counters have ends where the archive has the next entry."""

from __future__ import annotations

import pytest

from tallystream.wire.stream_id import StreamID, before, parse_id
from tallystream_worker.archive.counted_only import find_counted_only


class Neighbours:
    """An archive that has one entry before an ID, and one after it."""

    def __init__(self, last: StreamID, following: StreamID) -> None:
        self._found = last, following

    def neighbours(self, _partition: int, _around: StreamID) -> tuple[StreamID, StreamID]:
        """Return the two entries."""
        return self._found


@pytest.mark.parametrize("pending", ["1000-0", "1000-5"])
@pytest.mark.parametrize("is_archived", [True, False])
def test_an_archived_entry_that_was_pending_leaves_no_range(pending: str, *, is_archived: bool) -> None:
    """If the first pending entry of the snapshot is archived, so is each entry before it, whatever its ID is."""
    first = parse_id(pending)
    floor = before(first)
    store = Neighbours((900, 0), first if is_archived else (1001, 0))
    found = find_counted_only(store, 0, b"mark %d-%d 3" % floor)  # type: ignore[arg-type]
    assert found == (None if is_archived else ((900, 0), floor))
