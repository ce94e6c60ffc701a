"""While a node is down, the alerts of the other nodes fire, end and are delivered; answers name what is missing."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest
import structlog

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import NodeUnreachable
from tallystream.rules.alerts import Alert
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.keys import Layout
from tallystream_worker.maintenance.partitions import for_each_partition
from tallystream_worker.runtime.app import counting
from tallystream_worker.settings.alerts import Hook
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.http_service import http_service
from tests.integration.alerts.test_alerts import receiving
from tests.local_cluster import KINDS, local_cluster
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

PARTITIONS = 8
SUBJECTS = [f"s{number}" for number in range(40)]
RULES = Rules({"view": Metric("", ("hour",), ids=None)}, alert=(Alert("busy", "view", over="1h", above=1),))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_frozen", [False, True], ids=["killed", "frozen"])
@pytest.mark.parametrize("which", ["another node", "node of meta"])
def test_alerts_of_other_nodes_go_on(kind, is_frozen, which, tmp_path: Path):
    """An alert on a range fires for a subject of another node, also after a rebuild, and is delivered once."""
    with ExitStack() as stack:
        cluster = stack.enter_context(local_cluster(kind, tmp_path, replicas=0))
        for node in cluster.nodes:
            node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        receiver = stack.enter_context(receiving())
        layout = Layout(PARTITIONS)
        meta = cluster.owner(layout.root)
        owners = [cluster.owner(keys.stream) for keys in layout.keys]
        gone = meta if which == "node of meta" else next(owner for owner in owners if owner is not meta)
        kept = next(each for each in SUBJECTS if cluster.owner(layout.keys_of(each).stream) is not gone)
        redis = RedisSettings(url=cluster.url, partitions=PARTITIONS)
        settings = Settings(redis=redis, rules=RULES, hooks={"busy": Hook(receiver.url)})
        client = stack.enter_context(closing(connect(cluster.url)))
        worker = stack.enter_context(counting(settings, structlog.get_logger()))
        client.hset(layout.root, "generation", 1)  # as after a rebuild: each partition names its live generation
        http = stack.enter_context(http_service(cluster.url))
        assert http.get("/v1/alerts").json()["unreachable"] == []
        services = {"alerts-evaluate", "alerts-deliver"}
        until(
            lambda: all(each.passed > each.tried for each in worker.service_health if each.name in services),
            20,
            what="a pass of the services",
        )
        if is_frozen:
            gone.freeze()
            stack.callback(gone.thaw)
        else:
            gone.server.kill()
        others = [node for node in cluster.nodes if node is not gone]
        until(lambda: all(b"fail" in bytes(node.ask("CLUSTER", "NODES")) for node in others), 30, 0.05, "the failure")
        for _ in range(2):
            client.xadd(layout.keys_of(kept).stream, {"metric": "view", "subject": kept})
        until(lambda: receiver.states, 60, what="a notification")
        assert receiver.states == [(kept, "firing")]
        lost = [keys.stream for keys, owner in zip(layout.keys, owners, strict=True) if owner is gone]
        answer = http.get("/v1/alerts", timeout=40).json()
        assert [each["stream"] for each in answer["unreachable"]] == lost
        assert [each["subject"] for each in answer["firing"]] == [kept]
        if which == "another node":
            seen = []
            with pytest.raises(NodeUnreachable, match=layout.keys[owners.index(gone)].stream):
                for_each_partition(
                    client, Deployment.find(client, in_part=True), lambda number, *_: seen.append(number)
                )
            assert seen == [number for number, owner in enumerate(owners) if owner is not gone]
