"""The report of an audit: the counters that differ, and the entries or snapshot that the comparison is based on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tallystream_worker.rebuild.values import Difference


@dataclass(frozen=True)
class Scope:
    """The part of one partition that an audit could prove, and its base.

    Attributes:
        stream: The stream of the partition.
        base: The source of the oldest entries or counters: `log` (the stream), `archive` or `snapshot`.
        moment: Time of the snapshot, or of the ID up to which entries were left out, in seconds since 1970; 0 if every
            entry was folded.
        since: Only buckets that begin after this second (since 1970) could be proved; 0 if everything could.
        unproved: Number of keys that were in the span of the audit and could not be proved.
    """

    stream: str
    base: str
    moment: float
    since: float
    unproved: int


@dataclass(frozen=True)
class Report:
    """The result of an audit.

    Attributes:
        counters: Number of counters that should exist and were compared, with the outcomes in the ledgers; a
            leaderboard is one. Live counters that should not exist, and the places of resets, are compared too, but are
            only in `differences` and `uncertain`.
        entries: Number of entries that were folded.
        expired: Number of pieces (see `Piece`) that were not compared, because they are past their retention, of a
            removed period, or left over from a rule that was changed.
        differences: The counters that differ from the expected value, without the uncertain ones. Each subject that
            differs on a leaderboard is one of them.
        uncertain: The counters that differ and may be right, because it is not known by which rules their events were
            counted; none of them is in `differences`. Empty if `audit` was called without `followed`.
        wrong: How many of `counters` differ, the uncertain ones included.
        scopes: For each partition that has a stream, what could be proved.
    """

    counters: int
    entries: int
    expired: int
    differences: list[Difference] = field(default_factory=list)
    uncertain: list[Difference] = field(default_factory=list)
    wrong: int = 0
    scopes: list[Scope] = field(default_factory=list)

    @property
    def unproved(self) -> int:
        """Number of keys, in all partitions, that were in the span of the audit and could not be proved."""
        return sum(scope.unproved for scope in self.scopes)

    def said(self) -> dict[str, object]:
        """Return the fields of a log line.

        `counters`, `unproved`, `uncertain` and `differences` are numbers; `first` has the names of up to five of the
        differences, separated by commas.
        """
        return {
            "counters": self.counters,
            "unproved": self.unproved,
            "uncertain": len(self.uncertain),
            "differences": len(self.differences),
            "first": ", ".join(each.counter for each in self.differences[:5]),
        }


def sum_reports(reports: Iterable[Report]) -> Report:
    """Return one report of several partitions: the numbers are added, the lists joined."""
    found = Report(0, 0, 0)
    for each in reports:
        found = Report(
            found.counters + each.counters,
            found.entries + each.entries,
            found.expired + each.expired,
            found.differences + each.differences,
            found.uncertain + each.uncertain,
            found.wrong + each.wrong,
            found.scopes + each.scopes,
        )
    return found
