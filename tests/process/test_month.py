"""A month passes by the server's clock, with real processes: every event counts once.

The server runs under libfaketime, with its clock in a file. Each worker process makes one pass over the producers at
its start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tallystream import Producer
from tallystream_worker.server.binary import find_binary
from tests.clock import faketime, with_clock
from tests.harness import Harness
from tests.servers import missing
from tests.waiting import until

METRICS = ["view", "like", "share", "vote"]
PROGRAM = Path(sys.executable).with_name("tallystream")

DYING = """
import os, signal, sys, time
from tallystream import Producer

producer = Producer(sys.argv[1], spool=sys.argv[2])
for number in range(1000):
    producer.emit("view", f"article:{number % 8}", at=time.time() - 31 * 86400)
producer.flush(10)
os.kill(os.getpid(), signal.SIGKILL)
"""


STEPPING = """
import os, sys, time
from tallystream import Producer

_, url, spool, clock, now = sys.argv
producers = [Producer(url), Producer(url, spool=spool)]
for offset in ("+0", "+31d", "-31d", "+400d", "+0"):
    with open(clock, "w") as file:
        file.write(offset)
    for producer in producers:
        for number in range(200):
            producer.emit("view", f"article:{number % 8}", at=min(float(now), time.time()))
        producer.flush(20)
for producer in producers:
    producer.close()
    assert producer.stats.lost_entries == producer.stats.unknown_entries == producer.stats.rewound_streams == 0
"""


@pytest.fixture
def binary() -> Path:
    """Provide the program of the embedded server: Debian's Redis does not start with a clock from a file."""
    if faketime() is None:
        missing("no libfaketime (apt install faketime)", unless="CI")
    return find_binary()


@pytest.fixture
def clock(tmp_path) -> Path:
    """Provide the file with the offset of the server's clock."""
    file = tmp_path / "clock"
    file.write_text("+0")
    return file


@contextlib.contextmanager
def worker(harness: Harness):
    """Run a worker process, after its first pass over the producers of every partition."""
    before = [harness.client.hget(keys.sequences, "!active") for keys in harness.layout.keys]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLYSTREAM_")}
    process = subprocess.Popen([PROGRAM, "worker", "--redis", harness.url], env=environment, stderr=subprocess.DEVNULL)
    try:
        until(
            lambda: all(
                harness.client.hget(keys.sequences, "!active") != old
                for keys, old in zip(harness.layout.keys, before, strict=True)
            ),
            30,
            what="the first pass over the producers",
        )
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def emit(producer: Producer, events: int, days_ago: int = 0) -> None:
    """Emit views of 8 subjects that happened some days ago, and wait until they are appended."""
    for number in range(events):
        producer.emit("view", f"article:{number % 8}", at=time.time() - days_ago * 86_400)
    producer.flush(20)


def test_a_clock_that_is_a_month_ahead_for_a_moment(fresh_server, binary, clock, tmp_path):
    """If the server's clock is 31 days ahead while a worker looks for silent producers, every event counts once."""
    server = fresh_server(binary=with_clock(binary, tmp_path, clock))
    with Harness(server.url, metrics=METRICS) as harness, contextlib.ExitStack() as stack:
        producers = [stack.enter_context(Producer(server.url)) for _ in range(3)]
        producers.append(stack.enter_context(Producer(server.url, spool=tmp_path / "spool")))
        with worker(harness):
            for producer in producers:
                emit(producer, 500)
        for offset in ("+31d", "+0", "+400d", "-31d", "+0"):
            clock.write_text(offset)
            with worker(harness):
                pass
        for producer in producers:
            emit(producer, 8)
            assert (producer.stats.lost_entries, producer.stats.unknown_entries) == (0, 0)
        harness.finish()
        assert harness.totals() == {("view", f"article:{n}"): 4 * (64 if n < 4 else 63) for n in range(8)}


def test_a_month_without_a_server(fresh_server, binary, clock, tmp_path):
    """A producer that lives, and the spool of one that died, count once after 31 days in which the server was away."""
    clock.write_text("-31d")
    server = fresh_server(binary=with_clock(binary, tmp_path, clock), extra=["--appendfsync", "always"])
    with Harness(server.url, metrics=METRICS) as harness, Producer(server.url) as producer:
        with worker(harness):
            emit(producer, 1000, days_ago=31)
            subprocess.run([sys.executable, "-c", DYING, server.url, tmp_path / "spool"], check=False)
        server.kill()
        clock.write_text("+0")
        server.start()
        with worker(harness):
            emit(producer, 8)
            with Producer(server.url, spool=tmp_path / "spool") as other:
                emit(other, 8)
                until(lambda: other.stats.adopted == 1000, what="the spool of the dead process")
        harness.finish()
        assert harness.totals() == {("view", f"article:{n}"): 252 for n in range(8)}


def test_a_caller_whose_clock_jumps(fresh_server, binary, clock, tmp_path):
    """The clock of a producer decides nothing at the gate: every event of a process whose clock jumps counts once."""
    with Harness(fresh_server(binary=binary).url, metrics=METRICS) as harness:
        program = with_clock(Path(sys.executable), tmp_path, clock)
        arguments = [harness.url, tmp_path / "spool", clock, str(time.time())]
        subprocess.run([program, "-c", STEPPING, *arguments], check=True, timeout=60)
        harness.finish()
        assert harness.totals() == {("view", f"article:{n}"): 2 * 5 * 25 for n in range(8)}
