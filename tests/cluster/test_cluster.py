"""Every part of the product works with the URL of a cluster, and refuses a URL of the wrong kind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess

import pytest
import redis
import structlog

from tallystream import ConfigurationError, Producer, aio
from tallystream.client.connect import _ClusterUrl, connect
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream_worker.runtime.app import counting
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.harness import Harness
from tests.integration.cli.test_cli import PROGRAM


def test_from_emit_to_total(server):
    """Events of a producer are counted and read on a cluster with several nodes, and the ledger agrees."""
    settings = Settings(redis=RedisSettings(url=server.url))
    with (
        counting(settings, structlog.get_logger()),
        Producer(server.url) as producer,
        Totals(server.url) as totals,
        asyncio.Runner() as runner,
    ):
        for i in range(300):
            producer.emit("view", f"article:{i % 30}")
        producer.flush(20, wait="counted")
        wanted = [(f"article:{i}", "view") for i in range(30)]
        assert set(totals.get_many(wanted).values.values()) == {10}
        reader = aio.Totals(server.url)
        assert set(runner.run(reader.get_many(wanted)).values.values()) == {10}
        for books in (
            totals.run(query_ledger(totals.deployment.layout)),
            runner.run(reader.run(query_ledger(totals.deployment.layout))),
        ):
            assert (books.appended, books.counted, books.unaccounted) == (300, 300, 0)
        runner.run(reader.close())
    nodes = {server.cluster.owner(keys.stream).port for keys in totals.deployment.layout.keys}
    assert len(nodes) > 1  # earlier tests may have moved slots


def test_decisions(server):
    """A decision on a cluster is made by the node of the subject's partition, and respects the limit."""
    rules = Rules({"call": Metric(limit=2, per="hour")})
    with Harness(server.url, rules=rules, metrics=()) as harness, Producer(server.url) as producer:
        harness.client.hset(harness.layout.meta, "rules", publish(rules))
        for subject in ("a", "b", "c", "d"):
            verdicts = [producer.decide("call", subject).accepted for _ in range(3)]
            assert verdicts == [True, True, False]


def test_replicas_confirm(server):
    """With durability "replica", a flush on a cluster confirms every entry on a replica."""
    with Producer(server.url, durability="replica") as producer:
        for i in range(50):
            producer.emit("view", f"article:{i}")
        producer.flush(20)
        assert producer.stats.unconfirmed == 0


def test_the_command_line(server):
    """`tallystream status` accepts the URL of a cluster."""
    with Producer(server.url) as producer, Harness(server.url) as harness:
        producer.emit("view", "article:1", 3)
        producer.flush(10)
        harness.drain()
    ran = subprocess.run(
        [PROGRAM, "status", "--redis", server.url, "--json"], check=True, capture_output=True, text=True
    )
    assert json.loads(ran.stdout)["ledger"]["counted"] == 1


def test_a_plain_url_to_a_node_is_refused(server):
    """A `redis://` URL of a cluster node is refused by every client, with the form of the correct URL."""
    port = server.cluster.nodes[0].port
    plain = f"redis://127.0.0.1:{port}"
    with contextlib.closing(connect(plain)) as client, pytest.raises(ConfigurationError, match="redis\\+cluster://"):
        client.ping()
    producer = Producer(plain)
    producer.emit("view", "article:1")
    with pytest.raises(ConfigurationError, match="redis\\+cluster://"):
        producer.flush(10)
    with contextlib.suppress(ConfigurationError):
        producer.close()

    async def ask() -> None:
        async with aio.Totals(plain) as totals:
            await totals.deployment()

    with pytest.raises(ConfigurationError, match="redis\\+cluster://"):
        asyncio.run(ask())


def test_a_cluster_url_to_a_single_server_is_refused(fresh_server):
    """A `redis+cluster://` URL of a single server is refused, with the form of the correct URL."""
    url = fresh_server(port=0).url.replace("redis://", "redis+cluster://")
    with contextlib.closing(connect(url)) as client, pytest.raises(ConfigurationError, match="write redis://"):
        client.get("x")


def test_a_script_that_a_node_lacks_is_loaded(server):
    """After SCRIPT FLUSH on some or all nodes, the scripts are loaded again, and every event is counted."""
    with Harness(server.url) as harness, Producer(server.url) as producer:
        for round_ in range(3):
            for node in server.cluster.nodes[: round_ + 1]:
                with contextlib.suppress(redis.RedisError):
                    node.ask("SCRIPT", "FLUSH")
            for i in range(20):
                producer.emit("view", f"article:{i}")
            producer.flush(10)
            harness.drain()
        assert sum(harness.totals().values()) == 60


@pytest.mark.parametrize(
    ("url", "hosts", "first"),
    [
        ("redis+cluster://a", [("a", 6379)], "redis://a:6379"),
        ("redis+cluster://a:1,b:2,[::1]:3/0", [("a", 1), ("b", 2), ("::1", 3)], "redis://a:1"),
        (
            "rediss+cluster://u:p%40s@a:1,b?ssl_cert_reqs=none",
            [("a", 1), ("b", 6379)],
            "rediss://u:p%40s@a:1?ssl_cert_reqs=none",
        ),
    ],
)
def test_a_url_names_nodes(url, hosts, first):
    """A cluster URL is parsed into its nodes; the URL of each node has the same user and options."""
    found = _ClusterUrl.parse(url)
    assert (found.hosts, found.of(found.hosts[0])) == (hosts, first)
    assert found.of(("::1", 3)).rpartition("?")[0].endswith("[::1]:3") or found.of(("::1", 3)).endswith("[::1]:3")


@pytest.mark.parametrize("url", ["redis+cluster://", "redis+cluster://a:x", "redis+cluster://a:1/3"])
def test_a_url_that_cannot_be_is_refused(url):
    """A cluster URL without nodes, with an invalid port or with a database is refused, with the correct form."""
    with pytest.raises(ConfigurationError, match="redis\\+cluster://HOST:PORT,HOST:PORT"):
        connect(url)
