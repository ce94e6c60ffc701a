"""Reads the archive again: entries in the order of their IDs, for a replay, a rebuild, an audit or a restore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.wire.stream_id import parse_id
from tallystream_worker.archive.rows import entries_of
from tallystream_worker.archive.store import ArchiveError, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream_worker.counting.entry import Entry


def entries(store: Store, partition: int, after: str = "0-0", before: str | None = None) -> Iterator[Entry]:
    """Yield a partition's archived entries, each once; they fold to what the originals fold to.

    Args:
        store: The archive.
        partition: Its number.
        after: Begin behind this entry.
        before: End in front of this entry; `None` takes everything that is archived.

    Raises:
        ArchiveError: a file is missing between two others, or between `after` and the first, or cannot be read.
    """
    behind, end = parse_id(after), None if before is None else parse_id(before)
    for file in store.files(partition, behind):
        if end is not None and file.first >= end:
            return
        table, previous = store.read(file)
        if parse_id(previous) > behind and after != "0-0":
            raise ArchiveError(
                f"{store.url}: entries of partition {partition} between {behind[0]}-{behind[1]} and {previous} are "
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
