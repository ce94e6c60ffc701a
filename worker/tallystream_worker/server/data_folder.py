"""The data folder of an embedded server: one process owns it, and no server of an earlier owner runs in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from pathlib import Path
from typing import IO, Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tallystream_worker.server.errors import EmbeddedServerError

MAX_SOCKET_PATH: Final = 100
"""Bytes that fit into a unix socket address everywhere: macOS has room for 104, Linux for 108."""

_POLL: Final = 0.005


class DataFolder:
    """A folder with a server's data, log, socket and locks; created when missing.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._locks = contextlib.ExitStack()  # the folder is ours while this holds something

    def release(self) -> None:
        """Let another process own the folder."""
        self._locks.close()

    def claim(self, stop_timeout: float) -> IO[str]:
        """Own the folder, and end the server that a killed owner may have left in it.

        Args:
            stop_timeout: Seconds that such a server has to flush its log and exit.

        Returns:
            The locked file that the new server is to inherit.

        Raises:
            EmbeddedServerError: another process owns it, or it cannot be used.
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
                "stop that one first, or name another folder",
            )
        owner.truncate(0)
        owner.write(str(os.getpid()))
        owner.flush()
        # The server holds a lock of its own by an inherited descriptor. So the kernel tells whether one is
        # alive, whoever started it; a process ID could have been given to someone else meanwhile.
        if not _lock(alive.fileno()):
            self._shut_down_orphan(alive.fileno(), stop_timeout)
        return alive

    def new_socket(self) -> Path:
        """Return where the socket goes: into the folder, or a short private one if that path is too long."""
        path = self.path / "server.sock"
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            path = Path(tempfile.mkdtemp(prefix="tally-")) / path.name
        return path

    def remove_socket(self, path: Path) -> None:
        """Remove a socket, and the private folder that was made for it."""
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            if path.parent != self.path:
                path.parent.rmdir()  # never rmtree: the path may come from a file, and an empty folder is no loss

    def _shut_down_orphan(self, lock: int, timeout: float) -> None:
        """Stop the server whose parent was killed: a fresh one starts from the same data, with our arguments.

        Reusing it would be quicker, but it may run another binary or other arguments than were asked for.
        """
        address = self.path / "server.address"
        path = Path(address.read_text()) if address.exists() else self.path / "server.sock"
        with contextlib.suppress(RedisError), client_of(path, timeout) as client:
            client.shutdown()
        deadline = time.monotonic() + timeout
        while not _lock(lock):
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"a server that an earlier run left behind still uses {self.path} and does not stop: "
                    f"end the process that `fuser {self.path / 'server.lock'}` names, and try again",
                )
            time.sleep(_POLL)
        self.remove_socket(path)


def client_of(path: Path, timeout: float) -> Redis:
    """Return a client of the server behind a socket; it tries nothing twice."""
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
