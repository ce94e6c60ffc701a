"""If a node is down when the switch of a repartition fails, the partitions of the other nodes are open again."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import RedisError

from tallystream.deployment import Deployment
from tallystream.errors import StreamError
from tallystream.storage.keys import CLOSED, Layout
from tallystream_worker.repartition import migration, topic
from tallystream_worker.repartition.catch_up import CatchUpCounter
from tallystream_worker.repartition.migration import Repartition
from tests.harness import Harness
from tests.integration.rebuild.test_rebuild import settings_for
from tests.integration.repartition.test_lost_writes import PLAIN
from tests.local_cluster import KINDS, local_cluster

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", KINDS)
def test_partitions_of_other_nodes_are_opened_again(kind, tmp_path: Path, monkeypatch):
    """The error states that a node does not answer, and its cause is the error that ended the switch."""
    with ExitStack() as stack:
        cluster = stack.enter_context(local_cluster(kind, tmp_path, replicas=0))
        for node in cluster.nodes:
            node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        layout = Layout(16)
        meta = cluster.owner(layout.root)
        gone = next(owner for keys in layout.keys if (owner := cluster.owner(keys.stream)) is not meta)
        harness = stack.enter_context(Harness(cluster.url, rules=PLAIN, partitions=16))
        deployment, settings = Deployment.load(harness.client), settings_for(cluster.url, PLAIN, 0)
        run = Repartition(settings, harness.client, deployment, topic.propose(harness.client, deployment, 3))
        run.begin()
        counting = stack.enter_context(CatchUpCounter(settings, run.new, PLAIN))
        run.catch_up(counting)
        away = [keys for keys in layout.keys if cluster.owner(keys.stream) is gone]

        def fail(_: CatchUpCounter) -> None:
            gone.server.kill()
            raise StreamError("the copies are not counted")

        monkeypatch.setattr(migration, "_count_all", fail)
        with pytest.raises(RedisError) as raised:
            run.switch(counting)
        assert str(raised.value.__cause__) == "the copies are not counted"
        reached = [keys for keys in layout.keys if keys not in away]
        assert 0 < len(reached) < len(layout.keys)
        assert {bytes(harness.client.hget(keys.sequences, CLOSED)) for keys in reached} == {b""}
