"""What an audit found, and what that rests on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tallystream_worker.rebuild.values import Difference


@dataclass(frozen=True)
class Scope:
    """What the counters of one partition were proved by.

    Attributes:
        stream: The partition's.
        base: `log`, `archive` or `snapshot`.
        moment: Second of the snapshot, or of the first entry that could be known; 0 for the very first.
        since: Only buckets that begin behind this second could be proved; 0 where everything could.
        unproved: Keys of counters that were asked for and could not be proved.
    """

    stream: str
    base: str
    moment: float
    since: float
    unproved: int


@dataclass(frozen=True)
class Report:
    """What an audit found.

    Attributes:
        counters: How many were compared.
        entries: How many were folded.
        expired: Buckets past their retention, which are not compared.
        differences: The counters that are not what they should be.
        scopes: By partition, what was proved by what.
    """

    counters: int
    entries: int
    expired: int
    differences: list[Difference] = field(default_factory=list)
    scopes: list[Scope] = field(default_factory=list)

    @property
    def unproved(self) -> int:
        """Keys of counters that were asked for and could not be proved."""
        return sum(scope.unproved for scope in self.scopes)

    def said(self) -> dict[str, object]:
        """Return what a line of the log says of it."""
        first = ", ".join(each.counter for each in self.differences[:5])
        return {
            "counters": self.counters, "unproved": self.unproved, "differences": len(self.differences), "first": first
        }  # fmt: skip


def sum_reports(reports: Iterable[Report]) -> Report:
    """Return one report of several partitions'."""
    found = Report(0, 0, 0)
    for each in reports:
        found = Report(
            found.counters + each.counters,
            found.entries + each.entries,
            found.expired + each.expired,
            found.differences + each.differences,
            found.scopes + each.scopes,
        )
    return found
