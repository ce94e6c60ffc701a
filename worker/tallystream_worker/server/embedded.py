"""The embedded server: a real Valkey or Redis that this process starts, with its data in one folder."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from typing import IO, TYPE_CHECKING, Final, Self
from urllib.parse import quote

from redis.exceptions import BusyLoadingError, RedisError

from tallystream.client.error_text import text_of
from tallystream_worker.server.binary import find_binary
from tallystream_worker.server.data_folder import DataFolder, client_of
from tallystream_worker.server.errors import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from redis import Redis

START_TIMEOUT: Final = 30.0
"""Seconds without a reply after which a starting server is given up; a LOADING reply restarts the time."""

STOP_TIMEOUT: Final = 10.0
"""Seconds that a server has to flush its data to disk and exit before it is killed."""

LOG_TAIL: Final = 10
"""Lines of the server's log file that an error message quotes."""

_END_TIMEOUT: Final = 1.0
"""Seconds in which a process ends after its connections have failed, if it ends at all."""

_POLL: Final = 0.005


class EmbeddedServer:
    """A Valkey or Redis server that this process starts and stops; its data stays in a folder.

    It is started by `start`, or at the beginning of its context, whose end calls `stop`.

    Unless `extra` changes it, only this machine can reach the server: by a Unix socket that only the user of the
    process can open, and by a port on the loopback address if one is given. The append-only file is flushed to disk
    once a second (`appendfsync everysec`).

    Args:
        data: Folder for the data, log file and lock of the server; created if missing. One server at a time uses it.
        port: `None` for the Unix socket only, or also a TCP port on 127.0.0.1; 0 picks a free port.
            Every user of this machine can connect to a port.
        extra: More arguments of the server, which override the default ones: `["--appendfsync", "always"]`.
        binary: The server program; default: the one that `find_binary` returns.
        is_scratch: Whether the data is of no use after this process: if it ends without `stop` or `kill`, the server is
            killed too, and the folder is removed (`stop` and `kill` leave it). Without `is_scratch`, the server then
            runs on, and the next start in the folder first shuts it down.

    After `kill()` and another `start()` the URL is the same, so clients find the server again.
    """

    def __init__(
        self,
        data: Path,
        *,
        port: int | None = None,
        extra: Sequence[str] = (),
        binary: Path | None = None,
        is_scratch: bool = False,
    ) -> None:
        self.data = data.resolve()
        """Absolute path of the data folder."""
        self._port = port
        self._extra = tuple(extra)
        self._binary = binary
        self._is_scratch = is_scratch
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None
        self._socket: Path | None = None
        self._folder = DataFolder(self.data)

    @property
    def url(self) -> str:
        """The URL for clients: `redis://127.0.0.1:PORT` if a port was given, else `unix:///PATH`.

        Raises:
            EmbeddedServerError: there is no address: without a port, before `start` and after `stop`; with port 0,
                before the first `start`. With a port, the URL is returned even if the server does not run.
        """
        if self._port:
            return f"redis://127.0.0.1:{self._port}"
        if self._socket is None:
            raise EmbeddedServerError("the embedded server has no address before it is started")
        return f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int:
        """The process ID of the started server; also after that process ended by itself.

        Raises:
            EmbeddedServerError: the server was not started, or was stopped or killed.
        """
        if self._process is None:
            raise EmbeddedServerError("the embedded server is not running")
        return self._process.pid

    @property
    def log(self) -> Path:
        """Path of the server's log file."""
        return self.data / "server.log"

    def start(self) -> Self:
        """Start the server, wait until it replies to PING, and return this object.

        A server that a killed process left in the folder is shut down first. If the start fails, the new server is
        ended and the folder is released.

        Raises:
            EmbeddedServerError: this object has started a server before, and neither `stop` nor `kill` was called since
                (nothing changes then); the folder is in use, cannot be used, or an earlier server in it does not stop;
                no server program is installed or can be run; the server exits, or does not reply for 30 s (reading its
                data excepted); or it found its append-only file truncated, and refused to rewrite it. For the last
                three the message quotes its log file.
            OSError: a file of the folder cannot be written or read, or its socket needs a temporary folder that cannot
                be made.
        """
        if self._process is not None:
            raise EmbeddedServerError("the embedded server is already running")
        binary = self._binary or find_binary()
        with contextlib.ExitStack() as undo:
            # If anything below raises, the process is ended and the folder is released.
            undo.callback(self.kill)
            undo.callback(self._forget_socket)
            alive = self._folder.claim(STOP_TIMEOUT)
            if self._port == 0:
                self._port = _free_port()
            if self._socket is None:
                self._socket = self._folder.new_socket()
            log_start = self.log.stat().st_size if self.log.exists() else 0
            self._process = self._spawn(binary, self._socket, alive)
            if self._is_scratch:
                self._watch = _watch(self._process.pid, self.data)
            self._await_answer(self._process, self._socket, log_start)
            undo.pop_all()
        return self

    def ensure_running(self) -> None:
        """Raise an `EmbeddedServerError` that quotes the log file if the started server has ended by itself.

        Call it after a connection to the server has failed: it waits up to 1 second for the end.
        """
        if self._process is None:
            return
        try:
            status = self._process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            return
        raise EmbeddedServerError(
            f"the embedded server has ended with status {status}. If the system has killed it because memory is short, "
            f"free memory; then run the command again. The end of its log:\n{self._tail(0)}"
        )

    def stop(self) -> None:
        """Stop the server if it runs: it flushes its data to disk and exits; after 10 s it is killed.

        Waits for the end, removes the socket, and releases the folder.
        """
        if self._process is not None:
            self._unwatch()
            # SIGTERM is a SHUTDOWN that needs no connection, so a password or a full client list cannot prevent it.
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT)
        self.kill()
        self._forget_socket()

    def kill(self) -> None:
        """End the server with SIGKILL if it runs, as a crash would, and release the folder.

        `start()` starts the server again at the same URL.
        """
        if self._process is not None:
            self._process.kill()
            self._unwatch()  # before the wait: until then, no other process can get the server's PID
            self._process.wait()
            self._process = None
        self._folder.release()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.kill()
            self._watch.communicate()
            self._watch = None

    def _spawn(self, binary: Path, socket_path: Path, alive: IO[str]) -> subprocess.Popen[bytes]:
        # Written before the server starts, so that the next start finds the server even if this process is killed.
        self._folder.write_address(socket_path)
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
                    stdout=log,  # not --logfile: errors in arguments go to the standard streams
                    stderr=subprocess.STDOUT,
                    pass_fds=[alive.fileno()],
                    # Ctrl-C must not stop the server before the workers have applied their last batches.
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
                    deadline = time.monotonic() + START_TIMEOUT  # it is reading a long append-only file
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
                        f"the embedded server did not reply for {START_TIMEOUT:.0f} s:\n{self._tail(log_start)}",
                    )
                time.sleep(_POLL)

    def _mend_log(self, client: Redis, log_start: int) -> None:
        """Rewrite the append-only file if the server found it truncated, and wait until that is done, at most 30 s.

        After 30 s, return without an error. Without the rewrite, Redis 7 would keep the beginning of an incomplete
        transaction in the file, and read later commands as the rest of it at the next start.

        Raises:
            EmbeddedServerError: the server refused to rewrite the file, or has ended.
        """
        if "aof-load-truncated" not in self._said(log_start):
            return
        try:
            client.bgrewriteaof()
            deadline = time.monotonic() + START_TIMEOUT
            while time.monotonic() < deadline:
                state = client.info("persistence")
                if not state["aof_rewrite_in_progress"] and not state["aof_rewrite_scheduled"]:
                    return
                time.sleep(_POLL)
        except RedisError as error:
            raise EmbeddedServerError(
                f"the append-only file in {self.data} has an incomplete end, and the embedded server could not write "
                f"it again: {text_of(error)}. Start again:\n{self._tail(log_start)}"
            ) from error

    def _said(self, start: int) -> str:
        with self.log.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")

    def _tail(self, start: int) -> str:
        lines = self._said(start).splitlines()
        place = "" if self._is_scratch else f"\n(from {self.log})"  # a scratch folder is removed
        return "\n".join(f"    {line}" for line in lines[-LOG_TAIL:]) + place

    def _forget_socket(self) -> None:
        if self._socket is not None:
            self._folder.remove_socket(self._socket)
            self._socket = None


def _watch(pid: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start a shell that kills a server, and removes its folder, when this process ends in any way; return the shell.

    The shell waits for the end of a pipe that this process, and any process forked from it, holds open.
    """
    script = 'read -r line; kill -KILL "$1"; rm -rf "$2"'
    return subprocess.Popen(  # noqa: S603
        ["/bin/sh", "-c", script, "tally-watch", str(pid), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _free_port() -> int:
    # Another process may take the port before the server does; then the server exits, and the error quotes its log.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
