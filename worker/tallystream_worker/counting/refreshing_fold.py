"""Folds by newer rules if a subject seems to be in the wrong partition."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tallystream.rules.metrics import Rules
    from tallystream_worker.counting.entry import Entry
    from tallystream_worker.counting.fold import Fold
    from tallystream_worker.counting.fold_result import FoldFault, FoldResult


class RefreshingFold:
    """Folds entries, and folds them again by newer rules if a subject seems to be in the wrong partition.

    The subject's metric may be spread in rules that another worker has published since.

    Args:
        rules: The rules to begin with.
        make: Returns the fold for given rules.
        latest: Returns the published rules, or `None` if they cannot be read.
    """

    def __init__(self, rules: Rules, make: Callable[[Rules], Fold], latest: Callable[[], Rules | None]) -> None:
        self._rules = rules
        self._make = make
        self._latest = latest
        self._fold = make(rules)

    def __call__(
        self, entries: Sequence[Entry], excluded: Mapping[FoldFault, str] | None = None
    ) -> tuple[FoldResult, Sequence[Entry]]:
        """Fold entries as `Fold` does; if a subject seems misrouted, fold again by the published rules if they differ.

        Later calls use the newer rules.
        """
        while True:
            result, rest = self._fold(entries, excluded)
            if not result.has_misrouted:
                return result, rest
            rules = self._latest()
            if rules is None or rules == self._rules:
                return result, rest
            self._rules, self._fold = rules, self._make(rules)
