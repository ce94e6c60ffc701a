"""`emit --wait` names the rules that may have left the event out of the totals, and no others."""

from __future__ import annotations

import pytest

from tallystream.rules.metrics import Metric
from tallystream_worker.cli.commands.emit import _may_leave_out


@pytest.mark.parametrize(
    ("rule", "at", "id_", "names"),
    [
        (Metric(), None, None, []),
        (Metric(), 1.0, None, []),  # every age is accepted
        (Metric(), 1.0, "x", ["ids", "accept_late"]),
        (Metric(ids=None), 1.0, "x", []),
        (Metric(accept_late="1h"), 1.0, None, []),  # late events are counted
        (Metric(accept_late="1h", late="aside"), 1.0, None, ["accept_late"]),
        (Metric(accept_late="1h", late="aside"), None, None, []),
        (Metric(accept_late="forever", late="aside"), 1.0, "x", ["ids"]),
        (Metric(once="forever"), None, "x", ["once"]),  # with `once`, ids have no effect
        (Metric(once="day"), 1.0, "x", ["once", "accept_late"]),
        (Metric(limit=5, per="hour"), 1.0, None, ["limit", "accept_late"]),
        (None, 1.0, "x", []),
    ],
)
def test_the_rules_that_may_leave_an_event_out(rule, at, id_, names):
    """A rule is named only if it can leave out an event with such an id and time."""
    assert _may_leave_out(rule, at, id_) == names
