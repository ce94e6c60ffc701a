"""Isolates a poison entry: an entry that makes the fold or the script fail whenever it is in a batch.

A batch that fails because of one entry is bisected: everything else in it is counted, and the bad entry stays pending.
It is delivered again now and then. When its deliveries exceed `max_deliveries`, the fold makes a dead letter of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tallystream.client.replies import is_about_server
from tallystream.errors import StreamError, Unconfirmed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tallystream_worker.counting.entry import Entry
    from tallystream_worker.counting.fold_result import FoldFault, FoldResult

    FoldEntries = Callable[[Sequence[Entry], Mapping[FoldFault, str] | None], tuple[FoldResult, Sequence[Entry]]]

_MOST_FAILED: Final = 8
"""Entries that may fail one by one, with no batch counted between them, before the pass ends with their error."""

_MOST_SUSPECTS: Final = 10_000
"""Entries that have failed and are remembered; beyond it the memory begins again."""


def is_entry_error(error: Exception) -> bool:
    """Tell whether an error may be about what is in a batch, rather than about the server or the way to it."""
    if isinstance(error, RedisError):
        return not is_about_server(error)
    return not isinstance(error, (StreamError, Unconfirmed))


class Quarantine:
    """Folds entries into batches, and bisects a batch that fails.

    Args:
        fold: Folds entries into one batch; returns the batch, and the entries that are not in it.
        on_refused: Is called with an entry that fails alone and is left pending, and with the error.
    """

    def __init__(self, fold: FoldEntries, on_refused: Callable[[Entry, Exception], None]) -> None:
        self._fold = fold
        self._on_refused = on_refused
        self._failed = 0
        self._suspects: set[str] = set()

    def batches(
        self, entries: Sequence[Entry], excluded: Mapping[FoldFault, str] | None = None, conflicts: int = 0
    ) -> Iterator[FoldResult]:
        """Yield the entries as batches, without those that cannot be folded.

        Args:
            entries: In any order.
            excluded: The metrics and subjects that must not be counted, with the reason.
            conflicts: How often a batch of these entries was stale before.

        Raises:
            Exception: as `bisect` does.
        """
        # What failed before comes last, so that a run of poison entries cannot keep the good ones behind it uncounted
        # until their deliveries exceed the limit as well.
        entries = sorted(entries, key=lambda entry: entry.id in self._suspects)
        while entries:
            try:
                batch, rest = self._fold(entries, excluded)
            except Exception as error:  # noqa: BLE001  # `bisect` raises what is not about an entry
                yield from self.bisect(entries, error)
                return
            batch.conflicts = conflicts
            yield batch
            entries = rest

    def bisect(self, entries: Sequence[Entry], error: Exception) -> Iterator[FoldResult]:
        """Yield the entries of a batch that failed as smaller batches; a single entry is left pending instead.

        Raises:
            Exception: the error itself, if it is not about the entries, or if entry after entry failed.
        """
        if not is_entry_error(error):
            raise error
        if len(entries) == 1:
            self._leave_pending(entries[0], error)
            return
        middle = len(entries) // 2
        yield from self.batches(entries[:middle])
        yield from self.batches(entries[middle:])

    def clear(self) -> None:
        """Begin to count failures again, because a batch was counted since: the fault was in the entries."""
        self._failed = 0

    def _leave_pending(self, entry: Entry, error: Exception) -> None:
        if len(self._suspects) >= _MOST_SUSPECTS:
            self._suspects.clear()
        self._suspects.add(entry.id)
        self._failed += 1
        if self._failed >= _MOST_FAILED:
            self._failed = 0
            raise error
        self._on_refused(entry, error)
