"""The parts of a rule state which counters its events change, and a reader finds what a partition lacks."""

from __future__ import annotations

import pytest

from tallystream.rules.metrics import Metric
from tallystream.rules.parts import lacking, parts

PLAIN = Metric(windows=("day",), ids=None)

CHANGES = [
    (PLAIN, Metric(windows=("day",), ids=None, floor=0, description="x", accept_late="2d"), set()),
    (PLAIN, Metric(windows=("hour", "day"), ids=None), {"hour"}),
    (Metric(windows=("hour", "day"), ids=None), PLAIN, set()),
    (PLAIN, Metric(windows=("day",), ids=None, top=5), {"boards", "all"}),
    (Metric(windows=("day",), ids=None, top=5), PLAIN, set()),
    (Metric(windows=("day",), ids=None, top=5), Metric(windows=("day",), ids=None, top=50), {"boards", "all"}),
    (Metric(windows=("day",), ids=None, top=50), Metric(windows=("day",), ids=None, top=5), set()),
    (PLAIN, Metric(windows=("day",), ids=None, unique="hour"), {"unique"}),
    (PLAIN, Metric(windows=("day",), ids=None, once="forever"), {"votes"}),
    (Metric(once="forever"), Metric(once="day"), set()),
    (Metric(limit=1, per="day"), Metric(limit=9, per="day"), set()),
    (Metric(limit=1, per="day"), Metric(limit=1, per="hour"), {"limits"}),
    (Metric(), Metric(exact=False), {"sketches", "all"}),
    (Metric(exact=False), Metric(), {"sketches", "all"}),
    (Metric(max_subjects=3), Metric(), {"sketches", "all"}),
    (Metric(), Metric(ids="month", seen="bloom"), set()),
]


@pytest.mark.parametrize(("before", "after", "kinds"), CHANGES)
def test_what_a_partition_lacks_that_counted_by_another_rule(before, after, kinds):
    """A part that is added or changed lacks earlier events; a part that is removed lacks nothing."""
    assert set(lacking(parts(before, "UTC"), after, "UTC")) == kinds


def test_another_zone_moves_only_days_and_months():
    """Minutes and hours are the same in every zone, so a change of the zone concerns only days and months."""
    rule = Metric(windows=("minute", "hour", "day", "month"))
    assert set(lacking(parts(rule, "UTC"), rule, "Asia/Kolkata")) == {"day", "month"}
