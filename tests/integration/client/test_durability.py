"""Durability: an event counts as appended only when its write has the required durability."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from redis.exceptions import RedisError, ResponseError

from tallystream import ConfigurationError, FlushTimeout, Producer, Totals, Unconfirmed, aio
from tallystream.client.durability import DurabilityCheck
from tallystream.deployment import Deployment
from tallystream.producing.appender import Appender
from tallystream.producing.partition_queue import SealedEntry
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.packer import EntryBuilder
from tallystream_worker.repartition.migration import repartition
from tallystream_worker.service.server import serving
from tallystream_worker.settings.settings import RedisSettings, Settings, WorkerSettings
from tests.harness import Harness
from tests.http_service import settings_for
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


def test_a_flush_waits_until_a_replica_has_the_counting(fresh_server, primary):
    """With `durability="replica"`, `flush(wait="counted")` returns only when a replica has the totals too."""
    replica = replica_of(fresh_server, primary)
    with Harness(primary.url) as harness, Producer(primary.url, durability="replica") as producer:
        producer.emit("view", "article:1")
        producer.flush(10)
        with frozen(replica):
            harness.drain()
            assert harness.totals() == {("view", "article:1"): 1}
            with pytest.raises(FlushTimeout, match="are counted, and no replica or disk has confirmed it"):
                producer.flush(0.7, wait="counted")
        producer.flush(10, wait="counted")
        copy = harness.connect(replica.url)
        assert copy.get(harness.layout.keys_of("article:1").total("view", "article:1")) == b"1"


def test_a_flush_waits_until_the_disk_has_the_counting(fresh_server):
    """With `durability="fsync"`, `flush(wait="counted")` waits for the disk, and counts nothing itself."""
    server = fresh_server(extra=["--appendfsync", "everysec"])
    with Harness(server.url) as harness, Producer(server.url, durability="fsync") as producer:
        producer.emit("view", "article:1")
        producer.flush(10)
        with pytest.raises(FlushTimeout, match="not counted yet"):
            producer.flush(0.1, wait="counted")
        harness.drain()
        producer.flush(10, wait="counted")
        assert harness.totals() == {("view", "article:1"): 1}


def test_a_read_waits_until_a_replica_has_the_counting(fresh_server, primary):
    """With `durability="replica"`, a read with `after` answers only when a replica has the totals too."""
    replica = replica_of(fresh_server, primary)
    with Harness(primary.url) as harness, Totals(primary.url, durability="replica") as totals:
        with Producer(primary.url) as producer:
            producer.emit("view", "article:1")
        keys = harness.layout.keys_of("article:1")
        entry = harness.client.xinfo_stream(keys.stream)["last-generated-id"].decode()
        with frozen(replica):
            harness.drain()
            assert totals.get("article:1", "view").value == 1
            for read in (totals.get, asyncio_get(primary.url)):
                with pytest.raises(FlushTimeout, match="no replica had the counting within"):
                    read("article:1", "view", after=entry, timeout=0.4)
        for read in (totals.get, asyncio_get(primary.url)):
            assert read("article:1", "view", after=entry, timeout=10).value == 1
        assert harness.connect(replica.url).get(keys.total("view", "article:1")) == b"1"


def test_the_read_service_waits_as_its_workers_do(fresh_server, primary):
    """With `[worker] durability = "replica"`, `?after=` is answered only when a replica has the totals too."""
    replica = replica_of(fresh_server, primary)
    settings = replace(settings_for(primary.url, read_timeout=0.4), worker=WorkerSettings(durability="replica"))
    with Harness(primary.url) as harness, serving(settings, None) as address, httpx.Client(base_url=address) as http:
        with Producer(primary.url) as producer:
            producer.emit("view", "article:1")
        keys = harness.layout.keys_of("article:1")
        entry = harness.client.xinfo_stream(keys.stream)["last-generated-id"].decode()
        with frozen(replica):
            harness.drain()
            late = http.get(f"/v1/counters/article:1/view?after={entry}")
            assert (late.status_code, "no replica" in late.json()["detail"]) == (504, True)
        found = until(lambda: _answer(http, entry), 10, what="an answer")
        assert found["value"] == 1


def test_the_service_confirms_writes_as_its_workers_do(fresh_server, primary):
    """With `[worker] durability = "replica"`, an event over HTTP is appended or decided only when a replica has it."""
    replica = replica_of(fresh_server, primary)
    settings = replace(settings_for(primary.url), worker=WorkerSettings(durability="replica"))
    event = {"metric": "view", "subject": "article:1"}
    with Harness(primary.url), serving(settings, None) as address, httpx.Client(base_url=address, timeout=20) as http:
        assert http.post("/v1/events", json=[event]).status_code == 202
        assert http.post("/v1/decide", json=event).status_code == 200
        with frozen(replica):
            decided = http.post("/v1/decide", json=event)
            assert (decided.status_code, "replica" in decided.json()["detail"]) == (504, True)
            assert http.post("/v1/events", json=[event]).status_code == 504
        until(lambda: http.post("/v1/events", json=[event]).status_code == 202, 20, what="a confirmed event")
        assert http.post("/v1/decide", json=event).status_code == 200


def _answer(http, entry):
    """Return the answer to a read that waits for an entry; `None` if it was not counted or confirmed in time."""
    answer = http.get(f"/v1/counters/article:1/view?after={entry}")
    return answer.json() if answer.status_code == 200 else None


def test_a_reader_cannot_wait_for_the_disk():
    """`Totals` refuses `fsync`, because only a program that writes can find out what is on the disk."""
    with pytest.raises(ConfigurationError, match="must be memory or replica, not 'fsync'"):
        Totals(durability="fsync")


def asyncio_get(url):
    """Return a function like `Totals.get` that reads with `tallystream.aio.Totals`."""

    def get(*arguments, **settings):
        async def read():
            async with aio.Totals(url, durability="replica") as totals:
                return await totals.get(*arguments, **settings)

        return asyncio.run(read())

    return get
