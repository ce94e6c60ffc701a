"""A command notices that a node failed over between two of its steps, and does not continue as if nothing was lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import structlog
from structlog.testing import LogCapture

from tallystream.deployment import Deployment
from tallystream.errors import StreamError
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.keys import Layout
from tallystream_worker.process.barrier import step
from tallystream_worker.process.failover_watch import FailoverWatch
from tallystream_worker.runtime import app
from tallystream_worker.runtime.app import open_deployment
from tallystream_worker.settings.settings import RedisSettings, Settings
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


def test_rules_that_are_published_in_a_failover_are_logged(cluster, server, monkeypatch):
    """The new primary confirms what it has, which may lack the rules: so the worker logs that they may be lost."""
    publish, lines = app.publish_rules, LogCapture()
    log = structlog.wrap_logger(None, processors=[lines])
    settings = Settings(RedisSettings(server.url), rules=Rules({"view": Metric()}))
    open_deployment(settings, log)

    def publish_and_fail_over(*arguments):
        published = publish(*arguments)
        fail_over(cluster, cluster.owner("tally:meta"))
        return published

    monkeypatch.setattr(app, "publish_rules", publish_and_fail_over)
    open_deployment(replace(settings, rules=Rules({"view": Metric(), "like": Metric()})), log)
    (line,) = [line for line in lines.entries if line["event"] == "rules.unconfirmed"]
    assert "the rules are published, but meanwhile the server 127.0.0.1:" in line["problem"]


def fail_over(cluster, victim):
    """Let the replica of a primary take over, and return it."""
    heir = cluster.replica_of(victim)
    until(lambda: heir.ask("CLUSTER", "FAILOVER"), 10, 0.1, "the failover")
    until(heir.is_primary, 30, 0.01, "the promotion")
    cluster.wait_until_whole()
    return heir
