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

from tallystream import Producer, Totals
from tallystream.client.connect import connect
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


@pytest.mark.parametrize("processes", [1, 2])
def test_a_worker_waits_for_the_data_of_an_emptied_server(fresh_server, port, tmp_path, processes):
    """A worker that starts on an emptied server is not ready, names the command, and counts after the restore."""
    server = fresh_server()
    (tmp_path / "tallystream.toml").write_text(
        f'[redis]\nurl = "{server.url}"\n[snapshot]\nurl = "tally.sqlite"\nevery = 0.2\n[metric.view]\n', "utf-8"
    )
    command = [PROGRAM, "worker", "--metrics-port", str(port), "--processes", str(processes)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLYSTREAM_")}
    with connect(server.url) as client:
        for turn in range(2):
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as worker:
                try:
                    if turn == 1:
                        _, body = until(
                            lambda: (found := get(port, "/readyz"))[0] == 503 and "restore" in found[1] and found,
                            timeout=30,
                            what="the worker to wait",
                        )
                        assert get(port, "/healthz")[0] == 200
                        assert client.keys() == []
                        told = json.loads(body)["reasons"][0].rpartition("run: tallystream ")[2]
                        subprocess.run([PROGRAM, *told.split()], cwd=tmp_path, env=environment, check=True, timeout=60)
                    until(lambda: get(port, "/readyz")[0] == 200, timeout=30, what="the worker to be ready")
                    with Producer(server.url) as producer:
                        producer.emit("view", "a")
                        producer.flush(30, wait="counted")
                finally:
                    worker.send_signal(signal.SIGTERM)
                    _, log = worker.communicate(timeout=30)
            if turn == 0:
                run = [PROGRAM, "snapshot", "--once"]
                subprocess.run(run, cwd=tmp_path, env=environment, check=True, timeout=60)
                client.flushall()
        with Totals(server.url) as totals:
            assert totals.get("a", "view").value == 2
    lines = [line for line in map(json.loads, log.splitlines()) if line["event"].startswith("worker.data")]
    *waits, back = lines
    assert back["event"] == "worker.data_back"
    assert [line["event"] for line in waits] == ["worker.data_lost"] * len(waits)
    assert "restore" in waits[0]["problem"]
    # A check during the restore may meet it half done, which is another problem, so it is logged too.
    assert len({line["problem"] for line in waits}) == len(waits)
