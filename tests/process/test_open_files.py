"""Workers count every partition under a low limit of open files, or log which part they leave to others."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tallystream import Producer, Totals
from tests.integration.cli.test_cli import PROGRAM
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PARTITIONS = 64
SUBJECTS = [f"s{number}" for number in range(300)]


@pytest.fixture
def config(server, tmp_path: Path) -> Path:
    """Provide a configuration with 64 partitions."""
    path = tmp_path / "tallystream.toml"
    path.write_text(f'[redis]\nurl = "{server.url}"\npartitions = {PARTITIONS}\n\n[metric.view]\n')
    return path


@contextlib.contextmanager
def worker(config: Path, name: str, soft: int, hard: int) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a worker that may open `soft` files, and `hard` if it asks; provide it and the path of its log."""
    log = config.parent / f"{name}.log"
    command = [str(PROGRAM), "worker", "--config", str(config), "--name", name]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f'ulimit -Sn {soft}; ulimit -Hn {hard}; exec "$0" "$@"', *command],
            stderr=errors,
            cwd=config.parent,
        )
    try:
        until(lambda: events(log, "worker.started"), 60, what="the worker to start")
        yield process, log
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def events(log: Path, name: str) -> list[dict[str, object]]:
    """Return the lines of a log with this event."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


def test_a_worker_raises_its_limit(config, server):
    """With a soft limit that is too low for its partitions, a worker counts all of them, on few connections."""
    with worker(config, "w", 128, 1000) as (process, log), Producer(server.url) as producer:
        for subject in SUBJECTS:
            producer.emit("view", subject)
        producer.flush(30, wait="counted")
        assert events(log, "worker.partitions_limited") == events(log, "partition.paused") == []
        connections = int(server.client().info("clients")["connected_clients"])
        assert PARTITIONS <= connections < PARTITIONS + 60
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[0] == 200


def test_workers_that_cannot_serve_all_partitions_share_them(config, server):
    """A worker serves and logs as many partitions as it has files for; three such workers count all of them."""
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(worker(config, f"w-{n}", 100, 160))[1] for n in range(3)]
        for log in logs:
            (line,) = events(log, "worker.partitions_limited")
            assert (line["partitions"], line["served"]) == (PARTITIONS, 24)
            assert events(log, "partition.paused") == []
        producer = stack.enter_context(Producer(server.url))
        for subject in SUBJECTS:
            producer.emit("view", subject)
        producer.flush(30, wait="counted")
        totals = stack.enter_context(Totals(server.url))
        found = totals.get_many((subject, "view") for subject in SUBJECTS)
        assert set(found.values.values()) == {1}
        assert found.lag == 0
