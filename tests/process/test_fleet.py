"""Workers share every partition evenly, and can join and leave while events are counted."""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.producing.producer import Producer
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tests.secured import free_port
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream_worker.server.embedded import EmbeddedServer

PROGRAM = Path(sys.executable).with_name("tallystream")
PARTITIONS = 16


class Worker:
    """A worker process, ready when it is created, and its metrics."""

    def __init__(self, url: str, name: str) -> None:
        self._port = free_port()
        command = [PROGRAM, "worker", "--redis", url, "--name", name, "--metrics-port", str(self._port)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until(lambda: self._get("/readyz"), timeout=60, what=f"{name} to be ready")

    def _get(self, path: str) -> str:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=5) as answer,
        ):
            return answer.read().decode()
        return ""

    @property
    def events(self) -> float:
        """The number of events that the worker has counted, from its metrics."""
        (found,) = re.findall(r"^tallystream_batch_events_sum (\S+)$", self._get("/metrics"), re.MULTILINE)
        return float(found)


@contextlib.contextmanager
def worker(url: str, name: str) -> Iterator[Worker]:
    """Run a worker until the block ends; it must then stop with status 0, unless it ended before."""
    running = Worker(url, name)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
            assert running.process.wait(30) == 0


@pytest.fixture
def server(fresh_server) -> EmbeddedServer:
    """Provide a server with a deployment of 16 partitions."""
    server = fresh_server()
    with contextlib.closing(connect(server.url)) as client:
        Deployment.create_or_load(client, PARTITIONS)
    return server


@pytest.mark.slow
def test_workers_share_the_load_and_come_and_go(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers count about equally many events (20 %); a third gets a share; one that leaves loses no event."""
    monkeypatch.setenv("TALLYSTREAM_REDIS_PARTITIONS", str(PARTITIONS))
    emitted = 0
    with (
        contextlib.closing(Totals(server.url)) as totals,
        contextlib.ExitStack() as first,
        worker(server.url, "second") as second,
    ):
        leaving = first.enter_context(worker(server.url, "first"))
        with Producer(server.url) as producer:

            def emit(rounds: int) -> None:
                nonlocal emitted
                for _ in range(rounds):
                    for subject in range(PARTITIONS * 8):
                        producer.emit("view", f"article:{subject}")
                    emitted += PARTITIONS * 8
                    producer.flush(30)  # wait for each round: a steady load, not a backlog

            before = leaving.events, second.events
            emit(200)
            producer.flush(60, wait="counted")
            until(  # a worker exports its figure a moment after it has counted
                lambda: leaving.events + second.events == sum(before) + 200 * PARTITIONS * 8,
                what="the workers' figures",
            )
            counted = leaving.events - before[0], second.events - before[1]
            assert min(counted) >= 0.8 * max(counted), counted

            with worker(server.url, "third") as third:
                emit(50)
                first.close()  # stops under load, and finishes its entries
                emit(50)
                producer.flush(60, wait="counted")
                assert third.events > 0
        books = totals.run(query_ledger(totals.deployment.layout))
        assert (books.events["counted"], books.unaccounted) == (emitted, 0)
        assert (
            sum(value for (value,) in [(totals.get(f"article:{n}", "view").value,) for n in range(PARTITIONS * 8)])
            == emitted
        )


class Watch:
    """Polls the ledger of every partition during the block; keeps the longest time without a newly counted event."""

    def __init__(self, url: str) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(url,), name="watch")
        self._longest = 0.0

    def _look(self, url: str) -> None:
        with contextlib.closing(connect(url)) as client:
            layout = Deployment.create_or_load(client).layout
            before: list[bytes | None] = []
            moved = [time.monotonic()] * layout.partitions
            while not self._stopping.wait(0.01):
                with client.pipeline(transaction=False) as pipeline:
                    for keys in layout.keys:
                        pipeline.hget(keys.ledger, "counted")
                    found, now = pipeline.execute(), time.monotonic()
                for partition, (old, new) in enumerate(itertools.zip_longest(before, found)):
                    self._longest = max(self._longest, now - moved[partition])
                    if old != new:
                        moved[partition] = now
                before = found

    def longest(self) -> float:
        """Return the longest time without a counted event in any partition, in seconds, and reset it."""
        found, self._longest = self._longest, 0.0
        return found

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()


class Load:
    """Emits events for subjects of every partition, and ten times as many for one hot subject, until it is stopped."""

    def __init__(self, url: str) -> None:
        self._stopping = threading.Event()
        self.producer = Producer(url)
        self.emitted = 0
        self._thread = threading.Thread(target=self._emit, name="load")

    def _emit(self) -> None:
        cold = [f"article:{number}" for number in range(PARTITIONS * 8)]
        while not self._stopping.wait(0.005):
            for subject in (*cold, *["hot"] * 10 * len(cold)):
                self.producer.emit("view", subject)
            self.emitted += 11 * len(cold)

    def stop(self) -> None:
        """Stop emitting, and wait for the thread."""
        self._stopping.set()
        self._thread.join()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.producer.close()


@pytest.mark.slow
def test_no_partition_waits_while_workers_come_and_go(server, monkeypatch, capsys) -> None:
    """While workers join, leave and are killed, and one subject is hot, no partition stops counting for 10 seconds."""
    monkeypatch.setenv("TALLYSTREAM_REDIS_PARTITIONS", str(PARTITIONS))
    url, gaps = server.url, {}
    with worker(url, "stays") as stays, Load(url) as load:
        until(lambda: stays.events > 1000, what="the load")
        with Watch(url) as watch:

            def note(what: str) -> None:
                """Wait for two seconds after a change, and record the longest time without a counted event."""
                end = time.monotonic() + 2
                until(lambda: time.monotonic() > end, what="two seconds")
                gaps[what] = watch.longest()

            note("one worker")
            with worker(url, "leaves"):
                note("a worker joins")
            note("it leaves")
            with worker(url, "dies") as dies:
                note("another joins")
                dies.process.kill()
                dies.process.wait()
                note("it is killed")
                with worker(url, "dies"):  # a worker of the same name begins with its pending entries
                    note("it comes back")
                    load.stop()
        load.producer.flush(60, wait="counted")
        with Totals(url) as totals:
            books = totals.run(query_ledger(totals.deployment.layout))
    with capsys.disabled():
        print("".join(f"\n{what}: no partition paused for more than {gap:.2f} s" for what, gap in gaps.items()))  # noqa: T201
    assert (books.counted, books.unaccounted) == (load.emitted, 0)
    assert max(gaps.values()) < 10, gaps
