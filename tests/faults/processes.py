"""The functions that the processes of a scenario run: the real worker and commands, and an app that emits events."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import signal
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from redis.exceptions import RedisError

from tallystream import Producer
from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import FlushTimeout, TallyError, Unconfirmed
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire import codec
from tallystream_worker.cli.commands.dead import dead
from tallystream_worker.cli.commands.ingest import ingest
from tallystream_worker.cli.commands.rebuild import rebuild
from tallystream_worker.cli.commands.reset import reset
from tallystream_worker.cli.commands.restore import restore
from tallystream_worker.cli.commands.retract import retract
from tallystream_worker.cli.commands.snapshot import snapshot
from tallystream_worker.cli.commands.verify import verify
from tallystream_worker.cli.options import Where
from tallystream_worker.process import failpoints, logs
from tallystream_worker.process.services import running
from tallystream_worker.process.signals import stop_on_signals, wait_for
from tallystream_worker.runtime import processes
from tallystream_worker.runtime.metrics import WorkerMetrics
from tallystream_worker.settings.settings import (
    ArchiveSettings,
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
    from collections.abc import Callable, Iterator, Mapping

    from tallystream.client.durability import Durability
    from tallystream_worker.counting.outcome import BatchResult

RULES = Rules(
    {
        "view": Metric(windows=("hour",), top=5, ids=None),
        "like": Metric(windows=("hour",), top=5, ids=None),
        "vote": Metric(windows=("day",), once="forever"),
        "score": Metric(floor=0),
        "flood": Metric(max_subjects=200, ids=None),
        "seat": Metric(limit=20, per="total", ids=None),
    }
)
"""The rules of every scenario: `view` and `like` are the pairs; the others have state that a replay must reproduce.
Only the process `decider` has events of `seat`."""

BY_HAND = 3600.0
"""A linger in seconds so long that only size and flushes seal an entry, so a pair is never split over two entries."""

GIVE_UP = 30.0
"""Seconds for which a producer tries to deliver its events after SIGTERM."""


@contextlib.contextmanager
def listening() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets, also a SIGTERM that arrived before this process was ready for it."""
    with stop_on_signals() as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        yield stop


def worker(
    url: str,
    name: str,
    retention: dict[str, Any] | None = None,
    snapshot: dict[str, Any] | None = None,
    archive: dict[str, Any] | None = None,
    changes: dict[str, dict[str, Any]] | None = None,
    failing_metrics: float = 0.0,
    **settings: Any,
) -> int:
    """Count until SIGTERM, as `tallystream worker` does, and return the exit status.

    `changes` are those of `changed`. With `failing_metrics`, the worker's metrics raise for this share of the batches.
    """
    _begin()
    if failing_metrics:
        _break_metrics(failing_metrics)
    chosen = Settings(
        redis=RedisSettings(url=url),
        worker=WorkerSettings(name=name, **settings),
        rules=changed(changes or {}),
        retention=RetentionSettings(**(retention or {})),
        archive=ArchiveSettings(**(archive or {})),
        snapshot=SnapshotSettings(**(snapshot or {})),
    )
    return processes.run_one([chosen], logs.configure(), None)


def changed(changes: Mapping[str, Mapping[str, Any]]) -> Rules:
    """Return `RULES` with other rules of some metrics, also new ones: by metric, the fields of `Metric` to replace."""
    metrics = {name: msgspec.to_builtins(rule) for name, rule in RULES.metric.items()}
    for name, fields_ in changes.items():
        metrics[name] = metrics.get(name, {}) | dict(fields_)
    return Rules({name: msgspec.convert(rule, Metric) for name, rule in metrics.items()})


def _break_metrics(share: float) -> None:
    """Make the worker metrics of this process raise `KeyError` for a share of the batches, after the apply."""
    real = WorkerMetrics.__call__

    def fragile(metrics: WorkerMetrics, result: BatchResult) -> None:
        if random.random() < share:
            raise KeyError(f"no metric of this name: {result.entries}")
        real(metrics, result)

    WorkerMetrics.__call__ = fragile  # type: ignore[method-assign]


