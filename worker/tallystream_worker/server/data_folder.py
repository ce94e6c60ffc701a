"""The data folder of an embedded server: locks ensure that one process owns the folder, and one server runs in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from pathlib import Path
from typing import IO, Final
from urllib.parse import unquote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tallystream_worker.server.errors import EmbeddedServerError

SNAPSHOT: Final = "snapshot.sqlite"
"""Name of the file in the data folder in which `tallystream up` keeps its snapshot."""

_SOCKET: Final = "server.sock"

_ADDRESS: Final = "server.address"
"""Name of the file in the data folder that contains the path of the server's socket."""

MAX_SOCKET_PATH: Final = 100
"""Length in bytes that a Unix socket path may have on every system: macOS allows 104, Linux 108."""

_POLL: Final = 0.005


class DataFolder:
    """A folder with the data, log file and locks of an embedded server; `claim` creates it if it is missing.

    Call `claim` before a server is started in the folder, and `release` after it has ended. The socket of the server is
    in the folder too, unless its path would be too long: see `new_socket`.

    Args:
        path: Path of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        """Path of the folder."""
        self._locks = contextlib.ExitStack()  # the open lock files; this process owns the folder while they are open

    def release(self) -> None:
        """Release this object's locks on the folder, so that another one can claim it; do nothing if not claimed.

        A server that still runs keeps its own lock: the next `claim` shuts it down.
        """
        self._locks.close()

    def claim(self, stop_timeout: float) -> IO[str]:
        """Create the folder if it is missing, lock it for this object, and shut down a server that still runs in it.

        Such a server was left by an owner that was killed. Blocks until that server has exited, at most about twice
        `stop_timeout`. After an error, call `release`.

        Args:
            stop_timeout: Seconds to wait for the reply to SHUTDOWN, and then again until the left server has exited.

        Returns:
            The open, locked file that the new server must inherit, so that the lock lasts as long as the server.

        Raises:
            EmbeddedServerError: another object, of this process or another one, has the lock; the folder cannot be
                used; or the left server does not stop.
            OSError: a lock cannot be taken, or the process ID or the address of the left server cannot be written or
                read.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = self._locks.enter_context((self.path / "owner.lock").open("a+"))
            alive = self._locks.enter_context((self.path / "server.lock").open("a"))
        except OSError as error:
            raise EmbeddedServerError(
                f"cannot use the data folder {self.path}: {error.strerror}; name another"
            ) from error
        if not _lock(owner.fileno()):
            owner.seek(0)
            raise EmbeddedServerError(
                f"the data folder {self.path} is in use by process {owner.read() or 'unknown'}: "
                "stop that process first, or name another folder",
            )
        owner.truncate(0)
        owner.write(str(os.getpid()))
        owner.flush()
        # The server has its own lock, by an inherited descriptor. So the kernel knows whether a server is alive,
        # independent of the process that started it. A process ID could belong to another process meanwhile.
        if not _lock(alive.fileno()):
            self._shut_down_orphan(alive.fileno(), stop_timeout)
        return alive

    def new_socket(self) -> Path:
        """Return a path for a new socket: in the folder, or in a new temporary folder if that path would be too long.

        The temporary folder is created, readable by this user only; the socket is not created.

        Raises:
            OSError: the temporary folder cannot be created.
        """
        path = self.path / _SOCKET
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            path = Path(tempfile.mkdtemp(prefix="tally-")) / path.name
        return path

    def write_address(self, path: Path) -> None:
        """Store the path of the server's socket, so that the next start finds a server that still runs.

        Raises:
            OSError: the file with the path cannot be written.
        """
        (self.path / _ADDRESS).write_text(str(path))

    def remove_socket(self, path: Path) -> None:
        """Remove a socket, and its folder if that is not the data folder and is empty then; ignore an `OSError`."""
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            if path.parent != self.path:
                path.parent.rmdir()  # never rmtree: the path may come from a file

    def _shut_down_orphan(self, lock: int, timeout: float) -> None:
        """Shut down the server whose parent was killed, wait until it has exited, and remove its socket.

        The server is not reused, because it may run another program or other arguments than the new start asks for.

        Args:
            lock: Descriptor of the file `server.lock`, which the server has locked; it is locked at the end.
            timeout: Seconds to wait for the reply to SHUTDOWN, and then again for the exit.

        Raises:
            EmbeddedServerError: the server did not exit within `timeout` seconds; it still runs.
        """
        address = self.path / _ADDRESS
        path = Path(address.read_text()) if address.exists() else self.path / _SOCKET
        with contextlib.suppress(RedisError), client_of(path, timeout) as client:
            client.shutdown()
        deadline = time.monotonic() + timeout
        while not _lock(lock):
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"the server of an earlier run still uses {self.path} and does not stop: "
                    f"end the process that `fuser {self.path / 'server.lock'}` prints, and try again",
                )
            time.sleep(_POLL)
        self.remove_socket(path)


def snapshot_of(url: str) -> str:
    """Return the path of the snapshot that `tallystream up` takes of the server at a URL; `""` if none is found.

    It is the path of `SNAPSHOT`, in the folder of the server's socket, if this folder has a snapshot. If it has only
    that of another namespace, in `snapshot.NAMESPACE.sqlite`, the returned file does not exist. None is found if the
    URL does not name the socket of a `DataFolder`, or if the path of that folder is so long that the socket is in
    another folder.
    """
    path = Path(unquote(url.removeprefix("unix://").partition("?")[0]))
    if not url.startswith("unix://") or path.name != _SOCKET or not (path.parent / _ADDRESS).is_file():
        return ""
    stem, _, suffix = SNAPSHOT.partition(".")
    return str(path.parent / SNAPSHOT) if any(path.parent.glob(f"{stem}*.{suffix}")) else ""


def client_of(path: Path, timeout: float) -> Redis:
    """Return a Redis client for a Unix socket, without retries and with a socket timeout in seconds."""
    return Redis(
        unix_socket_path=str(path),
        protocol=3,
        legacy_responses=False,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout,
    )


def _lock(descriptor: int) -> bool:
    """Lock an open file until every copy of its descriptor is closed; return whether it is locked now.

    Does not wait: returns `False` if the same file, opened another time, has the lock.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
