"""The totals of an ingested access log equal an independent count, even if workers are killed."""

from __future__ import annotations

import gzip
import signal
import subprocess
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.harness import Harness
from tests.paths import REAL_LOG
from tests.process.test_worker_process import PROGRAM, worker
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def log(tmp_path) -> Path:
    """Provide the path of the real access log if it exists, else of a generated one."""
    if REAL_LOG.is_file():
        return REAL_LOG
    made = tmp_path / "access.log.gz"
    lines = (
        f'10.0.{number % 7}.1 - - [17/May/2015:10:{number % 60:02}:00 +0000] "GET /page/{number % 321} HTTP/1.1" '
        f'200 10 "-" "-"\n'
        for number in range(10_000)
    )
    made.write_bytes(gzip.compress("".join(lines).encode()))
    return made


def independent(log: Path) -> Counter[str]:
    """Return the number of lines of each path in a log, by splitting its lines."""
    with gzip.open(log, "rt", encoding="utf-8", errors="replace") as lines:
        return Counter(line.split('"')[1].split(" ")[1] for line in lines)


@pytest.mark.parametrize("place", ["after-fetch:2", "before-apply:3", "after-apply:2"])
def test_a_log_counts_exactly_though_workers_are_killed(fresh_server, log, place):
    """If a worker is killed with SIGKILL and another is started, each path's total is its number of lines."""
    expected = independent(log)
    with Harness(fresh_server().url, metrics=["view"]) as harness:
        with worker(harness.url, failpoint=place) as doomed:
            subprocess.run(
                [PROGRAM, "ingest", log, "--redis", harness.url], check=True, timeout=60, capture_output=True
            )
            until(lambda: doomed.poll() is not None, timeout=30, what="the worker to be killed")
            assert doomed.returncode == -signal.SIGKILL
        assert harness.waiting() > 0 or place.startswith("after-apply")
        with worker(harness.url):
            until(lambda: harness.waiting() == 0, timeout=30, what="the rest to be counted")
        assert {subject: total for (_, subject), total in harness.totals().items()} == expected
        assert harness.ledger()["counted"] == harness.ledger()["appended"] == expected.total() == 10_000
    if log == REAL_LOG:
        assert (len(expected), expected["/favicon.ico"], expected["/style2.css"]) == (1498, 807, 546)
