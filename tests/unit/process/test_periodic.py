"""Tests of the periodic service: no exception of a pass ends it, and it stops within its deadline."""

from __future__ import annotations

import threading
import time
from queue import Queue

import pytest
import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError
from structlog.testing import LogCapture

from tallystream.client.backoff import Backoff
from tallystream_worker.process.periodic import PeriodicService
from tallystream_worker.process.services import running, start_all, stop_all

LONG = 3600.0
"""An interval in seconds that is longer than any test."""


@pytest.fixture
def lines():
    """Return the captured log lines."""
    return LogCapture()


def service(lines: LogCapture, run_once, interval: float = LONG, **settings) -> PeriodicService:
    """Return a service without jitter."""
    settings.setdefault("backoff", Backoff(1.0, 4.0, jitter=0))
    return PeriodicService("copy", interval, run_once, structlog.wrap_logger(None, processors=[lines]), **settings)


def soon() -> float:
    """Return a deadline that is late enough for a busy machine."""
    return time.monotonic() + 30


class Client:
    """A client that records what happens to its connections."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.connection_pool = self

    def disconnect(self, inuse_connections: bool) -> None:
        """Record that idle connections are dropped; another service may wait on one that is in use."""
        assert not inuse_connections
        self.happened.append("disconnect")

    def close(self) -> None:
        """Record that the client is closed."""
        self.happened.append("close")


def test_the_first_pass_is_made_at_once_and_a_stop_wakes_the_service(lines):
    """A service with an interval of an hour runs a pass at its start, and stops without waiting for the hour."""
    passes: Queue[str] = Queue()
    copying = service(lines, lambda: passes.put(threading.current_thread().name))
    copying.start()
    assert passes.get(timeout=30) == "tallystream-copy"
    began = time.monotonic()
    assert copying.stop(soon())
    assert time.monotonic() - began < 30
    assert passes.empty()


def test_the_interval_is_from_beginning_to_beginning(lines):
    """The duration of a pass counts towards the interval; after a longer pass the next begins at once."""
    assert LONG - 60 < service(lines, lambda: None).attempt() <= LONG
    assert service(lines, lambda: None, interval=0).attempt() == 0
    shorter = [service(lines, lambda: None, jitter=0.25).attempt() for _ in range(100)]
    assert LONG * 0.75 - 60 < min(shorter) < LONG < max(shorter) <= LONG * 1.25


def test_failed_passes_are_tried_again_at_growing_pauses(lines):
    """Pauses grow while passes fail and start small after a success; two lines are logged."""
    outcomes = iter([RedisConnectionError("gone")] * 4 + [None] + [RedisConnectionError("gone")])

    def run_once() -> None:
        if (error := next(outcomes)) is not None:
            raise error

    copying = service(lines, run_once)
    assert [copying.attempt() for _ in range(4)] == [1.0, 2.0, 4.0, 4.0]
    assert copying.health.problem == "gone"
    passed = copying.health.passed
    copying.attempt()
    assert copying.health.problem is None
    assert copying.health.passed > passed
    assert copying.attempt() == 1.0
    assert [(line["event"], line["service"]) for line in lines.entries] == [
        ("task.failed", "copy"), ("task.recovered", "copy"), ("task.failed", "copy"),
    ]  # fmt: skip


def test_a_bug_does_not_end_the_service(lines):
    """An unexpected exception is logged once with its traceback, and the passes continue."""
    tries: Queue[None] = Queue()

    def run_once() -> None:
        tries.put(None)
        raise ZeroDivisionError("of 7")

    copying = service(lines, run_once, backoff=Backoff(1e-6, 1e-6))
    copying.start()
    for _ in range(50):
        tries.get(timeout=30)
    assert copying.health.problem == "ZeroDivisionError: of 7"
    assert copying.stop(soon())
    (line,) = lines.entries
    assert isinstance(line["exc_info"], ZeroDivisionError)


def test_not_even_a_log_that_cannot_be_written_ends_the_service():
    """The thread survives an error of logging, for example a full disk: it waits and continues."""
    tried = threading.Event()

    def full_disk(*_: object) -> None:
        tried.set()
        raise OSError("No space left on device")

    log = structlog.wrap_logger(None, processors=[full_disk])
    copying = PeriodicService("copy", 0.0, lambda: 1 / 0, log)
    copying.start()
    assert tried.wait(30)
    assert copying._thread.is_alive()
    assert copying.stop(soon())


def test_what_recovers_may_say_how_long_to_wait(lines):
    """`recover` may return the pause after a failed pass; if it raises, the back-off decides."""

    def fail() -> None:
        raise RedisConnectionError("gone")

    seen: list[Exception] = []
    assert service(lines, fail, recover=lambda error: seen.append(error) or 0.05).attempt() == 0.05
    assert service(lines, fail, recover=seen.append).attempt() == 1.0
    assert [str(error) for error in seen] == ["gone", "gone"]
    copying = service(lines, fail, recover=lambda _error: 1 / 0)
    assert copying.attempt() == 1.0
    assert copying.health.problem.startswith("ZeroDivisionError")


@pytest.mark.parametrize(
    ("error", "drops"),
    [(RedisConnectionError("gone"), True), (ReadOnlyError("demoted"), True), (ResponseError("OOM"), False)],
)
def test_connections_are_dropped_if_the_server_is_lost(lines, error, drops):
    """Connections to a lost or demoted server are dropped; all clients are closed at the end."""

    def fail() -> None:
        raise error

    client = Client()
    shared = Client()
    copying = service(lines, fail, clients=[client], shared=[shared])
    copying.attempt()
    assert client.happened == shared.happened == ["disconnect"] * drops
    assert copying.stop(soon())
    assert client.happened[-1] == "close"
    assert "close" not in shared.happened


def test_what_was_done_is_a_line(lines):
    """The fields that a pass returns are logged; a pass without fields logs nothing."""
    results = iter([{"events": 3}, None, {}])
    copying = service(lines, lambda: next(results))
    for _ in range(3):
        copying.attempt()
    assert [(line["event"], line["events"]) for line in lines.entries] == [("task.done", 3)]


def test_a_pass_that_does_not_end_is_left_alone(lines):
    """A stop returns false at its deadline; the pass may end later and then closes its clients."""
    began, may_end, closed = threading.Event(), threading.Event(), threading.Event()

    def run_once() -> None:
        began.set()
        may_end.wait(60)

    copying = service(lines, run_once, close=closed.set)
    copying.start()
    assert began.wait(30)
    assert not copying.stop(time.monotonic())
    assert not closed.is_set()
    may_end.set()
    assert closed.wait(30)
    assert copying.stop(soon())


def test_services_start_in_order_and_stop_backwards():
    """All services get `quiet` before the first `stop`; the service started last is stopped first."""
    happened: list[str] = []

    class Recorded:
        health = None

        def __init__(self, name: str) -> None:
            self.name = name

        def start(self) -> None:
            happened.append(f"start {self.name}")

        def quiet(self) -> None:
            happened.append(f"quiet {self.name}")

        def stop(self, deadline: float) -> bool:
            happened.append(f"stop {self.name} at {deadline:g}")
            return self.name != "b"

    services = [Recorded("a"), Recorded("b")]
    start_all(services)
    assert not stop_all(services, 7)
    assert happened == ["start a", "start b", "quiet b", "quiet a", "stop b at 7", "stop a at 7"]


def test_a_service_runs_as_long_as_a_context(lines):
    """A service runs within its context, and its clients are closed at the end."""
    passes: Queue[None] = Queue()
    client = Client()
    with running(service(lines, lambda: passes.put(None), clients=[client]), 30):
        passes.get(timeout=30)
    assert client.happened == ["close"]
