"""Every event that `emit` accepted into a spool is counted once, even if the process is killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys

import pytest

from tallystream import Producer
from tests.harness import Harness
from tests.waiting import until

EMITTING = """
import os, sys
from tallystream import Producer

producer = Producer(sys.argv[1], spool=sys.argv[2], entry_events=20, linger=0.001, block_timeout=0.1)
number = 0
while number < int(sys.argv[3]):
    producer.emit("view", f"article:{number % 7}")
    number += 1
    os.write(1, b".")
print("all", end="", flush=True)
import time
time.sleep(60)
"""

FORKING = """
import os, sys, time
from tallystream import Producer

producer = Producer(sys.argv[1], spool=sys.argv[2])
producer.emit("view", "parent")
if os.fork() == 0:
    producer.emit("view", "child")
    os.write(1, b"child")
    time.sleep(60)
os._exit(0)
"""


@contextlib.contextmanager
def emitting(url, spool, events):
    """Start a process that emits with a spool; kill it at the end of the block."""
    command = [sys.executable, "-c", EMITTING, url, str(spool), str(events)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def killed(process) -> int:
    """Kill a process; return the number of events that `emit` accepted and that were not read from its output yet."""
    process.kill()
    process.wait()
    return process.stdout.read().count(b".")


def test_an_outage_and_a_kill(fresh_server, tmp_path):
    """Events that a process emitted during an outage, before it was killed, are delivered by the next process."""
    server = fresh_server()
    url = server.url
    server.kill()
    with emitting(url, tmp_path / "spool", 3000) as process:
        until(lambda: process.stdout.read(3003).endswith(b"all"))
        killed(process)
    server.start()
    with Producer(url, spool=tmp_path / "spool") as producer:
        until(lambda: producer.stats.adopted == 3000, timeout=30, what="the dead process's events")
        assert list((tmp_path / "spool").iterdir()) == []
    with Harness(url) as harness:
        harness.drain()
        assert sum(harness.totals().values()) == 3000


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_any_moment(fresh_server, tmp_path, seed):
    """If processes are killed at any moment and each adopts the spool of the last, every accepted event counts once."""
    draw = random.Random(seed)
    server = fresh_server(extra=["--appendfsync", "always"])
    taken = 0
    for round_ in range(4):
        with emitting(server.url, tmp_path / "spool", 100_000) as process:
            taken += len(process.stdout.read(draw.randint(1, 4000)))
            if round_ == 2:
                server.kill()
                taken += len(process.stdout.read(50))
            taken += killed(process)
        if round_ == 2:
            server.start()
    with Harness(server.url) as harness:
        with Producer(server.url, spool=tmp_path / "spool") as producer:
            until(lambda: list((tmp_path / "spool").iterdir()) == [], timeout=30, what="an empty spool")
            assert producer.stats.lost_entries == 0
        harness.drain()
        total = sum(harness.totals().values())
        assert taken <= total <= taken + 4  # a process may be killed after `emit` and before it prints
        assert harness.ledger()["appended"] == total


def test_a_child_does_not_keep_its_parents_spool(fresh_server, tmp_path):
    """A forked child does not lock the spool of its dead parent: another process can adopt it while the child runs."""
    server = fresh_server()
    url = server.url
    server.kill()
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING, url, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout.read(5) == b"child"
        process.wait()
        server.start()
        # Either the child or this process sends the parent's event.
        with Producer(url, spool=tmp_path), Harness(url) as harness:
            until(lambda: harness.ledger().get("appended") == 2, timeout=30, what="the parent's event")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()


FILLING = """
import resource, signal, sys
from tallystream import Producer, SpoolError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
producer = Producer(sys.argv[1], spool=sys.argv[2])
producer.emit("view", "first")
resource.setrlimit(resource.RLIMIT_FSIZE, (200_001, resource.RLIM_INFINITY))
taken = 1
try:
    while True:
        producer.emit("view", "article")
        taken += 1
except SpoolError as error:
    print(taken, error)
import os
sys.stdout.flush()
os._exit(0)
"""


def test_a_disk_that_is_full(fresh_server, tmp_path):
    """If the disk is full, `emit` raises an error, and every event accepted before is counted once."""
    server = fresh_server()
    url = server.url
    server.kill()
    done = subprocess.run(
        [sys.executable, "-c", FILLING, url, str(tmp_path)], capture_output=True, text=True, check=True
    )
    taken, _, problem = done.stdout.partition(" ")
    assert problem.startswith("the event was not added: spool ")
    assert "free space on its disk" in problem
    server.start()
    with Producer(url, spool=tmp_path) as producer, Harness(url) as harness:
        until(lambda: producer.stats.adopted == int(taken), timeout=30, what="what was taken")
        harness.drain()
        assert sum(harness.totals().values()) == int(taken)