def snapshots(url: str, place: str, every: float) -> int:
    """Take a snapshot every `every` seconds until SIGTERM, as `tallystream snapshot` does."""
    _begin()
    settings = Settings(redis=RedisSettings(url=url), snapshot=SnapshotSettings(place, every), rules=RULES)
    with contextlib.closing(connect(url)) as client:
        deployment = Deployment.create_or_load(client)
    service = snapshot_service(settings, deployment, logs.configure())
    with stop_on_signals() as stop, running(service, settings.worker.stop_timeout):
        wait_for(stop)
    return 0


def retry(url: str, version: str = "") -> int:
    """Retry all dead letters, as `tallystream dead retry --all` does; return its exit status.

    With `version`, act as a release that reads this wire version.
    """
    _begin()
    codec.VERSION = version.encode() or codec.VERSION
    return dead("retry", all=True, where=Where(redis=url))


def bring_back(url: str, place: str) -> int:
    """Replace the counters by those of a snapshot, as `tallystream restore --force` does."""
    _begin()
    restore(place, force=True, where=Where(redis=url))
    return 0


def count_again(url: str, archive: str = "") -> int:
    """Count all entries again by the stored rules, as `tallystream rebuild` does, and drop the counters before."""
    _begin()
    with tempfile.NamedTemporaryFile(suffix=".toml") as empty:  # otherwise config/tallystream.toml states other rules
        where = Where(redis=url, config=Path(empty.name))
        rebuild(archive=archive, where=where)
        rebuild(drop=True, where=where)
    return 0


def operate(url: str, command: str, path: str = "") -> int:
    """Run a command of an operator, and return its exit status.

    `command` is `rebuild`, `repartition`, `retract`, `reset`, `undo`, `ingest` (of the file `path`), `restore` (of the
    snapshot `path`), `retry` (of all dead letters), or `drop`.
    """
    _begin()
    with tempfile.NamedTemporaryFile(suffix=".toml") as empty:  # see `count_again`
        where = Where(redis=url, config=Path(empty.name))
        match command:
            case "rebuild":
                rebuild(where=where)
            case "repartition":
                rebuild(partitions=6, where=where)
            case "retract":
                retract(metric="seat", actor="bot", where=where)
            case "reset":
                reset("t0", "seat", where=where)
            case "undo":
                rebuild(undo=True, where=where)
            case "ingest":
                return ingest(Path(path), processes=1, where=where)
            case "restore":
                return restore(path, force=True, where=where)
            case "retry":
                return dead("retry", all=True, where=where)
            case _:
                rebuild(drop=True, where=where)
    return 0


def steer(url: str, command: str, config: str, options: dict[str, Any]) -> int:
    """Run a command of an operator who has a configuration, and return its exit status.

    `command` is `rebuild`, `repartition`, `retract`, `reset`, `restore`, `snapshot`, `verify` or `drop`; `options` are
    further ones. If the command fails, print the message, as the command line does.
    """
    _begin()
    where = Where(redis=url, config=Path(config))
    calls: dict[str, Callable[[], int | None]] = {
        "rebuild": lambda: rebuild(where=where, **options),
        "repartition": lambda: rebuild(partitions=6, where=where, **options),
        "retract": lambda: retract(metric="seat", actor="bot", where=where, **options),
        "reset": lambda: reset("t0", "seat", where=where),
        "restore": lambda: restore(where=where, **{"force": True, **options}),
        "snapshot": lambda: snapshot(once=True, whole=True, where=where),
        "verify": lambda: verify(where=where),
        "drop": lambda: rebuild(drop=True, where=where),
    }
    try:
        return calls[command]() or 0
    except (TallyError, RedisError) as error:
        print(f"tallystream: {type(error).__name__}: {error}", flush=True)  # noqa: T201  # as cli/main.py prints errors
        return 1


