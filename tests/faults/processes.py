"""What the processes of a scenario run: the product's own worker, and an app that emits and keeps a journal."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import signal
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tallystream import Producer
from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import FlushTimeout
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire import codec
from tallystream_worker.cli.commands.dead import dead
from tallystream_worker.cli.commands.restore import restore
from tallystream_worker.cli.options import Where
from tallystream_worker.process import failpoints, logs
from tallystream_worker.process.services import running
from tallystream_worker.process.signals import stop_on_signals, wait_for
from tallystream_worker.runtime import processes
from tallystream_worker.runtime.metrics import WorkerMetrics
from tallystream_worker.settings.settings import (
    RedisSettings,
    RetentionSettings,
    Settings,
    SnapshotSettings,
    WorkerSettings,
)
from tallystream_worker.snapshot.service import snapshot_service
from tests.faults.journal import Journal

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from tallystream_worker.counting.outcome import BatchResult

RULES = Rules(
    {
        "view": Metric(windows=("hour",), top=5, ids=None),
        "like": Metric(windows=("hour",), top=5, ids=None),
        "vote": Metric(windows=("day",), once="forever"),
        "score": Metric(floor=0),
        "flood": Metric(max_subjects=200, ids=None),
    }
)
"""What every scenario declares: the pairs that are balanced, and rules with state that a replay must repeat."""

BY_HAND = 3600.0
"""A linger that leaves sealing to size and flushes: so an entry never ends between the two events of a pair."""

GIVE_UP = 30.0
"""Seconds that a producer which was told to end goes on trying to deliver."""


@contextlib.contextmanager
def listening() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets, also one that came before this process was ready for it."""
    with stop_on_signals() as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        yield stop


def worker(
    url: str,
    name: str,
    retention: dict[str, Any] | None = None,
    snapshot: dict[str, Any] | None = None,
    failing_metrics: float = 0.0,
    **settings: Any,
) -> int:
    """Count until told to stop, as `tallystream worker` does; the metrics raise for this share of the batches."""
    _begin()
    if failing_metrics:
        _break_metrics(failing_metrics)
    chosen = Settings(
        redis=RedisSettings(url=url),
        worker=WorkerSettings(name=name, **settings),
        rules=RULES,
        retention=RetentionSettings(**(retention or {})),
        snapshot=SnapshotSettings(**(snapshot or {})),
    )
    return processes.run_one([chosen], logs.configure(), None)


def _break_metrics(share: float) -> None:
    """Make the metrics of this process raise for a share of the batches, after each was applied."""
    real = WorkerMetrics.__call__

    def fragile(metrics: WorkerMetrics, result: BatchResult) -> None:
        if random.random() < share:
            raise KeyError(f"no metric of this name: {result.entries}")
        real(metrics, result)

    WorkerMetrics.__call__ = fragile  # type: ignore[method-assign]


def snapshots(url: str, place: str, every: float) -> int:
    """Take snapshots until told to stop, as `tallystream snapshot` does."""
    _begin()
    settings = Settings(redis=RedisSettings(url=url), snapshot=SnapshotSettings(place, every), rules=RULES)
    with contextlib.closing(connect(url)) as client:
        deployment = Deployment.create_or_load(client)
    service = snapshot_service(settings, deployment, logs.configure())
    with stop_on_signals() as stop, running(service, settings.worker.stop_timeout):
        wait_for(stop)
    return 0


def retry(url: str, version: str = "") -> int:
    """Retry all that is parked, as `tallystream dead retry --all` does; with `version`, of a release that reads it."""
    _begin()
    codec.VERSION = version.encode() or codec.VERSION
    return dead("retry", all=True, where=Where(redis=url))


def bring_back(url: str, place: str) -> int:
    """Replace what is there by a snapshot, as `tallystream restore --force` does."""
    _begin()
    restore(place, force=True, where=Where(redis=url))
    return 0


