"""Tests of the read service in a process with other parts: its caller starts and stops it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from prometheus_client import CollectorRegistry

from tallystream.errors import ConfigurationError
from tallystream.producing.producer import Producer
from tallystream_worker.process import logs
from tallystream_worker.runtime.app import counting
from tallystream_worker.runtime.metrics import WorkerMetrics
from tallystream_worker.service.server import serving
from tests.harness import Harness
from tests.http_service import settings_for
from tests.waiting import until

if TYPE_CHECKING:
    from tests.servers import Server

NOBODY = "redis://127.0.0.1:1"
"""A URL without a server: the service starts without Redis."""


def test_workers_and_service_share_a_process(server: Server) -> None:
    """The service shows the totals and the metrics of workers in the same process."""
    settings, registry = settings_for(server.url, read_timeout=5), CollectorRegistry()
    log = logs.configure(quiet=True)
    with counting(settings, log, [WorkerMetrics(registry)]), serving(settings, registry) as url:
        with Producer(server.url) as producer:
            producer.emit("view", "/", 42)
            producer.flush(10, wait="counted")
        assert httpx.get(f"{url}/v1/counters/%2F/view").json()["value"] == 42
        until(lambda: "tallystream_batches_total 1.0" in httpx.get(f"{url}/metrics").text)


def test_a_port_in_use_is_refused(server: Server) -> None:
    """A second service on a port is rejected with advice, and the first one gets all its requests."""
    with serving(settings_for(server.url)) as url:
        port = int(url.rpartition(":")[2])
        with (
            pytest.raises(ConfigurationError, match=f"127.0.0.1 port {port} .*--port"),
            serving(settings_for(server.url, port=port)),
        ):
            pass
        with serving(settings_for(server.url, port=port), any_port=True) as other:
            assert other != url
            assert httpx.get(f"{other}/healthz").status_code == 200
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_an_address_that_is_not_ours_is_refused(server: Server) -> None:
    """An address that the machine does not have is an error message without a traceback."""
    for host in ("192.0.2.1", "no such host"):
        with pytest.raises(ConfigurationError, match="cannot listen on"), serving(settings_for(server.url, host=host)):
            pass


def test_a_port_is_free_again_after_a_stop(server: Server) -> None:
    """A service can be stopped and started on the same port at once."""
    with serving(settings_for(server.url)) as url:
        port = int(url.rpartition(":")[2])
        assert httpx.get(f"{url}/healthz").status_code == 200
    for _ in range(2):
        with serving(settings_for(server.url, port=port)) as again:
            assert again == url
            assert httpx.get(f"{url}/healthz").status_code == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_stop_lets_requests_end(server: Server) -> None:
    """A request that runs when the service stops still gets its response."""
    with Harness(server.url) as harness:
        stream = harness.layout.keys_of("article:1").stream
        id_ = harness.client.xadd(stream, {"metric": "view", "subject": "article:1"}).decode()
        answers = []
        with serving(settings_for(server.url, read_timeout=1)) as url, httpx.Client() as client:
            client.get(f"{url}/healthz")  # an open connection must not delay the stop
            path = f"{url}/v1/counters/article:1?after={id_}"
            asking = threading.Thread(target=lambda: answers.append(httpx.get(path)))
            harness.client.config_resetstat()
            asking.start()
            until(lambda: harness.client.info("commandstats").get("cmdstat_mget"), what="the request's first look")
            began = time.monotonic()
        assert time.monotonic() - began < 3
        asking.join(5)
    assert answers[0].status_code == 504


def test_a_half_sent_request_holds_nothing_up_for_long() -> None:
    """A half-sent request is cut off, and does not delay a stop for long."""
    with serving(settings_for(NOBODY)) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as client:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
            assert httpx.get(f"{url}/healthz").status_code == 200
            assert not client.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_process_that_served_ends_cleanly() -> None:
    """A program ends with status 0 right after it stopped serving."""
    program = f"""
import httpx
from tests.http_service import settings_for
from tallystream_worker.service.server import serving
with serving(settings_for({NOBODY!r})) as url:
    assert httpx.get(f"{{url}}/healthz").status_code == 200
"""
    for _ in range(3):
        # Run two at a time: the fault needs a busy machine.
        command = [sys.executable, "-c", program]
        running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        for process in running:
            _, said = process.communicate(timeout=30)
            assert (process.returncode, said) == (0, "")


def test_many_requests_at_once(server: Server) -> None:
    """200 concurrent requests, many more than connections to Redis, all get a response."""
    with Harness(server.url) as harness, serving(settings_for(server.url)) as url:
        harness.drain()
        answers = []
        with httpx.Client(limits=httpx.Limits(max_connections=200)) as client:
            threads = [
                threading.Thread(target=lambda: answers.append(client.get(f"{url}/v1/counters/a", timeout=30)))
                for _ in range(200)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert [answer.status_code for answer in answers] == [200] * 200
