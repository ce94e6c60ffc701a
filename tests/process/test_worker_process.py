"""Worker processes count every event once, even if they are killed at any moment or stopped by a signal.

These tests use the embedded server only: they test the process, and the integration suite tests the servers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tallystream import Producer
from tallystream_worker.counting.apply import _APPLY
from tallystream_worker.process.failpoints import VARIABLE
from tests.harness import Harness
from tests.proxy import Proxy
from tests.waiting import until

PROGRAM = Path(sys.executable).with_name("tallystream")
EVENTS = 6000


@pytest.fixture
def harness(fresh_server):
    """Provide a harness on an empty server."""
    with Harness(fresh_server().url, metrics=["view", "like", "share", "vote"]) as harness:
        yield harness


@contextlib.contextmanager
def worker(url: str, *arguments: str, failpoint: str | None = None, name: str = "w"):
    """Start `tallystream worker`; kill it at the end of the block."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLYSTREAM_")}
    environment["TALLYSTREAM_WORKER_CLAIM_IDLE"] = "0.2"
    if failpoint is not None:
        environment[VARIABLE] = failpoint
    command = [PROGRAM, "worker", "--redis", url, "--name", name, *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def emit(harness: Harness, events: int = EVENTS) -> dict[tuple[str, str], int]:
    """Emit events of two metrics for 97 subjects; return the expected totals."""
    expected: Counter[tuple[str, str]] = Counter()
    with Producer(harness.url, entry_events=20, linger=0.001) as producer:
        for number in range(events // 2):
            subject = f"article:{number % 97}"
            for metric, amount in (("view", 1), ("like", number % 5 - 2)):
                producer.emit(metric, subject, amount)
                expected[metric, subject] += amount
    return dict(expected)


def children(pid: int) -> list[int]:
    """Return the worker processes that a parent started."""
    started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    # One child is the resource tracker of multiprocessing.
    return [int(child) for child in started if b"spawn_main" in command_of(int(child))]


def command_of(pid: int) -> bytes:
    """Return the command line of a process; empty if it has ended."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def drained(harness: Harness) -> bool:
    """Return whether every entry is counted."""
    return harness.waiting() == 0


def check(harness: Harness, expected: dict[tuple[str, str], int], events: int = EVENTS) -> None:
    """Assert that totals and ledger equal the emitted events."""
    assert harness.totals() == expected
    ledger = harness.ledger()
    assert (ledger["appended"], ledger["counted"], ledger.get("dead", 0)) == (events, events, 0)
    assert sum(ledger.get(f"total@{metric}", 0) for metric in ("view", "like")) == sum(expected.values())


def test_a_worker_counts_everything(harness):
    """A worker process counts a backlog, and events that are emitted later."""
    expected = Counter(emit(harness))
    with worker(harness.url):
        until(lambda: drained(harness), timeout=30, what="the backlog's end")
        expected.update(emit(harness))
        until(lambda: drained(harness), timeout=30, what="the end of what came later")
    check(harness, expected, 2 * EVENTS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_worker_in_time(harness, number):
    """SIGTERM and Ctrl-C end a worker with status 0 within its deadline, without a traceback or pending entries."""
    expected = emit(harness)
    with worker(harness.url) as process:
        until(lambda: harness.ledger().get("counted", 0) > 0, timeout=30, what="the first count")
        began = time.monotonic()
        process.send_signal(number)
        output, _ = process.communicate(timeout=15)
        assert time.monotonic() - began < 10
        assert process.returncode == 0, output
        assert "Traceback" not in output
    assert harness.pending() == []
    with worker(harness.url):
        until(lambda: drained(harness), timeout=30, what="the end of what was left")
    check(harness, expected)


@pytest.mark.parametrize(("place", "nth"), [("after-fetch", 1), ("before-apply", 4), ("after-apply", 7)])
def test_a_worker_killed_at_a_failpoint(harness, place, nth):
    """If a worker is killed after a fetch, before an apply or after it, every event is still counted once."""
    expected = emit(harness)
    with worker(harness.url, failpoint=f"{place}:{nth}") as process:
        assert process.wait(30) == -signal.SIGKILL
    assert harness.waiting() > 0
    with worker(harness.url):
        until(lambda: drained(harness), timeout=30, what="the end of what was left")
    check(harness, expected)


def test_another_worker_takes_over(harness):
    """A worker of another name claims and counts the pending entries of a killed worker."""
    expected = emit(harness)
    with worker(harness.url, failpoint="before-apply:3", name="gone") as process:
        assert process.wait(30) == -signal.SIGKILL
    assert any(harness.pending(partition) for partition in range(4))
    with worker(harness.url, name="here"):
        until(lambda: drained(harness), timeout=30, what="the end of what was left")
    check(harness, expected)


def test_a_worker_killed_before_the_reply(harness):
    """A batch counts once if its worker is killed after the server applied it and before the reply arrived."""
    expected = emit(harness)
    harness.client.script_load(_APPLY.text)
    with Proxy(harness.url) as proxy:
        proxy.lose_reply_to(_APPLY.sha.encode(), nth=3, cut=False)
        with worker(proxy.url) as process:
            assert proxy.lost.wait(30)
            process.kill()
            assert process.wait(10) == -signal.SIGKILL
    with worker(harness.url):
        until(lambda: drained(harness), timeout=30, what="the end of what was left")
    check(harness, expected)


def test_a_worker_that_loses_its_connections(harness):
    """A worker reconnects after its connections are cut several times, and counts every event once."""
    expected: Counter[tuple[str, str]] = Counter()
    with Proxy(harness.url) as proxy, worker(proxy.url):
        for _ in range(5):
            expected.update(emit(harness, 1000))
            proxy.cut()
        until(lambda: drained(harness), timeout=30, what="the end of the stream")
    check(harness, expected, 5000)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes by /proc")
def test_several_processes_share_the_work(harness):
    """The processes of `worker --processes` share the work; a killed one is replaced, and all end with their parent."""
    expected = Counter(emit(harness))
    with worker(harness.url, "--processes", "2") as process:
        until(lambda: harness.ledger().get("counted", 0) > 0, timeout=30, what="the first count")
        os.kill(children(process.pid)[0], signal.SIGKILL)
        expected.update(emit(harness))
        until(lambda: drained(harness), timeout=30, what="the end of the stream")
        until(lambda: len(children(process.pid)) == 2, timeout=30, what="the killed one's successor")
        process.terminate()
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 0, output
    check(harness, expected, 2 * EVENTS)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes by /proc")
def test_no_process_outlives_its_parent(harness):
    """When the parent of several worker processes is killed, the processes end, and no event is lost."""
    expected = Counter(emit(harness))
    with worker(harness.url, "--processes", "2") as process:
        until(lambda: harness.ledger().get("counted", 0) > 0, timeout=30, what="the first count")
        started = children(process.pid)
        process.kill()
        until(lambda: not any(map(command_of, started)), timeout=30, what="their end")
    with worker(harness.url):
        until(lambda: drained(harness), timeout=60, what="the end of the stream")
    check(harness, expected, EVENTS)


def test_two_workers_with_one_name(harness):
    """Two workers with the same name count every event once."""
    expected = emit(harness)
    with worker(harness.url, name="twin"), worker(harness.url, name="twin"):
        until(lambda: drained(harness), timeout=30, what="the backlog's end")
    check(harness, expected)


def test_a_paused_worker_comes_back(harness):
    """A worker that was paused while another claimed its batch does not count the batch again."""
    expected = emit(harness)
    with Proxy(harness.url) as proxy:
        proxy.delay = 0.05
        with worker(proxy.url, name="paused") as process:
            until(lambda: any(harness.pending(partition) for partition in range(4)), timeout=30, what="a batch in hand")
            process.send_signal(signal.SIGSTOP)
            with worker(harness.url, name="other"):
                until(lambda: drained(harness), timeout=30, what="the end of the stream")
            process.send_signal(signal.SIGCONT)
            expected_later = Counter(expected)
            expected_later.update(emit(harness, 1000))
            until(lambda: drained(harness), timeout=30, what="the paused worker's return")
    check(harness, expected_later, EVENTS + 1000)


def test_a_wrong_failpoint_is_refused(harness):
    """A worker with an unknown failpoint fails, and its error lists the valid ones."""
    with worker(harness.url, failpoint="nowhere") as process:
        output, _ = process.communicate(timeout=30)
        assert process.returncode != 0
        assert "must be one of after-fetch, before-apply, after-apply" in output
