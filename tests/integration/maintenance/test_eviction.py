"""A server that may evict keys is refused at the start, and logged and alarmed later."""

from __future__ import annotations

from dataclasses import replace

import pytest
import structlog
from structlog.testing import LogCapture

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError
from tallystream.producing.producer import Producer
from tallystream.reading.totals import Totals
from tallystream_worker.maintenance.eviction import EvictionWatch
from tallystream_worker.runtime.app import counting
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.harness import Harness
from tests.http_service import http_service
from tests.integration.service.test_metrics import scrape
from tests.waiting import until

LIMIT = 20_000_000


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_worker_does_not_start_on_a_server_that_evicts(fresh_server, policy):
    """The error names the policy and both ways out; with `eviction = "allow"` the worker starts."""
    server = fresh_server(extra=["--maxmemory", str(LIMIT), "--maxmemory-policy", policy])
    settings = Settings(RedisSettings(server.url, partitions=1))
    log = structlog.wrap_logger(None, processors=[LogCapture()])
    with pytest.raises(ConfigurationError, match=rf"maxmemory-policy {policy}.*noeviction.*\[redis\] eviction"):
        counting(settings, log).__enter__()
    with counting(replace(settings, redis=replace(settings.redis, eviction="allow")), log):
        pass


def test_a_server_without_a_memory_limit_evicts_nothing(fresh_server):
    """A policy has no effect without `maxmemory`."""
    server = fresh_server(extra=["--maxmemory-policy", "allkeys-lru"])
    with counting(Settings(RedisSettings(server.url)), structlog.wrap_logger(None, processors=[LogCapture()])):
        pass


def test_evicted_keys_are_logged_and_served(fresh_server):
    """A policy that is set later is logged once, and so is each number of evicted keys; /metrics has their number."""
    server = fresh_server()
    with Harness(server.url, partitions=1) as harness:
        capture = LogCapture()
        log = structlog.wrap_logger(None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(0))
        watch = EvictionWatch(harness.client, Deployment.create_or_load(harness.client), log, {})
        watch.run_once()
        assert capture.entries == []
        used = harness.client.info("memory")["used_memory"]
        harness.client.config_set("maxmemory-policy", "volatile-lru")
        harness.client.config_set("maxmemory", used + 1_000_000)
        for _ in range(2):
            watch.run_once()
        assert [entry["event"] for entry in capture.entries] == ["server.may_evict"]
        for number in range(300):
            harness.client.set(f"filler:{number}", "x" * 10_000, ex=600)
        harness.client.config_set("maxmemory", 0)
        evicted = harness.client.info("stats")["evicted_keys"]
        assert evicted > 0
        watch.run_once()
        told = [(entry["event"], entry.get("keys")) for entry in capture.entries]
        assert told == [("server.may_evict", None), ("server.keeps_keys", None), ("keys.evicted", evicted)]
        with http_service(server.url) as http:
            assert scrape(http)["redis_evicted_keys_total", ()] == evicted


def test_a_server_is_asked_once(server):
    """A check asks the server of many partitions once: for its memory, and for its evicted keys."""
    with Harness(server.url, partitions=16) as harness:
        watch = EvictionWatch(harness.client, harness.deployment, structlog.get_logger(), {})
        watch.run_once()
        harness.client.config_resetstat()
        watch.run_once()
        assert harness.client.info("commandstats")["cmdstat_info"]["calls"] == 2


@pytest.mark.parametrize("eviction", ["refuse", "allow"])
def test_counting_pauses_while_the_server_may_evict(fresh_server, monkeypatch, eviction):
    """If the policy is changed while a worker runs, it states the policy and counts nothing until it is set back."""
    monkeypatch.setattr("tallystream_worker.maintenance.eviction.EVERY", 0.05)
    server = fresh_server()
    log = structlog.wrap_logger(None, processors=[LogCapture()])
    with Harness(server.url, partitions=1) as harness:
        settings = Settings(RedisSettings(server.url, partitions=1, eviction=eviction), rules=harness.rules)
        with counting(settings, log) as worker, Producer(server.url) as producer, Totals(server.url) as totals:
            producer.emit("view", "a")
            producer.flush(10, wait="counted")
            harness.client.config_set("maxmemory", 10**9)
            harness.client.config_set("maxmemory-policy", "allkeys-lru")
            watched = {each.name: each for each in worker.services[1:]}["eviction"]
            for _ in range(2):  # the first pass may have begun before the change
                since = watched.health.passed
                until(lambda since=since: watched.health.passed > since)
            if eviction == "refuse":
                until(lambda: "maxmemory-policy allkeys-lru" in (worker.health[0].problem or ""))
            producer.emit("view", "a")
            producer.flush(10)
            if eviction == "refuse":
                assert totals.get("a", "view").value == 1
                harness.client.config_set("maxmemory-policy", "noeviction")
            until(lambda: totals.get("a", "view").value == 2)
