"""`tallystream ingest` counts every line once, even if it is killed and started again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections import Counter

import pytest

from tallystream_worker.ingest import Mapping
from tallystream_worker.ingest.job import jobs_of
from tallystream_worker.ingest.pool import IngestFailed, IngestRun
from tallystream_worker.settings.settings import RedisSettings
from tests.harness import Harness
from tests.process.test_access_log import independent, log  # noqa: F401  # a fixture
from tests.process.test_worker_process import PROGRAM
from tests.rewind import copy_of, go_back
from tests.waiting import until


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


def await_children(seconds: float) -> None:
    """Wait until all child processes have exited, or until the time has passed."""
    deadline = time.monotonic() + seconds
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_results_of_processes_that_have_exited_are_read(server, tmp_path):
    """If all processes exit while their results are still queued, the results are read, and the run succeeds."""
    jobs = []
    for number in range(4):
        path = tmp_path / f"{number}.ndjson"
        path.write_text(f'{{"metric": "view", "subject": "a:{number}"}}\n')
        jobs += jobs_of(str(path), "ndjson", Mapping())
    with Harness(server.url, metrics=["view"]) as harness:

        def report(_: object) -> bool:
            await_children(30)
            return True

        run = IngestRun(jobs, RedisSettings(url=harness.url), 2, threading.Event(), report)
        run.run()
        assert (run.total.events, multiprocessing.active_children()) == (4, [])


def test_a_failure_ends_while_other_results_are_queued(server, tmp_path):
    """If a process fails while more results are queued than a pipe takes, the run ends with its error."""
    jobs, missing = [], tmp_path / "missing.ndjson"
    for path in (tmp_path / "good.ndjson", missing, *(tmp_path / f"{number}.ndjson" for number in range(60))):
        path.write_text(f'{{"metric": "view", "{"x" * 180}": "a"}}\n' * 10)
        jobs += jobs_of(str(path), "ndjson", Mapping())
    missing.unlink()
    with Harness(server.url, metrics=["view"]) as harness:
        ended = []

        def report(_: object) -> bool:
            await_children(5)
            return True

        def ingest() -> None:
            with pytest.raises(IngestFailed, match="missing") as error:
                IngestRun(jobs, RedisSettings(url=harness.url), 2, threading.Event(), report).run()
            ended.append(error.value)

        thread = threading.Thread(target=ingest, daemon=True)
        thread.start()
        thread.join(60)
        assert ended


@pytest.mark.parametrize("further", [1, 0])
def test_a_server_goes_back_while_the_command_waits(server, tmp_path, further):
    """If the server loses the file while `ingest --wait` waits, the file is appended again, and then counted.

    This is so whether the workers then count a `further` event or none.
    """
    path = tmp_path / "events.ndjson"
    path.write_text("".join(f'{{"metric": "view", "subject": "a:{n % 10}"}}\n' for n in range(1000)))
    with Harness(server.url, metrics=["view"]) as harness:
        before = copy_of(harness.client)
        command = [PROGRAM, "ingest", path, "--wait", "--processes", "1", "--redis", harness.url]
        waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            until(lambda: harness.ledger().get("appended") == 1000)
            go_back(harness.client, before)
            for keys in harness.layout.keys:
                for _ in range(further):
                    harness.client.xadd(keys.stream, {"metric": "view", "subject": "other"})
            harness.drain()
            until(lambda: int(harness.ledger().get("appended", 0)) >= 1000, what="the file to be appended again")
            assert waiting.poll() is None
            harness.drain()
            _, messages = waiting.communicate(timeout=30)
        finally:
            waiting.kill()
            waiting.communicate()
        assert (waiting.returncode, "1,000 events counted" in messages) == (0, True)
        assert sum(harness.totals()["view", f"a:{n}"] for n in range(10)) == 1000
