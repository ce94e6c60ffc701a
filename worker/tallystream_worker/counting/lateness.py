"""The age of an entry's events: whether they are too late for their metric.

The age is the time from the event to the moment at which the server took the entry, as the entry's ID says. Both never
change, so an entry is late in each fold or in none; no clock is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tallystream.rules.metrics import Metric
    from tallystream_worker.counting.entry import Entry
    from tallystream_worker.counting.fold_result import FoldResult


def is_late(entry: Entry, rule: Metric, at: int) -> bool:
    """Tell whether events of millisecond `at` are older than the metric accepts (`accept_late`)."""
    accepted = rule.late_seconds
    return accepted is not None and entry.received - at > accepted * 1000


def set_aside_if_late(result: FoldResult, entry: Entry, metric: str, rule: Metric, at: int, events: int) -> bool:
    """Note events that are late; tell whether they are set aside, which means that they are not counted."""
    if not is_late(entry, rule, at):
        return False
    if rule.sets_late_aside:
        result.late[metric] += events
        return True
    result.late_counted[metric] += events
    return False
