"""A worker reports its health over HTTP, while its server is unavailable and afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.harness import Harness
from tests.waiting import until

PROGRAM = Path(sys.executable).with_name("tallystream")


def get(port: int, path: str) -> tuple[int, str]:
    """Return the status and the body of one request; `(0, "")` if no connection can be made."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def listening(port: int) -> list[str]:
    """Return the addresses that processes listen on at a port."""
    found = psutil.net_connections("inet")
    return [each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN and each.laddr.port == port]


@pytest.fixture
def port():
    """Provide a free port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def test_a_worker_says_how_it_is(fresh_server, port):
    """While its server is down, a worker is healthy, not ready, and reports a reason; afterwards it counts again."""
    server = fresh_server(extra=["--appendfsync", "always"])
    command = [PROGRAM, "worker", "--redis", server.url, "--name", "w", "--metrics-port", str(port)]
    elsewhere = os.environ | {"TALLYSTREAM_SERVE_HOST": "0.0.0.0"}  # noqa: S104  # the read service's
    with (
        Harness(server.url) as harness,
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=elsewhere) as worker,
    ):
        try:
            until(lambda: get(port, "/readyz")[0] == 200, timeout=30, what="the worker to be ready")
            assert 'tallystream_partition_up{partition="0"} 1.0' in get(port, "/metrics")[1]
            assert listening(port) == ["127.0.0.1"]
            server.kill()
            _, body = until(
                lambda: (found := get(port, "/readyz"))[0] == 503 and found, timeout=30, what="the worker to notice"
            )
            assert len(json.loads(body)["reasons"]) >= 1
            assert get(port, "/healthz")[0] == 200
            assert 'tallystream_partition_up{partition="' in get(port, "/metrics")[1]
            server.start()
            until(lambda: get(port, "/readyz")[0] == 200, timeout=30, what="the worker to come back")
            harness.client.xadd(harness.layout.keys_of("a").stream, {"metric": "view", "subject": "a"})
            until(lambda: harness.totals() == {("view", "a"): 1}, timeout=30, what="the count")
        finally:
            worker.send_signal(signal.SIGTERM)
            _, log = worker.communicate(timeout=20)
    lines = [json.loads(line) for line in log.splitlines()]
    per_partition = [
        line for line in lines if line["event"] == "partition.paused" and line.get("stream", "").startswith("tally:{p0")
    ]
    assert 1 <= len(per_partition) <= 3, "one line for each change of state, not one for each attempt"
