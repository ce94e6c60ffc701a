"""An evening of an operator, under load: all is changed, fails over and is restored, and every count stays true.

The load counts its own events. After each step the operator proves the counters; at the end they are those of the load.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.producing.producer import Producer
from tallystream.reading.totals import Totals
from tests.secured import free_port
from tests.sentinel import port_of, watched
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tallystream_worker.server.embedded import EmbeddedServer
    from tests.sentinel import Watched

PROGRAM = str(Path(sys.executable).with_name("tallystream"))
SUBJECTS = [f"article:{number}" for number in range(20)]
BOT = "bot:7"
VOTERS = [f"user:{number}" for number in range(12)]


class Load:
    """Emits views, votes and limited calls until it is stopped, and counts all but the views of a bot."""

    def __init__(self, url: str) -> None:
        self._producer = Producer(url, durability="replica")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._emit, name="load")
        self.views: Counter[str] = Counter()
        self.bot_is_there = True
        self.calls: Counter[str] = Counter()
        self.votes: dict[tuple[str, str], int] = {}
        self.rounds = 0

    def _emit(self) -> None:
        while not self._stopping.wait(0.02):
            self.rounds += 1
            for number, subject in enumerate(SUBJECTS):
                self._producer.emit("view", subject, actor=VOTERS[self.rounds % len(VOTERS)])
                self.views[subject] += 1
                if self.bot_is_there and (self.rounds + number) % 10 == 0:
                    self._producer.emit("view", subject, actor=BOT)
            subject, voter = SUBJECTS[self.rounds % len(SUBJECTS)], VOTERS[self.rounds % len(VOTERS)]
            amount = 1 if self.rounds % 3 else -1
            self._producer.emit("vote", subject, amount, actor=voter)
            self.votes[subject, voter] = amount
            self._producer.emit("call", subject)
            self.calls[subject] += 1

    def go_on(self) -> None:
        """Wait until 25 more rounds were emitted."""
        wanted = self.rounds + 25
        until(lambda: self.rounds >= wanted, timeout=30, what="25 rounds of events")

    def finish(self) -> None:
        """Stop, and wait until every event is counted."""
        self._stopping.set()
        self._thread.join()
        self._producer.flush(120, wait="counted")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._producer.close()


class Operator:
    """Runs commands with a configuration file, and keeps two workers running."""

    def __init__(self, url: str, folder: Path) -> None:
        self._file = folder / "tallystream.toml"
        self._environment = os.environ | {"TALLYSTREAM_REDIS_URL": url}
        self._workers: list[subprocess.Popen[bytes]] = []
        self.folder = folder

    def declare(self, *, windows: list[str], limit: int) -> None:
        """Write the configuration, and replace the workers one after the other."""
        self._file.write_text(
            f'[redis]\nurl = "{self._environment["TALLYSTREAM_REDIS_URL"]}"\n'
            f'[archive]\nurl = "{self.folder / "archive"}"\nevery = 1.0\n'
            f"[metric.view]\nwindows = {json.dumps(windows)}\nunique = 'day'\ntop = 20\n"
            f"[metric.vote]\nonce = 'forever'\n[metric.call]\nlimit = {limit}\nper = 'total'\n"
        )
        for name in ("one", "two"):
            if len(self._workers) == 2:
                self._stop(self._workers.pop(0))
            port = free_port()
            command = [PROGRAM, "worker", "--name", name, "--metrics-port", str(port), "--config", str(self._file)]
            self._workers.append(subprocess.Popen(command, env=self._environment, stderr=subprocess.DEVNULL))
            until(partial(_is_ready, port), timeout=60, what=f"worker {name}")

    def run(self, *command: str) -> dict[str, Any]:
        """Run a command to its end, and return its JSON; it must end with 0."""
        done = subprocess.run(
            [PROGRAM, *command, "--json", "--config", str(self._file)],
            env=self._environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def prove(self, step: str) -> None:
        """Check that nothing is wrong with the counters."""
        found = self.run("verify")
        assert found["findings"] == [], f"after {step}: {found}"

    @staticmethod
    def _stop(worker: subprocess.Popen[bytes]) -> None:
        worker.terminate()
        assert worker.wait(30) == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            self._stop(worker)


def _is_ready(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
        return True
    return False


def totals_of(url: str, metric: str) -> dict[str, int]:
    """Return the totals of all subjects of a metric."""
    with Totals(url) as totals:
        return {subject: totals.get(subject, metric).value for subject in SUBJECTS}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_count_is_true_after_an_evening_of_changes(fresh_server, tmp_path):
    """A window is added, a limit raised, an actor retracted, a failover, a rebuild and a restore happen under load."""
    with watched(fresh_server, tmp_path) as servers, contextlib.closing(connect(servers.url)) as client:
        Deployment.create_or_load(client)
        with Operator(servers.url, tmp_path) as operator:
            operator.declare(windows=["day"], limit=30)
            until(lambda: Deployment.find(client).declared is not None, timeout=60, what="the rules")
            with Load(servers.url) as load:
                evening(operator, load, servers, fresh_server)
                load.finish()
                operator.prove("the evening")
        assert totals_of(servers.url, "view") == dict(load.views)
        assert totals_of(servers.url, "call") == {subject: min(60, load.calls[subject]) for subject in SUBJECTS}
        votes: Counter[str] = Counter(dict.fromkeys(SUBJECTS, 0))
        for (subject, _), amount in load.votes.items():
            votes[subject] += amount
        assert totals_of(servers.url, "vote") == dict(votes)


def evening(operator: Operator, load: Load, servers: Watched, start: Callable[..., EmbeddedServer]) -> None:
    """Do what the operator does, and prove the counters after each step."""
    snapshot = str(operator.folder / "tally.sqlite")
    load.go_on()
    operator.prove("the start")

    operator.declare(windows=["hour", "day"], limit=30)
    load.go_on()
    operator.prove("a window was added")

    operator.declare(windows=["hour", "day"], limit=60)
    load.go_on()
    operator.run("rebuild")  # who was refused before is counted now
    operator.run("rebuild", "--drop")
    operator.prove("the limit was raised")

    load.bot_is_there = False
    load.go_on()
    operator.run("retract", "--actor", BOT)
    operator.run("rebuild", "--drop")
    operator.prove("an actor was retracted")

    operator.run("snapshot", snapshot, "--once")
    shutil.copy(snapshot, f"{snapshot}.yesterday")
    load.go_on()
    operator.prove("a snapshot")

    servers.fail_over()
    start(port=0, extra=["--replicaof", "127.0.0.1", port_of(servers.replica)])  # the load waits for a replica
    load.go_on()
    operator.prove("a failover")

    operator.run("rebuild")
    operator.run("rebuild", "--drop")
    load.go_on()
    operator.prove("a rebuild")

    operator.run("restore", f"{snapshot}.yesterday", "--force")
    load.go_on()
    operator.prove("yesterday's snapshot was restored")
