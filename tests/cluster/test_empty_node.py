"""A node that comes back empty is noticed: its partitions stop, the others continue, and `reopen` opens them again."""

from __future__ import annotations

import pytest
import structlog
from structlog.testing import LogCapture

from tallystream import Producer, Totals
from tallystream.deployment import Deployment
from tallystream.errors import KeyLost
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.keys import Layout
from tallystream_worker.rebuild.reopen import reopen
from tallystream_worker.runtime.app import counting
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.integration.cli.test_cli import Shell
from tests.waiting import until

RULES = Rules({"view": Metric("", ("hour",), ids=None), "call": Metric("", limit=3, per="total", ids=None)})
PARTITIONS = 8
SUBJECTS = [f"s{number}" for number in range(40)]


@pytest.mark.timeout(120)
def test_a_node_that_comes_back_empty_is_noticed(cluster, server, tmp_path):
    """No total is 0 or too small, no decision exceeds a used-up limit, and each lost partition is named."""
    layout = Layout(PARTITIONS)
    meta = cluster.owner(layout.root)
    empty = next(owner for keys in layout.keys if (owner := cluster.owner(keys.stream)) is not meta)
    lost = [keys.stream for keys in layout.keys if cluster.owner(keys.stream) is empty]
    gone, kept = (
        next(each for each in SUBJECTS if (layout.keys_of(each).stream in lost) is is_lost) for is_lost in (True, False)
    )
    capture = LogCapture()
    log = structlog.wrap_logger(None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(0))
    settings = Settings(redis=RedisSettings(url=server.url, partitions=PARTITIONS), rules=RULES)
    with counting(settings, log) as worker, Totals(server.url) as totals, Producer(server.url) as producer:
        for subject in SUBJECTS:
            for _ in range(3):
                producer.emit("view", subject)
                assert producer.decide("call", subject).accepted
        producer.flush(30, wait="counted")
        empty.ask("FLUSHALL")
        for read in (
            lambda: totals.get(gone, "view"),
            lambda: totals.get_many([(gone, "view"), (kept, "view")]),
            lambda: producer.decide("call", gone),
        ):
            with pytest.raises(KeyLost) as caught:
                read()
            assert "tallystream re" in str(caught.value)
        assert totals.get(kept, "view").value == 3
        assert not producer.decide("call", kept).accepted
        producer.emit("view", kept)
        producer.flush(30)
        until(lambda: totals.get(kept, "view").value == 4, 20, what="counting on the other nodes")
        until(
            lambda: {each["stream"] for each in capture.entries if each["event"] == "partition.paused"} >= set(lost),
            30,
            what="an error of each lost partition",
        )
        assert lost[0].removesuffix("stream") in Shell(server.url, tmp_path)("status", status=1).stderr
        assert reopen(server.client(), Deployment.load(server.client())).opened == lost
        until(lambda: all(each.problem is None for each in worker.health), 30, what="all partitions to be counted")
        producer.emit("view", gone)
        producer.flush(30, wait="counted")
        assert totals.get(gone, "view").value in (1, 4)  # the producer sends again what it still keeps
