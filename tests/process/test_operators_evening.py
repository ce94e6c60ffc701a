"""An evening of an operator: rules change, a server dies, counters are rebuilt and restored, and no count is wrong.

A load emits all the time and counts its own events. After each step, `tallystream verify` must find nothing. At the
end, the totals are those of the load.
"""

from __future__ import annotations

import contextlib
import json
import os
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
from tallystream.producing.producer import Producer
from tallystream.reading.totals import Totals
from tests.secured import free_port
from tests.sentinel import port_of, watched
from tests.waiting import until

if TYPE_CHECKING:
    from tests.sentinel import Watched

PROGRAM = str(Path(sys.executable).with_name("tallystream"))
SUBJECTS = [f"article:{number}" for number in range(6)]
BOT = "bot:7"
VOTERS = [f"user:{number}" for number in range(5)]
PAUSE = 0.1
"""Seconds between two rounds of 8 or 9 events: less than 90 events a second."""

LIMITS = (20, 40)
"""The limit of `call` before and after the operator raises it; the load makes more calls for each subject."""


class Load:
    """Emits views, votes and limited calls until it is stopped, and counts all but the views of a bot."""

    def __init__(self, url: str) -> None:
        self._producer = Producer(url, durability="replica")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._emit, name="load")
        self.views: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.votes: dict[tuple[str, str], int] = {}
        self.has_bot = True
        self.rounds = 0

    def _emit(self) -> None:
        while not self._stopping.wait(PAUSE):
            voter = VOTERS[self.rounds % len(VOTERS)]
            for subject in SUBJECTS:
                self._producer.emit("view", subject, actor=voter)
                self.views[subject] += 1
            subject = SUBJECTS[self.rounds % len(SUBJECTS)]
            if self.has_bot:
                self._producer.emit("view", subject, actor=BOT)
            self.votes[subject, voter] = 1 if self.rounds % 3 else -1
            self._producer.emit("vote", subject, self.votes[subject, voter], actor=voter)
            self._producer.emit("call", subject)
            self.calls[subject] += 1
            self.rounds += 1

    def go_on(self, rounds: int = 10) -> None:
        """Wait until more rounds are emitted and counted."""
        wanted = self.rounds + rounds
        until(lambda: self.rounds >= wanted, timeout=60, what=f"{rounds} rounds of events")
        self._producer.flush(60, wait="counted")

    def finish(self) -> None:
        """Stop, and wait until every event is counted."""
        self._stopping.set()
        self._thread.join()
        self._producer.flush(60, wait="counted")

    def totals(self) -> dict[str, dict[str, int]]:
        """Return the right totals of each metric, by subject."""
        votes: Counter[str] = Counter(dict.fromkeys(SUBJECTS, 0))
        for (subject, _), amount in self.votes.items():
            votes[subject] += amount
        calls = {subject: min(LIMITS[1], self.calls[subject]) for subject in SUBJECTS}
        return {"view": dict(self.views), "vote": dict(votes), "call": calls}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._producer.close()


class Operator:
    """Runs commands with a configuration file, and keeps two workers running.

    Args:
        url: The URL of the server.
        folder: The folder of the configuration, the archive and the snapshot.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._file = folder / "tallystream.toml"
        given = {name: value for name, value in os.environ.items() if not name.startswith("TALLYSTREAM_")}
        self._environment = given | {"TALLYSTREAM_REDIS_URL": url}
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self.folder = folder

    def declare(self, *, windows: list[str], limit: int) -> None:
        """Write the configuration, and restart the workers one after the other."""
        self._file.write_text(
            f'[archive]\nurl = "{self.folder / "archive"}"\nevery = 2.0\n'
            f"[metric.view]\nwindows = {json.dumps(windows)}\nunique = 'day'\ntop = 20\n"
            f"[metric.vote]\nonce = 'forever'\n[metric.call]\nlimit = {limit}\nper = 'total'\n"
        )
        for name in ("one", "two"):
            self.stop_worker(name)
            self.start_worker(name)

    def start_worker(self, name: str) -> None:
        """Start a worker, and wait until it counts."""
        port = free_port()
        command = [PROGRAM, "worker", "--name", name, "--metrics-port", str(port), "--config", str(self._file)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._workers[name] = subprocess.Popen(command, env=self._environment, stderr=log)
        until(partial(_is_ready, port), timeout=60, interval=0.05, what=f"worker {name}")

    def stop_worker(self, name: str) -> None:
        """Stop a worker if it runs; its exit status must be 0."""
        if worker := self._workers.pop(name, None):
            worker.terminate()
            assert worker.wait(30) == 0

    def run(self, *command: str, allowed: tuple[int, ...] = (0,)) -> dict[str, Any]:
        """Run a command to its end, and return its JSON; its exit status must be an allowed one."""
        done = subprocess.run(
            [PROGRAM, *command, "--json", "--config", str(self._file)],
            env=self._environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode in allowed, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def prove(self) -> None:
        """Check that `verify` finds nothing, could make every check, and compared counters."""
        found = self.run("verify", allowed=(0, 1))
        assert (found["findings"], found["not_checked"]) == ([], [])  # the message of pytest has the findings
        assert {"log", "accounts", "counters", "leaderboards"} <= {each["check"] for each in found["proved"]}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.terminate()
            worker.wait(30)


def _is_ready(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
        return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_count_is_right_after_an_evening_of_changes(fresh_server, tmp_path):
    """Rules change, an actor is retracted, a replica takes over, counters are rebuilt and restored: none is wrong."""
    with watched(fresh_server, tmp_path, patience=5) as servers, Operator(servers.url, tmp_path) as operator:
        operator.declare(windows=["day"], limit=LIMITS[0])
        with Load(servers.url) as load:
            evening(operator, load, servers)
            load.finish()
            operator.prove()
        with Totals(servers.url) as totals:
            found = {
                metric: {subject: totals.get(subject, metric).value for subject in SUBJECTS} for metric in load.totals()
            }
    assert found == load.totals()
    assert min(load.calls.values()) > LIMITS[0]


def evening(operator: Operator, load: Load, servers: Watched) -> None:
    """Do what the operator does, and prove the counters after each step."""
    load.go_on()
    operator.prove()

    operator.declare(windows=["hour", "day"], limit=LIMITS[0])  # a window is added
    load.go_on()
    operator.prove()

    until(lambda: min(load.calls.values()) > LIMITS[0], timeout=60, what="calls above the limit")
    operator.declare(windows=["hour", "day"], limit=LIMITS[1])  # a limit is raised
    operator.run("rebuild")  # it counts what the lower limit rejected, and fills the hours before the window was added
    operator.run("rebuild", "--drop")
    load.go_on()
    operator.prove()

    load.has_bot = False
    load.go_on()
    operator.run("retract", "--actor", BOT)
    operator.run("rebuild", "--drop")
    load.go_on()
    operator.prove()

    snapshot = operator.folder / "tally.sqlite"
    operator.run("snapshot", str(snapshot), "--once")
    load.go_on()
    operator.run("drill", str(snapshot))
    operator.prove()

    servers.fail_over()
    servers.primary.start()
    with contextlib.closing(connect(servers.primary.url)) as client:  # the load waits for a replica
        client.execute_command("REPLICAOF", "127.0.0.1", port_of(servers.replica))
    load.go_on()
    operator.prove()

    operator.run("rebuild")
    operator.run("rebuild", "--drop")
    load.go_on()
    operator.prove()

    for name in ("one", "two"):
        operator.stop_worker(name)
    operator.run("restore", str(snapshot), "--force")
    for name in ("one", "two"):
        operator.start_worker(name)
    load.go_on()
    operator.prove()
