"""Tests of liveness and readiness."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest

from tallystream import Producer
from tallystream.errors import KeyLost
from tallystream.storage.keys import GROUP
from tallystream_worker.service import backup_lookup
from tallystream_worker.service.server import serving
from tests.harness import Harness
from tests.http_service import http_service, settings_for
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tallystream_worker.server.embedded import EmbeddedServer
    from tests.servers import Server


def test_ready_when_everything_is_there(server: Server) -> None:
    """With a server, a layout and a group in every partition, the service is ready."""
    with Harness(server.url), http_service(server.url) as http:
        answer = http.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


def test_what_is_wrong_with_the_ledger_is_a_warning(server: Server) -> None:
    """With lost events and dead letters the service stays ready, with a warning for each."""
    with Harness(server.url, partitions=1) as harness, http_service(server.url) as http:
        harness.client.xadd(harness.layout.keys[0].stream, {"nonsense": "x"})
        harness.drain()
        harness.client.hincrby(harness.layout.keys[0].ledger, "trimmed", 1200)
        harness.client.hincrby(harness.layout.keys[0].ledger, "appended", 1200)
        harness.client.hset(harness.layout.meta, "archive-lost", 7)
        answer = http.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["warnings"] == [
        "1,200 events were trimmed before they were counted",
        "1 dead letters: see tallystream dead",
        "7 archived entries are lost on the server, and were not sent again: docs/archive.md, Count lost entries",
    ]


def test_an_empty_server_is_alive_and_not_ready(server: Server) -> None:
    """On an empty server the service is alive, and not ready with the reason."""
    with http_service(server.url) as http:
        assert http.get("/healthz").status_code == 200
        answer = http.get("/readyz")
    assert answer.status_code == 503
    assert "tally:meta does not exist" in answer.json()["reasons"][0]


def test_the_backup_is_looked_up_once_for_many_probes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes of an emptied server share one lookup of the backup, at most one runs, and its text is kept for a while.

    An anonymous client of a service with tokens causes none.
    """
    monkeypatch.setattr(backup_lookup, "KEPT", 0.5)
    token, calls, running = "reader-" + "r" * 20, [], threading.Semaphore(1)

    def look_up() -> str:
        assert running.acquire(blocking=False)
        time.sleep(0.1)  # time for the other probes
        calls.append(time.monotonic())
        running.release()
        return f"the backup {len(calls)}"

    def probe(http: httpx.Client) -> str:
        answer = http.get("/readyz", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 503
        return str(answer.json()["reasons"][0])

    with (
        serving(settings_for(server.url, read_token=token), backup=look_up) as url,
        httpx.Client(base_url=url) as http,
        ThreadPoolExecutor(8) as pool,
    ):
        assert [http.get("/readyz").status_code for _ in range(3)] == [503] * 3
        assert not calls
        assert set(pool.map(probe, [http] * 8)) == {"the backup 1"}
        until(lambda: probe(http) == "the backup 2", timeout=10, what="the text to be too old")
        assert calls[1] - calls[0] >= backup_lookup.KEPT


@pytest.mark.parametrize("has_producer", [False, True])
def test_readyz_answers_although_the_backup_does_not(server: Server, has_producer: bool) -> None:
    """If the database of the backup does not answer, `/readyz` answers 503 within two seconds, without the backup.

    Many probes start one lookup, and the service stops although it has not ended. This is so although a producer has
    begun to use the emptied server.
    """
    if has_producer:
        with Producer(server.url) as producer:
            producer.emit("view", "a")
            producer.flush()
    calls, end = [], threading.Event()

    def look_up() -> str:
        calls.append(1)
        end.wait(60)
        return "the backup"

    try:
        with serving(settings_for(server.url), backup=look_up) as url, ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: httpx.get(f"{url}/readyz", timeout=20), range(8)))
    finally:
        end.set()
    for answer in answers:
        assert answer.status_code == 503
        assert "tallystream restore --force" in answer.json()["reasons"][0]
        assert answer.elapsed.total_seconds() < 2
    assert len(calls) == 1