def decider(url: str, journal: str, seed: int, subjects: int, pause: float, durability: Durability = "memory") -> int:
    """Decide events of `seat` until SIGTERM, and write the outcome of each to a journal: `<outcome> <subject>`.

    The outcome is `accepted` or `rejected`; `unknown` if the event may be decided; `refused` if it was not.
    """
    chance = random.Random(seed)
    with (
        listening() as stop,
        contextlib.closing(Producer(url, durability=durability)) as producer,
        Path(journal).open("a", encoding="utf-8", buffering=1) as book,
    ):
        while not stop.is_set():
            subject = f"s{chance.randrange(subjects)}"
            try:
                outcome = "accepted" if producer.decide("seat", subject).accepted else "rejected"
            except (RedisError, Unconfirmed):
                outcome = "unknown"
            except TallyError:
                outcome = "refused"
            book.write(f"{outcome} {subject}\n")
            stop.wait(chance.uniform(0, pause))
    return 0


def _begin() -> None:
    """Undo what this process inherited from the fork server: accept SIGTERM, and read the failpoint variable again."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if failpoints.VARIABLE in os.environ:
        importlib.reload(failpoints)  # it reads the variable at import, which happened in the fork server


def producer(url: str, journal: str, seed: int, **given: Any) -> int:
    """Emit pairs until SIGTERM, as an app does, and keep a journal; return the exit status of `App.run`.

    `given` has attributes of `Habits`, and settings of the `Producer`.
    """
    names = {habit.name for habit in fields(Habits)}
    habits = Habits(**{name: value for name, value in given.items() if name in names})
    settings: dict[str, Any] = {"linger": BY_HAND, "entry_events": 20, "entry_bytes": 2**20}
    settings |= {name: value for name, value in given.items() if name not in names}
    with listening() as stop, contextlib.closing(Journal(Path(journal))) as book:
        return App(Producer(url, **settings), book, seed, stop, habits).run()


@dataclass(frozen=True)
class Habits:
    """The settings of an app that emits.

    Attributes:
        subjects: The number of subjects.
        hot: The share of pairs that goes to the first subject.
        pairs: The most pairs in a chunk.
        pause: The most seconds between chunks.
        flush: When to wait for confirmation: after `each` chunk, after `some` of them, or at the `end`.
        extras: Whether to emit votes and scores too.
        chunks: The number of chunks after which the app ends; 0 means that it runs until SIGTERM.
    """

    subjects: int = 24
    hot: float = 0.0
    pairs: int = 12
    pause: float = 0.004
    flush: str = "each"
    extras: bool = True
    chunks: int = 0


class App:
    """An application that emits random pairs and writes each step to a journal.

    Args:
        producer: The producer that takes the events.
        journal: The journal that records the events and their outcomes.
        seed: The seed of the random events and pauses.
        stop: The event that is set when the app should end.
        habits: The settings of the app.
    """

    def __init__(self, producer: Producer, journal: Journal, seed: int, stop: threading.Event, habits: Habits) -> None:
        self._chance = random.Random(seed)
        self._subjects = [f"s{number}" for number in range(habits.subjects)]
        self._producer, self._journal, self._stop, self._habits = producer, journal, stop, habits

    def run(self) -> int:
        """Emit chunks until stopped; return 0 if every event was confirmed, 1 if not."""
        chunk = 0
        while not self._stop.is_set() and (not self._habits.chunks or chunk < self._habits.chunks):
            chunk += 1
            self._emit(chunk)
            # The first entry is sealed at once, whatever the linger is: confirm it before emitting more.
            if chunk == 1 or self._confirms_now():
                self._confirm(chunk)
            self._stop.wait(self._chance.uniform(0, self._habits.pause))
        delivered = self._confirm(chunk)
        if delivered:
            self._producer.close(GIVE_UP)  # it may find that the server has lost entries
        self._journal.end(asdict(self._producer.stats) | {"pid": os.getpid()})
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
        # Two events of each metric, so that the following pairs still share an entry.
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
        """Wait until all events up to a chunk are confirmed, and record it; return `False` 30 seconds after SIGTERM."""
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
