"""Real processes within milliseconds: a process that has imported everything forks the ones that are asked for.

A worker that starts from nothing spends a second on imports; a run of thousands of scenarios would be imports. The
fork_server is one thread without a connection, so its children are what a fresh process would be: own PID, own memory,
own sockets, to be killed, stopped and continued. It is their parent and reaps them, so a PID is theirs until
somebody has asked for its status. When the connection to it ends, it kills what is left and ends.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path

TARGETS = ("tests.faults.processes", "tests.faults.steady")
"""Modules whose functions may be asked for; imported before the first fork."""

_POLL = 0.004


class Child:
    """A process that the fork_server forked."""

    def __init__(self, fork_server: ForkServer, pid: int, name: str, output: Path) -> None:
        self.pid = pid
        self.name = name
        self.output = output
        self._fork_server = fork_server
        self._status: int | None = None

    @property
    def status(self) -> int | None:
        """Its exit status, minus the signal's number where one killed it; `None` while it lives."""
        if self._status is None:
            self._status = self._fork_server.ask({"wait": self.pid})["status"]
        return self._status

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.status is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float) -> int | None:
        """Return its status once it has ended, `None` after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.status is None and time.monotonic() < deadline:
            time.sleep(_POLL)
        return self.status

    def said(self) -> str:
        """Return what it wrote to its standard streams so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""


class ForkServer:
    """The parent of forked processes; safe across threads."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.fork_server", str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        self._socket = ours
        self._stream = ours.makefile("rw")
        self._lock = threading.Lock()

    def fork(self, function: str, arguments: dict[str, Any], output: Path, environment: dict[str, str]) -> Child:
        """Start a process that runs a function of one of the target modules and ends with what it returns."""
        asked = {"fork": function, "arguments": arguments, "output": str(output), "environment": environment}
        return Child(self, self.ask(asked)["pid"], output.stem, output)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request; return the answer."""
        with self._lock:
            self._stream.write(json.dumps(request) + "\n")
            self._stream.flush()
            answer: dict[str, Any] = json.loads(self._stream.readline())
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._socket.close()
        self._process.wait(30)


def serve(descriptor: int) -> None:
    """Fork and reap as asked, until the other side is gone."""
    modules = [importlib.import_module(name) for name in TARGETS]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the runner's: it decides what becomes of the children
    # Children begin with SIGTERM held back, and let it in once somebody listens: see processes.listening.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    alive: set[int] = set()
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rw") as stream:
        for line in stream:
            request = json.loads(line)
            if "fork" in request:
                pid = os.fork()
                if pid == 0:
                    os.close(connection.fileno())
                    _become(modules, request)
                alive.add(pid)
                answer = {"pid": pid}
            else:
                answer = {"status": _reap(request["wait"], alive)}
            stream.write(json.dumps(answer) + "\n")
            stream.flush()
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _reap(pid: int, alive: set[int]) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    if ended == 0:
        return None
    alive.discard(pid)
    return os.waitstatus_to_exitcode(status)


def _become(modules: list[Any], request: dict[str, Any]) -> None:
    """Be the process that was asked for; does not return."""
    status = 70
    try:
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for standard in (1, 2):
            os.dup2(output, standard)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.environ.update(request["environment"])
        function = next(found for module in modules if (found := getattr(module, request["fork"], None)))
        status = function(**request["arguments"])
    except BaseException:  # noqa: BLE001  # whatever it is, it must be said before the process ends
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
