"""The rules by which the rows of a partition's snapshot are loaded: one partition may have been counted by several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tallystream_worker.snapshot.names import period_of, removal_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tallystream.rules.metrics import Rules


@dataclass(frozen=True)
class LoadRules:
    """The rules by which the rows of a partition's snapshot are loaded.

    Attributes:
        written: The rules of the snapshot: they decide in which form it stores the counters of a metric, even if the
            partition has not followed them yet.
        followed: The rules that counted the partition at the snapshot's moment. Some later entries may be counted by
            `written` already.
        earlier: The rules before those of the snapshot, the latest first.
    """

    written: Rules
    followed: Rules
    earlier: Sequence[Rules] = ()

    def stores_board(self, metric: str) -> bool:
        """Return whether the snapshot stores the leaderboard of all time of a metric as a structure, if it exists."""
        rule = self.written.metric.get(metric)
        return rule is not None and (rule.max_subjects is not None or not rule.exact)

    def removal(self, bucket: str) -> tuple[int, int] | None:
        """Return the end of a bucket and the time until which its keys are kept, or `None`: see `removal_of`.

        The bucket is kept for as long as `followed` or `written` requires, whichever is longer. If neither has a
        setting for it, the latest of `earlier` that has one decides.
        """
        found = [each for rules in (self.followed, self.written) if (each := period_of(bucket, rules)) is not None]
        found = found or [each for rules in self.earlier if (each := period_of(bucket, rules)) is not None][:1]
        if not found:
            return removal_of(bucket, self.written)
        end, times = found[0][0].end * 1000, [until for _, until in found]
        return (end, max(times)) if all(times) else None
