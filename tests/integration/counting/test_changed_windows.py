"""If the windows of a metric with votes or ids change, stored records still name the buckets that they were counted in.

A later vote of an actor, or an earlier copy of an event, takes the stored amount out of these buckets.
"""

from __future__ import annotations

import itertools
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tallystream.deployment import Deployment
from tallystream.producing.producer import Producer
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream_worker.rebuild.audit import audit
from tests.harness import Harness
from tests.integration.rebuild.test_rebuild import rebuilt

if TYPE_CHECKING:
    from tallystream.wire.window import Window

CHANGES: list[tuple[tuple[Window, ...], tuple[Window, ...]]] = [
    ((), ("day",)),
    (("day",), ("hour", "day")),
    (("day",), ("day", "month")),
    (("hour",), ("day",)),
    (("hour", "day"), ("day", "hour")),
    (("hour", "day"), ("day",)),
    (("minute", "day", "month"), ("month", "hour")),
    (("day",), ()),
]


def rules(windows: tuple[Any, ...], limit: int | None) -> Rules:
    """Return rules for votes and for events with ids."""
    sale = Metric(windows=windows) if limit is None else Metric(windows=windows, limit=limit, per="minute")
    return Rules({"vote": Metric(once="forever", windows=windows), "sale": sale, "view": Metric()})


@pytest.mark.parametrize("limit", [None, 9])
@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_records_of_other_windows(server, before, after, limit):
    """Each window that both rules have is exact; the present buckets of an added window are missing."""
    now = time.time() // 3600 * 3600 - 1700
    server.clear()
    with Harness(server.url, rules=rules(before, limit), partitions=1) as harness:

        def emit(amount: int, at: float) -> None:
            with Producer(harness.url) as producer:
                producer.emit("vote", "s1", amount, actor="u1", at=-at + 2 * now)
                producer.emit("sale", "s1", 1, id="x", at=at)
                producer.emit("view", "s1", 1, at=at)
            harness.drain()

        emit(1, now + 20)
        harness.rules = rules(after, limit)
        harness.client.hset(harness.layout.meta, "rules", publish(harness.rules))
        emit(-1, now)
        with closing(Totals(harness.url)) as totals:
            assert totals.get_many(itertools.product(["s1"], ["vote", "sale", "view"])).values == {
                ("s1", "vote"): -1, ("s1", "sale"): 1, ("s1", "view"): 2,
            }  # fmt: skip
            for window in after:
                for metric, value in (("vote", -1), ("sale", 1)):
                    found = totals.series("s1", metric, window, 45 if window == "minute" else 2).series
                    expected = value if window in before else 0
                    assert sum(point.value or 0 for point in found) == expected, (metric, window)
            rebuilt(harness)
            found = audit(harness.client, Deployment.create_or_load(harness.client), harness.rules)
            assert found.differences == []
