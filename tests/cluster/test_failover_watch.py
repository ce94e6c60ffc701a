"""A command notices that a node failed over between two of its steps, and does not continue as if nothing was lost."""

from __future__ import annotations

import pytest

from tallystream.deployment import Deployment
from tallystream.errors import StreamError
from tallystream.storage.keys import Layout
from tallystream_worker.process.barrier import step
from tallystream_worker.process.failover_watch import FailoverWatch
from tests.waiting import until


def test_each_node_is_asked_once(cluster, server):
    """However many partitions there are, a step asks each node twice for its replication ID."""
    client, layout = server.client(), Layout(64)
    FailoverWatch(client, layout)
    primaries = [node for node in cluster.nodes if node.is_primary()]
    for node in primaries:
        node.ask("CONFIG", "RESETSTAT")
    FailoverWatch(client, layout).ensure_none("nothing is written")
    stats = [node.client.info("commandstats") for node in primaries]
    assert [each["cmdstat_info"]["calls"] for each in stats] == [2] * len(primaries)


def test_a_failover_between_two_steps_is_noticed(cluster, server):
    """The error names the node that is the primary now; without a failover there is none."""
    layout = Layout(4)
    client = server.client()
    watch = FailoverWatch(client, layout)
    client.set("tally:{p0.425}:x", 1)
    watch.ensure_none("a key is written")
    heir = fail_over(cluster, cluster.owner(layout.keys[1].stream))
    with pytest.raises(
        StreamError, match=rf"^a key is written, but .* the server 127\.0\.0\.1:{heir.port} failed over"
    ):
        watch.ensure_none("a key is written")
    FailoverWatch(client, layout).ensure_none("nothing is written")


def test_a_step_with_a_failover_fails(cluster, server):
    """Also with the durability `memory`, and also if the new primary could confirm what it has."""
    client, layout = server.client(), Layout(4)
    deployment = Deployment(layout)
    with step(client, deployment, "nothing is written"):
        pass

    def write() -> None:
        with step(client, deployment, "a key is written"):
            client.set("tally:{p0.425}:x", 1)
            fail_over(cluster, cluster.owner(layout.keys[1].stream))

    with pytest.raises(StreamError, match=r"^a key is written, but .* failed over"):
        write()


def fail_over(cluster, victim):
    """Let the replica of a primary take over, and return it."""
    heir = cluster.replica_of(victim)
    until(lambda: heir.ask("CLUSTER", "FAILOVER"), 10, 0.1, "the failover")
    until(heir.is_primary, 30, 0.01, "the promotion")
    cluster.wait_until_whole()
    return heir
