"""While a node is down, the workers of the other partitions follow a new topic and a new generation."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest
import structlog

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.keys import partition_of
from tallystream_worker.rebuild.rebuild import Rebuild, propose
from tallystream_worker.repartition.migration import repartition
from tallystream_worker.runtime.app import open_deployment
from tallystream_worker.runtime.partition_follower import PartitionFollower
from tallystream_worker.runtime.supervisor import WorkerPool
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.local_cluster import KINDS, local_cluster
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    import redis

RULES = Rules({"view": Metric("", ids=None)})
SUBJECTS = [f"s{number}" for number in range(40)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["topic", "generation"])
def test_workers_of_other_nodes_follow(kind, change, tmp_path: Path):
    """What became live just before a node died is counted in the partitions that can be reached."""
    with ExitStack() as stack:
        cluster = stack.enter_context(local_cluster(kind, tmp_path, replicas=0))
        for node in cluster.nodes:
            node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        log = structlog.get_logger()
        settings = Settings(redis=RedisSettings(url=cluster.url), rules=RULES)
        open_deployment(settings)
        client = stack.enter_context(closing(connect(cluster.url)))
        deployment = Deployment.load(client)
        follower = PartitionFollower(settings, deployment, log, lambda found: WorkerPool(settings, found, log))
        stack.callback(lambda: follower.stop(time.monotonic() + 30))
        if change == "topic":
            follower.pool.start()
            repartition(Settings(redis=RedisSettings(url=cluster.url)), deployment, 8)
            rebuild(settings, client)  # each partition names its live generation
        else:
            rebuild(settings, client)
        layout = Deployment.load(client).layout
        described = {cluster.owner(layout.root), cluster.owner(layout.meta)}
        gone = next(owner for each in layout.keys if (owner := cluster.owner(each.stream)) not in described)
        kept = [each for each in SUBJECTS if cluster.owner(layout.keys_of(each).stream) is not gone]
        gone.server.kill()
        others = [node for node in cluster.nodes if node is not gone]
        until(lambda: all(b"fail" in bytes(node.ask("CLUSTER", "NODES")) for node in others), 30, 0.05, "the failure")
        for subject in kept:
            client.xadd(layout.keys_of(subject).stream, {"metric": "view", "subject": subject})
        if change == "generation":
            follower.pool.start()
        follower.run_once()
        assert follower.pool.layout.topic == layout.topic
        names = [layout.keys_of(subject).total("view", subject) for subject in kept]
        until(lambda: [client.get(name) for name in names] == [b"1"] * len(kept), 30, what="the counting of the others")
        served = {each.partition: each.problem for each in follower.pool.health}
        assert {partition_of(subject, layout.partitions) for subject in kept} == {
            number for number, problem in served.items() if problem is None
        }


def rebuild(settings: Settings, client: redis.Redis) -> None:
    """Count the live topic again, and switch to the new generation."""
    number = propose(client, Deployment.load(client), RULES)
    with Rebuild(settings, Deployment.load(client), number) as run:
        run.begin()
        run.catch_up()
        run.switch()