def test_every_missing_group_is_named(server: Server) -> None:
    """A partition without its group, or without its stream, makes the service not ready, and is named."""
    with Harness(server.url) as harness, http_service(server.url) as http:
        without_group, without_stream = harness.layout.keys[1].stream, harness.layout.keys[2].stream
        harness.client.xgroup_destroy(without_group, GROUP)
        harness.client.delete(without_stream)
        answer = http.get("/readyz")
    assert answer.status_code == 503
    assert [reason.split(": ")[0] for reason in answer.json()["reasons"]] == [without_group, without_stream]


@pytest.mark.parametrize("name", ["ledger", "sequences", "live", "forgotten"])
def test_a_lost_key_is_named(server: Server, name: str) -> None:
    """If a partition is not counted because of a lost key, the service is not ready, with the key and its repair."""
    with Harness(server.url, partitions=1) as harness, http_service(server.url) as http:
        with Producer(server.url) as producer:
            producer.emit("view", "a")
            producer.flush()
        harness.drain()
        assert http.get("/readyz").status_code == 200
        key = getattr(harness.layout.keys[0], name)
        harness.client.delete(key)
        answer = http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["reasons"] == [str(KeyLost(key))]


def test_what_was_lost_is_noticed_at_once(server: Server) -> None:
    """After FLUSHALL the service is not ready at once, in spite of its cache."""
    with Harness(server.url) as harness, http_service(server.url) as http:
        assert http.get("/readyz").status_code == 200
        assert http.get("/v1/counters/a").status_code == 200
        harness.client.flushall()
        assert http.get("/readyz").status_code == 503


def test_another_layout_is_not_ready(server: Server) -> None:
    """A layout of another release makes the service not ready, with both versions in the reason."""
    with Harness(server.url) as harness, http_service(server.url) as http:
        harness.client.hset(harness.layout.meta, "layout", "99")
        (reason,) = http.get("/readyz").json()["reasons"]
    assert "layout version 99" in reason


def test_a_restore_is_named(server: Server) -> None:
    """While a restore runs, or if the hash of the live topic is lost, the service is not ready, with the reason."""
    with Harness(server.url) as harness, http_service(server.url) as http:
        fields = harness.client.hgetall(harness.layout.root)
        for replaced, expected in (({"restoring": "[]"}, "a restore is replacing"), ({**fields, "log": 2}, "l2:meta")):
            harness.client.delete(harness.layout.root)
            harness.client.hset(harness.layout.root, mapping=replaced)
            answer = http.get("/readyz")
            assert answer.status_code == 503
            (reason,) = answer.json()["reasons"]
            assert expected in reason


def test_a_server_that_is_away(fresh_server: Callable[..., EmbeddedServer]) -> None:
    """Without Redis the service is alive, not ready, responds to reads with 503, and recovers by itself."""
    server = fresh_server(extra=["--appendfsync", "always"])
    with Harness(server.url):
        pass
    with http_service(server.url) as http:
        assert http.get("/v1/counters/a/view").status_code == 200
        server.kill()
        assert http.get("/healthz").status_code == 200
        ready, read = http.get("/readyz"), http.get("/v1/counters/a/view")
        assert (ready.status_code, read.status_code) == (503, 503)
        assert "Redis does not reply" in ready.json()["reasons"][0]
        assert read.headers["retry-after"] == "1"
        assert server.url.removeprefix("unix://") not in read.text
        server.start()
        assert http.get("/readyz").status_code == 200
        assert http.get("/v1/counters/a/view").status_code == 200


@pytest.mark.parametrize("has_producer", [False, True])
def test_an_emptied_server_names_what_brings_the_data_back(server: Server, has_producer: bool) -> None:
    """After FLUSHALL, each error of the service names the command that restores, and the one that finds the backup.

    This is so in a service that ran before and in one that starts after it, and if a producer uses the server again.
    """
    with Harness(server.url) as harness, http_service(server.url) as http:
        assert http.get("/v1/counters/a/view").status_code == 200
        harness.client.flushall()
        if has_producer:
            with Producer(server.url) as producer:
                producer.emit("view", "a")
                producer.flush()
        until(lambda: http.get("/v1/counters/a/view").status_code == 503, what="the cached description to expire")
        with http_service(server.url) as later:
            answers = [each.get(path) for each in (http, later) for path in ("/readyz", "/v1/counters/a/view")]
    assert {answer.status_code for answer in answers} == {503}
    for answer in answers:
        assert "tallystream restore --force" in answer.text
        assert "tallystream status" in answer.text or "consumer group" in answer.text
