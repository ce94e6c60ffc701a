"""Tests of the metrics for Prometheus."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from tallystream.producing.producer import Producer
from tallystream.storage.deployment_hash import RESTORING
from tallystream.storage.keys import GROUP
from tests.harness import Harness
from tests.http_service import http_service

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tallystream_worker.server.embedded import EmbeddedServer
    from tests.servers import Server

Samples = dict[tuple[str, tuple[str, ...]], float]


def scrape(http: httpx.Client) -> Samples:
    """Return the samples of the page by short name and label values."""
    answer = http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name.removeprefix("tallystream_"), tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_counted_and_dead_events_show_by_metric(server: Server) -> None:
    """The page has appended, counted and dead events by metric; the ledger balances; totals are sums of amounts."""
    with Harness(server.url) as harness, http_service(server.url) as http:
        with Producer(harness.url) as producer:
            for n in range(10):
                producer.emit("view", f"article:{n}", 3)
            producer.emit("like", "article:1", -1)
        stream = harness.layout.keys[0].stream
        harness.client.xadd(stream, {"nonsense": "x"})
        harness.client.xadd(stream, {"metric": "share", "subject": "a"})
        other = next(f"a{n}" for n in range(99) if harness.layout.keys_of(f"a{n}") is not harness.layout.keys[0])
        harness.client.xadd(stream, {"metric": "view", "subject": other})
        harness.drain()
        samples = scrape(http)
    assert samples["events_appended_total", ()] == 14
    assert samples["events_counted_total", ("view",)] == 10
    assert samples["events_counted_total", ("like",)] == 1
    assert samples["events_dead_total", ("view",)] == 1
    assert samples["events_dead_total", ("",)] == 2
    assert samples["counted_amount", ("view",)] == 30
    assert samples["counted_amount", ("like",)] == -1
    assert samples["unaccounted_events", ()] == 0
    assert samples["partition_dead_entries", (stream,)] == 3
    assert samples["redis_up", ()] == 1


def test_outcomes_of_rules_show_by_metric_and_rule(server: Server) -> None:
    """The page has the rejected, duplicate, late and trimmed events of the ledger."""
    with Harness(server.url) as harness, http_service(server.url) as http:
        books = {"appended": 15, "rejected:once": 4, "rejected:once@vote": 4, "rejected:limit": 5}
        books |= {
            "rejected:limit@view": 5,
            "duplicate": 1,
            "duplicate@view": 1,
            "late": 2,
            "late@like": 2,
            "late-counted@view": 6,
            "trimmed": 3,
        }
        harness.client.hset(harness.layout.keys[3].ledger, mapping=books)
        samples = scrape(http)
    assert samples["events_rejected_total", ("vote", "once")] == 4
    assert samples["events_rejected_total", ("view", "limit")] == 5
    assert samples["events_duplicate_total", ("view",)] == 1
    assert samples["events_late_total", ("like",)] == 2
    assert samples["events_late_counted_total", ("view",)] == 6
    assert samples["events_trimmed_total", ("",)] == 3
    assert samples["unaccounted_events", ()] == 0


def test_what_waits_shows_and_hides_the_unaccounted(server: Server) -> None:
    """While entries wait or are pending, the page has lag and age, and no unaccounted events."""
    with Harness(server.url) as harness, http_service(server.url) as http:
        with Producer(harness.url) as producer:
            producer.emit("view", "article:1")
        keys = harness.layout.keys_of("article:1")
        waiting = scrape(http)
        harness.client.xreadgroup(GROUP, "someone", {keys.stream: ">"})
        held = scrape(http)
    assert (waiting["lag_entries", (keys.stream,)], waiting["pending_entries", (keys.stream,)]) == (1, 0)
    assert waiting["oldest_pending_age_seconds", (keys.stream,)] == 0
    assert (held["lag_entries", (keys.stream,)], held["pending_entries", (keys.stream,)]) == (1, 1)
    assert 0 <= held["oldest_pending_age_seconds", (keys.stream,)] < 60
    assert ("unaccounted_events", ()) not in waiting.keys() | held.keys()


def test_a_lost_event_shows(server: Server) -> None:
    """An event that was appended and acknowledged but not counted is unaccounted for."""
    with Harness(server.url) as harness, http_service(server.url) as http:
        with Producer(harness.url) as producer:
            producer.emit("view", "article:1", 1)
        keys = harness.layout.keys_of("article:1")
        (stream,) = harness.client.xreadgroup(GROUP, "someone", {keys.stream: ">"}).values()
        harness.client.xack(keys.stream, GROUP, stream[0][0])
        assert scrape(http)["unaccounted_events", ()] == 1


def test_an_unknown_lag_is_not_zero(server: Server) -> None:
    """If the server does not know the lag, or the group is gone, the lag is NaN."""
    with Harness(server.url) as harness, http_service(server.url) as http:
        deleted, gone = harness.layout.keys[0].stream, harness.layout.keys[1].stream
        for stream in (deleted, gone):
            ids = [harness.client.xadd(stream, {"metric": "view", "subject": "a"}) for _ in range(4)]
            harness.client.xreadgroup(GROUP, "someone", {stream: ">"}, count=1)
            harness.client.xdel(stream, ids[2])
        harness.client.xgroup_destroy(gone, GROUP)
        samples = scrape(http)
    assert math.isnan(samples["lag_entries", (deleted,)])
    assert math.isnan(samples["lag_entries", (gone,)])
    assert ("unaccounted_events", ()) not in samples


def test_what_the_process_measures_shows_too(server: Server) -> None:
    """The metrics of workers in the same process are on the same page."""
    registry = CollectorRegistry()
    Gauge("tallystream_extra", "An extra one.", registry=registry).set(7)
    with Harness(server.url), http_service(server.url, registry) as http:
        samples = scrape(http)
    assert (samples["extra", ()], samples["redis_up", ()]) == (7, 1)


def test_without_redis_the_rest_still_shows(fresh_server: Callable[..., EmbeddedServer]) -> None:
    """Without Redis the page has `tallystream_redis_up 0` and the metrics of the process."""
    server = fresh_server()
    registry = CollectorRegistry()
    Gauge("tallystream_extra", "An extra one.", registry=registry).set(7)
    with http_service(server.url, registry) as http:
        server.kill()
        samples = scrape(http)
    assert samples == {("redis_up", ()): 0, ("extra", ()): 7}


def test_during_a_restore_the_rest_still_shows(server: Server) -> None:
    """While a restore replaces the counters, the page has the metrics of the process."""
    registry = CollectorRegistry()
    Gauge("tallystream_extra", "An extra one.", registry=registry).set(7)
    with Harness(server.url) as harness, http_service(server.url, registry) as http:
        harness.client.hset("tally:meta", RESTORING, "1")
        samples = scrape(http)
    assert samples == {("redis_up", ()): 0, ("extra", ()): 7}


def test_subjects_are_no_labels(server: Server) -> None:
    """The page has the same number of samples for any number of subjects."""
    with Harness(server.url) as harness, http_service(server.url) as http:
        with Producer(harness.url) as producer:
            producer.emit("view", "article:1")
        harness.drain()
        before = len(scrape(http))
        with Producer(harness.url) as producer:
            for n in range(1000):
                producer.emit("view", f"subject-{n}")
        harness.drain()
        assert len(scrape(http)) == before


def test_the_time_of_the_latest_snapshot(server):
    """If snapshots are taken, the page has the time of the last one in seconds; otherwise it has no such sample."""
    with Harness(server.url) as harness, http_service(server.url) as client:
        assert "tallystream_snapshot_timestamp_seconds" not in client.get("/metrics").text
        harness.client.hset(harness.layout.meta, "snapshot", "1763900000.125")
        assert "tallystream_snapshot_timestamp_seconds 1.763900000125e+09" in client.get("/metrics").text
        assert "tallystream_snapshot_interval_seconds" not in client.get("/metrics").text
        harness.client.hset(harness.layout.meta, "snapshot-every", "60")
        assert "tallystream_snapshot_interval_seconds 60.0" in client.get("/metrics").text
