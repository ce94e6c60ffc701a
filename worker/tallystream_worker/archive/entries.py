"""Reads archived entries in the order of their IDs, for a replay, a rebuild, an audit or a restore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.wire.stream_id import parse_id
from tallystream_worker.archive.rows import entries_of
from tallystream_worker.archive.store import ArchiveError, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream_worker.counting.entry import Entry


def entries(
    store: Store, partition: int, after: str = "0-0", before: str | None = None, *, with_gaps: bool = False
) -> Iterator[Entry]:
    """Yield the archived entries of a partition, each once, in order; they fold to the same batches as the originals.

    Entries that are missing at the end are not noticed: if no file has the last entries of the range, the iterator ends
    after those that are there, without an error. Entries that only the counters have (`Join.lost`) are passed over.

    Args:
        store: The archive.
        partition: The number of the partition.
        after: The ID after which to begin; `0-0` begins with the first archived entry.
        before: The ID before which to end; `None` reads to the last archived entry.
        with_gaps: Whether to pass over entries that the archive lacks; otherwise they are an error.

    Raises:
        ArchiveError: the archive cannot be listed, or a file cannot be read. Without `with_gaps`, also if a file is
            missing between two others; or, unless `after` is `0-0`, a file is missing after `after`, or the archive
            begins later.
        CodecError: a file has a damaged row `raw`.
        ValueError: `after` or `before` is not a stream ID.

    Errors are raised while the entries are iterated.
    """
    behind, end = parse_id(after), None if before is None else parse_id(before)
    for file in store.files(partition, behind):
        if end is not None and file.first >= end:
            return
        table, previous = store.read(file)
        if parse_id(previous) > behind and after != "0-0" and not with_gaps:
            raise ArchiveError(
                f"{store.place}: entries of partition {partition} between {behind[0]}-{behind[1]} and {previous} are "
                "missing: a file was removed, or the archive began later"
            )
        after = f"{file.last[0]}-{file.last[1]}"
        for entry in entries_of(table):
            id_ = parse_id(entry.id)
            if end is not None and id_ >= end:
                return
            if id_ > behind:
                yield entry
                behind = id_
        behind = max(behind, file.last)
