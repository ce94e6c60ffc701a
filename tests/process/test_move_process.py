"""A repartition needs no restart of an application with a spool, a worker or a read service."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tests.secured import free_port
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = str(Path(sys.executable).with_name("tallystream"))
APP = """
import sys, time
from tallystream import Producer

with Producer(sys.argv[1], spool=sys.argv[2]) as producer:
    n = 0
    while n < 3_000:
        producer.emit("view", f"article:{n % 20}")
        n += 1
        time.sleep(0.002)
        if n % 500 == 0:
            producer.decide("like", "article:0")
    producer.flush(30)
print(n)
"""


@contextlib.contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the block ends; it must stop cleanly."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.slow
def test_processes_go_on_by_themselves_while_everything_is_moved(fresh_server, tmp_path):
    """During a repartition, the totals of a read service never fall, and at the end they contain every event."""
    server, port = fresh_server(), free_port()
    where = ("--redis", server.url)

    def asked() -> int:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/counters/article:1/view", timeout=5) as answer,
        ):
            return int(json.load(answer)["value"])
        return -1

    seen: list[int] = []
    with running(PROGRAM, "worker", *where), running(PROGRAM, "serve", "--port", str(port), *where):
        until(lambda: asked() == 0, timeout=60, what="the read service")
        app = subprocess.Popen([sys.executable, "-c", APP, server.url, str(tmp_path / "spool")], stdout=subprocess.PIPE)
        until(lambda: asked() > 5, timeout=30, what="the app's events")
        mover = subprocess.Popen([PROGRAM, "rebuild", "--partitions", "7", "--json", *where], stdout=subprocess.PIPE)
        while mover.poll() is None or app.poll() is None:
            seen.append(asked())
        moved, emitted = json.loads(mover.communicate()[0]), int(app.communicate()[0])
        assert (mover.returncode, app.returncode, moved["moved"]) == (0, 0, True)
        until(lambda: asked() == emitted // 20, timeout=30, what="every event to be counted")
        assert seen == sorted(seen)
        assert len(seen) > 10
        assert min(seen) > 0  # the service answered every request
        with contextlib.closing(connect(server.url)) as client:
            deployment = Deployment.create_or_load(client)
            assert (deployment.layout.partitions, deployment.layout.topic) == (7, 2)
        audit = subprocess.run([PROGRAM, "audit", "--json", *where], check=True, stdout=subprocess.PIPE)
        assert json.loads(audit.stdout)["differences"] == []
        status = subprocess.run([PROGRAM, "status", *where], check=True, stdout=subprocess.PIPE, text=True)
        assert "previous topic 1 is kept" in status.stdout
        subprocess.run([PROGRAM, "rebuild", "--drop", *where], check=True, stdout=subprocess.DEVNULL)
        status = subprocess.run([PROGRAM, "status", *where], check=True, stdout=subprocess.PIPE, text=True)
        assert "is kept" not in status.stdout
        assert asked() == emitted // 20
