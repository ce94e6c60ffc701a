"""Isolates poison entries: entries that make the fold or the script fail whenever they are in a batch.

A batch that fails because of one entry is bisected: everything else in it is counted, and the bad entry stays pending.
It is delivered again later. When its deliveries exceed `max_deliveries`, the fold makes a dead letter of it.
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
"""When so many entries have failed alone, with no batch counted between them, the error of the last is raised."""

_MOST_SUSPECTS: Final = 10_000
"""Number of failed entries that are remembered; when it is reached, all are forgotten."""


def is_entry_error(error: Exception) -> bool:
    """Return whether an error may be caused by an entry of a batch, and not by the server or the connection.

    This is true for every error that is not a `RedisError`, `StreamError` or `Unconfirmed`, so also for a defect. It is
    also true for an error reply that may depend on the arguments of the command: see `is_about_server`.
    """
    if isinstance(error, RedisError):
        return not is_about_server(error)
    return not isinstance(error, (StreamError, Unconfirmed))


class Quarantine:
    """Folds entries into batches, and bisects a batch that fails, until the entry that makes it fail is alone.

    The caller applies the batches of `batches`. Errors of the fold are handled there; if applying a batch fails, call
    `bisect` with its entries and the error, and apply the batches that it yields. Call `clear` after each counted
    batch. An entry that fails alone stays pending, and is in no batch until it is given to `batches` again. If 8
    entries fail alone with no counted batch between them, the error of the last is raised.

    Args:
        fold: Folds entries into one batch; returns the batch, and the entries that are not in it.
        on_refused: Called with each entry that is left pending, and with the error, unless that error is raised.
    """

    def __init__(self, fold: FoldEntries, on_refused: Callable[[Entry, Exception], None]) -> None:
        self._fold = fold
        self._on_refused = on_refused
        self._failed = 0
        self._suspects: set[str] = set()

    def batches(
        self, entries: Sequence[Entry], excluded: Mapping[FoldFault, str] | None = None, conflicts: int = 0
    ) -> Iterator[FoldResult]:
        """Yield the entries as folded batches; leave an entry pending if the fold fails on it alone.

        Args:
            entries: The entries, in any order; those that are remembered to have failed alone are folded last.
            excluded: The metrics and subjects whose events must become dead letters, each with the reason. After a
                failed fold, the halves are folded without it.
            conflicts: How often a batch of these entries was stale before: `FoldResult.conflicts` of the batches, but 0
                after a failed fold.

        Raises:
            Exception: while the batches are iterated, the error of a fold, under the conditions of `bisect`.
        """
        # Entries that failed before come last. Otherwise a run of poison entries could delay the good entries after it
        # until these, too, exceed the limit of deliveries.
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
        """Yield the entries of a failed batch as batches of each half; leave a single entry pending.

        For an entry that is left pending, `on_refused` is called.

        Args:
            entries: The entries of the failed batch, at least one.
            error: The error of its fold or its script call.

        Raises:
            Exception: while the batches are iterated, `error` itself, if no entry can have caused it, or if this is the
                8th entry that fails alone with no batch counted between them. The error of a fold of a half is raised
                under the same conditions.
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
        """Set the number of entries that failed alone to zero; the caller must call this after each counted batch."""
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