def _begin() -> None:
    """Be a process of the product's own, rather than a copy of the fork_server."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if failpoints.VARIABLE in os.environ:
        importlib.reload(failpoints)  # it is read once, at import, and that was in the fork_server


def producer(url: str, journal: str, seed: int, **given: Any) -> int:
    """Emit pairs until told to stop, as an app would; `given` are `Habits`, and settings of the `Producer`."""
    names = {habit.name for habit in fields(Habits)}
    habits = Habits(**{name: value for name, value in given.items() if name in names})
    settings: dict[str, Any] = {"linger": BY_HAND, "entry_events": 20, "entry_bytes": 2**20}
    settings |= {name: value for name, value in given.items() if name not in names}
    with listening() as stop, contextlib.closing(Journal(Path(journal))) as book:
        return App(Producer(url, **settings), book, seed, stop, habits).run()


@dataclass(frozen=True)
class Habits:
    """How an app emits.

    Attributes:
        subjects: How many subjects there are.
        hot: The share of pairs that goes to the first of them.
        pairs: The most pairs in a chunk.
        pause: The most seconds between chunks.
        flush: When to wait for durability: after `each` chunk, after `some`, or at the `end`.
        extras: Emit votes and scores besides.
        chunks: End after so many; 0 goes on until told to stop.
    """

    subjects: int = 24
    hot: float = 0.0
    pairs: int = 12
    pause: float = 0.004
    flush: str = "each"
    extras: bool = True
    chunks: int = 0


class App:
    """An application that emits.

    Args:
        producer: By which.
        journal: What it knows of its events.
        seed: Which events, and when.
        stop: Set when it should end.
        habits: How.
    """

    def __init__(self, producer: Producer, journal: Journal, seed: int, stop: threading.Event, habits: Habits) -> None:
        self._chance = random.Random(seed)
        self._subjects = [f"s{number}" for number in range(habits.subjects)]
        self._producer, self._journal, self._stop, self._habits = producer, journal, stop, habits

    def run(self) -> int:
        """Emit until told to stop; return 0 if everything was confirmed, 1 if some is unknown."""
        chunk = 0
        while not self._stop.is_set() and (not self._habits.chunks or chunk < self._habits.chunks):
            chunk += 1
            self._emit(chunk)
            # The first seal comes at once whatever the linger is: wait for it before more is emitted.
            if chunk == 1 or self._confirms_now():
                self._confirm(chunk)
            self._stop.wait(self._chance.uniform(0, self._habits.pause))
        delivered = self._confirm(chunk)
        self._journal.end(asdict(self._producer.stats) | {"pid": os.getpid()})
        if delivered:
            self._producer.close()
        return 0 if delivered else 1

    def _emit(self, chunk: int) -> None:
        pairs = [
            (self._subject(), self._chance.randint(1, 3)) for _ in range(self._chance.randint(1, self._habits.pairs))
        ]
        self._journal.intend(chunk, time.time(), pairs)
        refused = []
        for index, (subject, amount) in enumerate(pairs):
            before = self._producer.stats.dropped
            self._producer.emit("view", subject, amount)
            if self._producer.stats.dropped > before:
                refused.append(index)
            else:
                self._producer.emit("like", subject, amount)
        if refused:
            self._journal.refuse(chunk, refused)
        self._journal.emitted(chunk)
        if self._habits.extras:
            self._emit_extras()

    def _emit_extras(self) -> None:
        # Two at a time, so that a pair of what comes next still shares an entry.
        subject, now = self._subject(), time.time()
        for _ in range(2):
            actor, amount = f"u{self._chance.randint(1, 9)}", self._chance.choice([1, -1, 0])
            self._producer.emit("vote", subject, amount, actor=actor, at=now - self._chance.randint(0, 3000))
        for _ in range(2):
            self._producer.emit("score", subject, self._chance.choice([-3, -1, 1, 2]))

    def _subject(self) -> str:
        return self._subjects[0] if self._chance.random() < self._habits.hot else self._chance.choice(self._subjects)

    def _confirms_now(self) -> bool:
        return self._habits.flush == "each" or (self._habits.flush == "some" and self._chance.random() < 0.1)

    def _confirm(self, chunk: int) -> bool:
        """Wait until everything is confirmed, however long the outage; tell whether it was."""
        deadline = None
        while True:
            if self._stop.is_set():
                deadline = deadline or time.monotonic() + GIVE_UP
            try:
                self._producer.flush(0.25)
            except FlushTimeout:
                if deadline is not None and time.monotonic() > deadline:
                    return False
            else:
                self._journal.confirm(chunk)
                return True
