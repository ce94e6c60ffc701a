"""Finds out which entries exist only as counters: a restored snapshot was newer than the archive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.wire.stream_id import parse_id

if TYPE_CHECKING:
    from tallystream.wire.stream_id import StreamID


def counted_only(restored: bytes, archived: StreamID) -> StreamID | None:
    """Return the ID up to which entries after the archive's end may be only in the counters; `None` if there are none.

    A restored stream begins after the snapshot's position. If the server had lost entries before that, and the archive
    ends before it, the entries between the two are neither in the stream nor in the archive. If some entries were not
    counted yet at the snapshot's moment, there may be no entry between the two.

    Args:
        restored: The value of the field `RESTORED` of the sequences.
        archived: The ID of the last archived entry.
    """
    until, lacked = parse_restored(restored)
    return until if lacked and archived < until else None


def parse_restored(restored: bytes) -> tuple[StreamID, int]:
    """Return the ID after which a restored stream begins, and how many earlier entries only its counters have.

    `restored` is the value of the field `RESTORED` of the sequences.
    """
    _, begins, lacked = restored.decode().split(" ")
    return parse_id(begins), int(lacked)
