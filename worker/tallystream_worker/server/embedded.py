"""The embedded server: a real Valkey or Redis that this process starts, with its data in one folder."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from typing import IO, TYPE_CHECKING, Final, Self
from urllib.parse import quote

from redis.exceptions import BusyLoadingError, RedisError

from tallystream_worker.server.binary import find_binary
from tallystream_worker.server.data_folder import DataFolder, client_of
from tallystream_worker.server.errors import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from redis import Redis

START_TIMEOUT: Final = 30.0
"""Seconds of silence after which a starting server is given up; LOADING is not silence."""

STOP_TIMEOUT: Final = 10.0
"""Seconds that a server has to flush its log and exit before it is killed."""

LOG_TAIL: Final = 10
"""Lines of the server's log that an error quotes."""

_POLL: Final = 0.005


class EmbeddedServer:
    """A server of our own: started, waited for, and stopped with this process; what it holds survives it.

    Only this machine can reach it: by a unix socket that only its user may open, and by a loopback port
    when one is asked for. Its log of writes is flushed to disk once a second (`appendfsync everysec`).

    Args:
        data: Folder that keeps the server's data, log and lock; created when missing. One server at a time.
        port: `None` for the unix socket only, or a TCP port on 127.0.0.1 besides; 0 picks a free one.
            Any user of this machine can connect to a port; only the server's own user to the socket.
        extra: Further arguments of the server, which win over ours: `["--appendfsync", "always"]`.
        binary: The server program; found by `find_binary` when not given.

    After `kill()` and another `start()` the URL is still the same, so clients find the server again.
    """

    def __init__(
        self,
        data: Path,
        *,
        port: int | None = None,
        extra: Sequence[str] = (),
        binary: Path | None = None,
    ) -> None:
        self.data = data.resolve()
        self._port = port
        self._extra = tuple(extra)
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: Path | None = None
        self._folder = DataFolder(self.data)

    @property
    def url(self) -> str:
        """Where clients connect: `redis://127.0.0.1:PORT` when a port was asked for, else `unix:///PATH`."""
        if self._port:
            return f"redis://127.0.0.1:{self._port}"
        if self._socket is None:
            raise EmbeddedServerError("the embedded server has no address before it is started")
        return f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int:
        """The process ID of the running server."""
        if self._process is None:
            raise EmbeddedServerError("the embedded server is not running")
        return self._process.pid

    @property
    def log(self) -> Path:
        """The file that the server writes its log to."""
        return self.data / "server.log"

    def start(self) -> Self:
        """Start the server and return once it answers.

        Raises:
            EmbeddedServerError: another process uses the folder, there is no server program, or the
                server exits or stays silent; then the last lines of its log are in the message.
        """
        if self._process is not None:
            raise EmbeddedServerError("the embedded server is already running")
        binary = self._binary or find_binary()
        with contextlib.ExitStack() as undo:
            # On any way out but the last line, the process is gone and the folder is free again.
            undo.callback(self.kill)
            undo.callback(self._forget_socket)
            alive = self._folder.claim(STOP_TIMEOUT)
            if self._port == 0:
                self._port = _free_port()
            if self._socket is None:
                self._socket = self._folder.new_socket()
            log_start = self.log.stat().st_size if self.log.exists() else 0
            self._process = self._spawn(binary, self._socket, alive)
            self._await_answer(self._process, self._socket, log_start)
            undo.pop_all()
        return self

    def stop(self) -> None:
        """Let the server flush its log and exit, kill it if it has not within 10 s; stopped is fine, too."""
        if self._process is not None:
            # SIGTERM is SHUTDOWN without a connection: no password and no full client list stands in its way.
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT)
        self.kill()
        self._forget_socket()

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would; `start()` brings it back at the same URL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._folder.release()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _spawn(self, binary: Path, socket_path: Path, alive: IO[str]) -> subprocess.Popen[bytes]:
        # Written before the server exists: however early we are killed, the next start finds the orphan.
        (self.data / "server.address").write_text(str(socket_path))
        arguments = [
            *("--port", str(self._port or 0), "--bind", "127.0.0.1"),
            *("--unixsocket", str(socket_path), "--unixsocketperm", "700"),
            *("--dir", str(self.data), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *self._extra,
        ]
        with alive, self.log.open("ab") as log:
            try:
                return subprocess.Popen(  # noqa: S603  # the program is the one that the operator chose
                    [str(binary), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,  # not --logfile: a complaint about an argument goes to the standard streams
                    stderr=subprocess.STDOUT,
                    pass_fds=[alive.fileno()],
                    # Ctrl-C must not reach the server before the workers have drained into it.
                    start_new_session=True,
                )
            except OSError as error:
                raise EmbeddedServerError(f"cannot run {binary}: {error.strerror}") from error

    def _await_answer(self, process: subprocess.Popen[bytes], socket_path: Path, log_start: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        with client_of(socket_path, START_TIMEOUT) as client:
            while True:
                try:
                    client.ping()
                except BusyLoadingError:
                    deadline = time.monotonic() + START_TIMEOUT  # alive, with a long log to read
                except RedisError:
                    pass
                else:
                    self._mend_log(client, log_start)
                    return
                if (status := process.poll()) is not None:
                    raise EmbeddedServerError(
                        f"the embedded server exited with status {status}:\n{self._tail(log_start)}"
                    )
                if time.monotonic() > deadline:
                    raise EmbeddedServerError(
                        f"the embedded server was silent for {START_TIMEOUT:.0f} s:\n{self._tail(log_start)}",
                    )
                time.sleep(_POLL)

    def _mend_log(self, client: Redis, log_start: int) -> None:
        """Begin a new log of writes where the old one ended in mid-command.

        What was in memory is right: half a transaction is not taken in. But Redis 7 leaves its front in the log, and
        appends to it: at the next start, whatever follows would be taken for the rest of it.
        """
        if "aof-load-truncated" not in self._said(log_start):
            return
        client.bgrewriteaof()
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            state = client.info("persistence")
            if not state["aof_rewrite_in_progress"] and not state["aof_rewrite_scheduled"]:
                return
            time.sleep(_POLL)

    def _said(self, start: int) -> str:
        with self.log.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")

    def _tail(self, start: int) -> str:
        lines = self._said(start).splitlines()
        return "\n".join(f"    {line}" for line in lines[-LOG_TAIL:]) + f"\n(from {self.log})"

    def _forget_socket(self) -> None:
        if self._socket is not None:
            self._folder.remove_socket(self._socket)
            self._socket = None


def _free_port() -> int:
    # Someone may take it before the server does; then the server exits and its log says so.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
