"""A fork server, which starts real processes within milliseconds: it has imported everything, and forks on request.

A new worker process spends a second on imports, which is too long for a run of thousands of scenarios. The fork server
has one thread and no connection to a server, so its children are like fresh processes: each has its own PID, memory and
sockets, and can be killed, stopped and continued. The fork server is their parent. It reaps a child only when asked for
its status, so a PID is not reused before. When its connection to the runner ends, it kills the remaining children and
ends.
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
"""The modules whose functions a child can run; they are imported before the first fork."""

_POLL = 0.004


class Child:
    """A process that was started by the fork server."""

    def __init__(self, fork_server: ForkServer, pid: int, name: str, output: Path) -> None:
        self.pid = pid
        self.name = name
        self.output = output
        self._fork_server = fork_server
        self._status: int | None = None

    @property
    def status(self) -> int | None:
        """The exit status of the process, negative if a signal of this number killed it; `None` while it runs."""
        if self._status is None:
            self._status = self._fork_server.ask({"wait": self.pid})["status"]
        return self._status

    def signal(self, number: int) -> None:
        """Send a signal to the process, unless it has ended."""
        if self.status is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float) -> int | None:
        """Wait at most `timeout` seconds for the end of the process; return its exit status, or `None` if it runs."""
        deadline = time.monotonic() + timeout
        while self.status is None and time.monotonic() < deadline:
            time.sleep(_POLL)
        return self.status

    def said(self) -> str:
        """Return all that the process has written to standard output and standard error so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""


class ForkServer:
    """The client of a fork server process; a context manager that ends it. Safe to use from several threads."""

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
        """Start a process that calls a function of one of the target modules and exits with the status it returns.

        The process writes its standard streams to the file `output`, and gets the variables of `environment` in
        addition.
        """
        asked = {"fork": function, "arguments": arguments, "output": str(output), "environment": environment}
        return Child(self, self.ask(asked)["pid"], output.stem, output)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request to the fork server as JSON and return its answer."""
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
    """Run the fork server: fork and reap children on request until the connection ends, then kill the rest.

    `descriptor` is the file descriptor of the connection's socket.
    """
    modules = [importlib.import_module(name) for name in TARGETS]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the runner handles Ctrl-C, and then ends the children
    # Children start with SIGTERM blocked, and unblock it when they can handle it: see processes.listening.
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
    """Run the requested function in this forked process, then exit; does not return."""
    status = 70
    try:
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for standard in (1, 2):
            os.dup2(output, standard)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.environ.update(request["environment"])
        function = next(found for module in modules if (found := getattr(module, request["fork"], None)))
        status = function(**request["arguments"])
    except BaseException:  # noqa: BLE001  # print every exception before the process ends
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
