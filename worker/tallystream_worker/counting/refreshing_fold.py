"""Folds by newer rules when they are published."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tallystream.rules.metrics import Rules
    from tallystream_worker.counting.entry import Entry
    from tallystream_worker.counting.fold import Fold
    from tallystream_worker.counting.fold_result import FoldFault, FoldResult


class RefreshingFold:
    """Folds entries, and folds them again by the published rules if its own rules may be outdated.

    They may be outdated if a metric is not declared, or if a subject seems to be in the wrong partition: another worker
    may have published rules that declare or spread the metric. If those of the fold have a lower number than the given
    one, `follow` reads the published rules at once, and the next call of the object does after `notice`.

    Args:
        rules: The rules to begin with.
        make: Returns the fold for given rules.
        latest: Called with the number that the rules should have at least, 0 for any; returns the published rules and
            their number, or `None` if they cannot be read. An error that it raises is raised by the call and `follow`.
        revision: The number of `rules`; 0 if they have none.
    """

    def __init__(
        self,
        rules: Rules,
        make: Callable[[Rules], Fold],
        latest: Callable[[int], tuple[Rules, int] | None],
        revision: int = 0,
    ) -> None:
        self._rules = rules
        self._make = make
        self._latest = latest
        self._revision = self._noticed = revision
        self._fold = make(rules)

    def __call__(
        self, entries: Sequence[Entry], excluded: Mapping[FoldFault, str] | None = None
    ) -> tuple[FoldResult, Sequence[Entry]]:
        """Fold entries as `Fold` does; if the rules may be outdated, fold again by the published rules if they differ.

        Arguments and result are those of `Fold`. First `follow` the number of the last `notice`. Later calls use the
        rules that were read last. `revision` of the returned `FoldResult` is the number of the rules that it was folded
        by.

        Any error of `latest` and of the fold is raised.
        """
        self.follow(self._noticed)
        while True:
            result, rest = self._fold(entries, excluded)
            result.revision = self._revision
            if not result.may_be_outdated or not self._refresh(0):
                return result, rest

    def follow(self, revision: int) -> bool:
        """If the number of the present rules is below `revision`, read the published rules; fold by them from now on.

        Args:
            revision: The number that the rules should have at least.

        Returns:
            Whether the rules have at least this number now; false if newer ones cannot be read.

        Any error of `latest` is raised; then the rules have not changed.
        """
        if self._revision < revision:
            self._refresh(revision)
        return self._revision >= revision

    def notice(self, revision: int) -> None:
        """Make each later fold `follow` rules with this number first; safe across threads. Nothing is read now.

        The number of an earlier call is replaced.
        """
        self._noticed = revision

    def _refresh(self, revision: int) -> bool:
        """Fold by the published rules from now on; return whether they differ from those before.

        If they cannot be read, keep the present rules and return false. If only their number differs, take the number
        and return false.
        """
        found = self._latest(revision)
        if found is None or found == (self._rules, self._revision):
            return False
        rules, self._revision = found
        if differs := rules != self._rules:
            self._rules, self._fold = rules, self._make(rules)
        return differs
