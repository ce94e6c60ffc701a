"""The function by which a restore and a drill read archived entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tallystream_worker.counting.entry import Entry


class ArchivedEntries(Protocol):
    """A function that reads archived entries: see `tallystream_worker.archive.entries.entries`."""

    def __call__(
        self, partition: int, after: str, before: str | None, /, *, with_gaps: bool = False
    ) -> Iterable[Entry]:
        """Return the archived entries of a partition after the ID `after` and before `before`, in order of IDs.

        Args:
            partition: The number of the partition.
            after: The ID after which to begin.
            before: The ID before which to end; `None` reads to the last archived entry.
            with_gaps: Whether to pass over entries that the archive lacks; otherwise they raise an `ArchiveError`. Not
                all are noticed: those that are missing at the end never are.
        """
        ...
