"""`tallystream ingest` counts every line once, even if it is killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter

import pytest

from tests.harness import Harness
from tests.process.test_access_log import independent, log  # noqa: F401  # a fixture
from tests.process.test_worker_process import PROGRAM


@pytest.mark.parametrize("place", ["before-ingest:1", "after-ingest:1", "after-ingest:2"])
def test_killed_in_the_middle_and_started_again(server, tmp_path, place):
    """If `ingest` is killed with SIGKILL and run again, every line counts once."""
    path = tmp_path / "access.log"
    path.write_text(
        "".join(
            f"10.0.{number % 250}.1 - - [17/May/2015:10:{number % 60:02}:00 +0000] "
            f'"GET /page/{number % 9_000} HTTP/1.1" 200 10 "-" "-"\n'
            for number in range(60_000)
        )
    )
    with Harness(server.url, metrics=["view"]) as harness:
        command = [PROGRAM, "ingest", path, "--redis", harness.url]
        killed = subprocess.run(command, env=os.environ | {"TALLYSTREAM_FAILPOINT": place}, timeout=60, check=False)
        assert killed.returncode == -signal.SIGKILL
        for _ in range(2):
            subprocess.run(command, check=True, timeout=60, capture_output=True)
        harness.drain()
        expected = Counter(f"/page/{number % 9_000}" for number in range(60_000))
        assert {subject: total for (_, subject), total in harness.totals().items()} == expected
        assert harness.ledger()["appended"] == 60_000


def test_several_files_by_several_processes(server, tmp_path, log):  # noqa: F811
    """Two processes ingest several files, and the totals equal an independent count; a second run appends nothing."""
    other = tmp_path / "other.log"
    other.write_text(
        "".join(f'h - - [17/May/2015:10:05:03 +0000] "GET /{n} HTTP/1.1" 200 1 "-" "-"\n' for n in range(99))
    )
    with Harness(server.url, metrics=["view"]) as harness:
        command = [PROGRAM, "ingest", log, other, "--processes", "2", "--redis", harness.url]
        for events in (10_099, 0):
            done = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
            assert f"{events:,} events appended" in done.stderr
        harness.drain()
        totals = {subject: total for (_, subject), total in harness.totals().items()}
        assert totals == independent(log) + Counter(f"/{n}" for n in range(99))
