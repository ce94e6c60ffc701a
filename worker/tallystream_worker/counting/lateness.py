"""Finds late events: events that are older than their metric accepts.

The age of an event is the time from the event until the server received its entry (`Entry.received`).
Neither time ever changes and no clock is read, so an event is late in every fold or in none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tallystream.rules.metrics import Metric
    from tallystream_worker.counting.entry import Entry
    from tallystream_worker.counting.fold_result import FoldResult


def is_late(entry: Entry, rule: Metric, at: int) -> bool:
    """Return whether events of millisecond `at` are older than the metric accepts (`accept_late`).

    False if the metric accepts any age. Events whose id counts once have another limit: see `record_if_late`.
    """
    accepted = rule.late_seconds
    return accepted is not None and entry.received - at > accepted * 1000


def record_if_late(
    result: FoldResult, entry: Entry, metric: str, rule: Metric, at: int, events: int, *, has_id: bool = False
) -> bool:
    """If events of millisecond `at` are late, add their number to the result; return whether they must not be counted.

    Late events are added to `result.late` if the rule does not count them, else to `result.late_counted`. Events that
    are not late change nothing. Events whose id counts once (`has_id` and `Metric.keeps_ids`) have their own limit,
    `Metric.id_late_seconds`. If such an event is late, it is added to `result.late` and must not be counted, whatever
    the metric's `late` is, because the ids that would show whether it is a copy may be removed already.
    """
    by_id = has_id and rule.keeps_ids
    accepted = rule.id_late_seconds if by_id else rule.late_seconds
    if accepted is None or entry.received - at <= accepted * 1000:
        return False
    if by_id or rule.rejects_late:
        result.late[metric] += events
        return True
    result.late_counted[metric] += events
    return False
