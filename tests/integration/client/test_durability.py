"""Durability: an event counts as appended only when its write has the required durability."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest
from redis.exceptions import RedisError, ResponseError

from tallystream import ConfigurationError, FlushTimeout, Producer, Unconfirmed
from tallystream.client.durability import DurabilityCheck
from tallystream.deployment import Deployment
from tallystream.producing.appender import Appender
from tallystream.producing.partition_queue import SealedEntry
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.packer import EntryBuilder
from tallystream_worker.repartition.migration import repartition
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.harness import Harness
from tests.proxy import Proxy
from tests.servers import missing
from tests.waiting import until


@pytest.fixture
def primary(fresh_server):
    """A server that a replica can follow."""
    return fresh_server(port=0, extra=["--repl-diskless-sync-delay", "0"])


def replica_of(fresh_server, primary):
    """Start a replica and wait until it has every write of the primary."""
    replica = fresh_server(extra=["--replicaof", "127.0.0.1", primary.url.rpartition(":")[2]])
    with Harness(primary.url) as harness:
        until(lambda: harness.client.execute_command("WAIT", 1, 100) == 1, what="a replica in step")
    return replica


@contextlib.contextmanager
def frozen(server):
    """Suspend a server's process within the block, like a machine that hangs."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_nothing_is_appended_before_a_replica_has_it(fresh_server, primary):
    """With `durability="replica"` events are confirmed only when a replica has them, and are counted once."""
    with Harness(primary.url) as harness, Producer(primary.url, durability="replica") as producer:
        for _ in range(10):
            producer.emit("view", "article:1")
        with pytest.raises(FlushTimeout):
            producer.flush(1.3)
        assert (producer.stats.appended, producer.stats.buffered) == (0, 10)
        assert producer.stats.unconfirmed >= 1
        replica = replica_of(fresh_server, primary)
        producer.flush(20)
        assert producer.stats.appended == 10
        copy = harness.connect(replica.url)
        assert sum(copy.xlen(keys.stream) for keys in harness.layout.keys) == 1
        harness.drain()
        assert harness.totals() == {("view", "article:1"): 10}


def test_a_confirmation_covers_what_another_connection_wrote(fresh_server, primary):
    """An entry that is sent again on a new connection is confirmed only when the replica has its first write."""
    replica = replica_of(fresh_server, primary)
    pack = EntryBuilder()
    pack.add("view", "a", 1, 60.0, None, None)
    with Harness(primary.url) as harness, Proxy(primary.url) as proxy:
        appender = Appender(harness.connect(proxy.url), harness.layout, durability=DurabilityCheck("replica"))
        appender.push(0, SealedEntry(1, 1, 1, pack.build()))
        assert len(appender.send()[0]) == 1
        appender.push(0, SealedEntry(2, 1, 1, pack.build()))
        with frozen(replica):
            assert appender.send() == ([], None)
            assert harness.client.xlen(harness.layout.keys[0].stream) == 2  # written, not confirmed
            proxy.cut()
            with contextlib.suppress(RedisError):
                appender.send()
            assert appender.send() == ([], None)
        until(lambda: appender.send()[0])
        assert appender.resent == 1
        assert harness.client.xlen(harness.layout.keys[0].stream) == 2


def test_a_repartition_confirms_nothing_that_no_replica_has(fresh_server, primary):
    """Events that no replica has stay unconfirmed when they are found in a topic that another one has replaced."""
    replica = replica_of(fresh_server, primary)
    with Harness(primary.url) as harness, Producer(primary.url, durability="replica") as producer:
        producer.emit("view", "a")
        producer.flush(10)
        with frozen(replica):
            producer.emit("view", "a")
            with pytest.raises(FlushTimeout):
                producer.flush(1.3)
            settings = Settings(RedisSettings(primary.url), rules=harness.rules)
            repartition(settings, Deployment.load(harness.client), 3)
            producer.emit("view", "a")  # the closed topic refuses it, so the producer moves
            with pytest.raises(FlushTimeout):
                producer.flush(3)
            assert producer.stats.appended == 1
        producer.flush(20)
        assert producer.stats.appended == 3
        harness.layout = Deployment.load(harness.client).layout
        harness.finish()
        assert harness.totals() == {("view", "a"): 3}


def test_a_decision_that_no_replica_has_says_so(primary):
    """With `durability="replica"` an unconfirmed decision raises `Unconfirmed`, which states that it was counted."""
    rules = Rules({"call": Metric(ids=None, limit=5, per="total")})
    with Harness(primary.url, rules=rules) as harness, Producer(primary.url, durability="replica") as producer:
        with pytest.raises(Unconfirmed, match="was decided"):
            producer.decide("call", "key:1")
        harness.drain()
        assert harness.ledger()["counted"] == 1


def test_an_event_can_wait_for_the_disk(fresh_server):
    """With `durability="fsync"` events are confirmed and counted on a server that syncs once a second."""
    server = fresh_server(extra=["--appendfsync", "everysec"])
    with Harness(server.url) as harness, Producer(server.url, durability="fsync") as producer:
        producer.emit("view", "article:1")
        producer.flush(10)
        harness.drain()
        assert harness.totals() == {("view", "article:1"): 1}


def test_a_server_without_waitaof_is_refused_with_what_to_do(fresh_server):
    """With `durability="fsync"` a server without `WAITAOF` (Redis 7.0) raises a `ConfigurationError` with a remedy."""
    binary = shutil.which("redis-server") or missing("no redis-server on PATH", unless="CI")
    server = fresh_server(binary=Path(binary))
    with Harness(server.url) as harness, contextlib.suppress(ResponseError):
        harness.client.execute_command("WAITAOF", 0, 0, 0)
        pytest.skip("this server has WAITAOF")
    producer = Producer(server.url, durability="fsync")
    producer.emit("view", "article:1")
    with pytest.raises(ConfigurationError, match="needs WAITAOF, which this server does not have"):
        producer.flush(10)
    with pytest.raises(ConfigurationError):
        producer.close()


def test_a_server_without_an_append_only_file_is_refused(fresh_server):
    """With `durability="fsync"` a server without an append-only file raises a `ConfigurationError` with a remedy."""
    server = fresh_server(extra=["--appendonly", "no"])
    producer = Producer(server.url, durability="fsync")
    producer.emit("view", "article:1")
    with pytest.raises(ConfigurationError, match="set appendonly yes"):
        producer.flush(10)
    with pytest.raises(ConfigurationError):
        producer.close()


def test_an_unknown_confirmation_is_refused():
    """The constructor rejects an unknown durability, and the error lists the known ones."""
    with pytest.raises(ConfigurationError, match="durability must be memory, replica or fsync, not 'disk'"):
        Producer(durability="disk")


def test_a_worker_says_that_no_replica_has_what_it_counted(primary):
    """With `durability="replica"` a batch that no replica has is counted once, and the pass raises `Unconfirmed`."""
    with Harness(primary.url) as harness:
        with Producer(primary.url) as producer:
            producer.emit("view", "article:1")
        partition = next(n for n, keys in enumerate(harness.layout.keys) if harness.client.xlen(keys.stream))
        consumer = harness.consumer(partition, durability=DurabilityCheck("replica"))
        with pytest.raises(Unconfirmed, match="no replica or disk"):
            consumer.run_once()
        assert consumer.run_once() == 0
        assert harness.totals() == {("view", "article:1"): 1}
        assert harness.waiting() == 0
