"""Programs and servers whose wall clock a test sets while they run: libfaketime reads its offset from a file."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Self

from redis import Redis

from tallystream.client.server_time import server_time
from tallystream_worker.server.binary import find_binary
from tallystream_worker.server.embedded import EmbeddedServer
from tests.servers import missing
from tests.waiting import until

_CLOSE = 0.5
KINDS = ("valkey", "redis")
"""The kinds of server with a clock that a test can set."""


def faketime() -> Path | None:
    """Return the path of libfaketime, which changes the clock of a process, or `None` if it is not installed."""
    return next(Path("/usr/lib").glob("**/faketime/libfaketime.so.1"), None)


def with_clock(binary: Path, folder: Path, clock: Path) -> Path:
    """Return the path of a program that runs `binary` with its wall clock shifted as the file `clock` states.

    The file has an offset such as `-3000` (seconds) or `+31d`; a change takes effect at once. The monotonic clock is
    not shifted.
    """
    library = faketime()
    # The library for threads: in the other one, two threads that read the clock at once may read a wrong time. The C
    # library comes first as well, so that its malloc is used: jemalloc reads the clock while it starts, and libfaketime
    # allocates while it starts, so each would wait for the other.
    preload = f"{library.with_name('libfaketimeMT.so.1')}:libc.so.6" if library else ""
    program = folder / f"{binary.name}-with-clock"
    program.write_text(
        f"#!/bin/sh\nLD_PRELOAD={preload} FAKETIME_TIMESTAMP_FILE={clock} FAKETIME_NO_CACHE=1"
        f' FAKETIME_DONT_FAKE_MONOTONIC=1 exec {binary} "$@"\n'
    )
    program.chmod(0o700)
    return program


def steady(client: Redis, sequences: str) -> None:
    """Store, as the passes of a worker do, that the server's clock has advanced steadily for a day.

    Args:
        client: A client of the server.
        sequences: The key `PartitionKeys.sequences` of a partition.
    """
    now = server_time(client)
    client.hset(sequences, "!clock", f"{now} {now - 86_400_000}")


class Clock:
    """The wall clock of a server; its monotonic clock is that of the machine.

    Args:
        folder: The folder for the clock's file and for the program that starts the server; it must exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "clock"
        self.offset = 0.0
        """Seconds by which the clock is ahead of that of the machine, as it was last set."""
        self.set(0)

    def set(self, offset: float, *, rate: float = 1.0) -> None:
        """Set the clock to `offset` seconds after the machine's clock; it then runs `rate` times as fast."""
        self.offset = offset
        # The rename is atomic: a server never reads half a file.
        new = self._folder / "clock.new"
        new.write_text(f"{offset:+.3f} x{rate:g}" if rate != 1 else f"{offset:+.3f}")
        new.rename(self._file)

    def now(self) -> float:
        """Return the server's time in seconds since 1970, if its rate is 1."""
        return time.time() + self.offset

    def program(self, binary: Path) -> Path:
        """Return the path of a program that runs a server binary with this clock."""
        return with_clock(binary, self._folder, self._file)


class ClockedServer:
    """A running server with a clock that a test sets.

    Args:
        kind: `valkey` or `redis`; the test is skipped, or fails if CI is set, if the server or libfaketime is missing.
        folder: An empty folder for everything of the server.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        if faketime() is None:
            missing("no libfaketime (apt install faketime)", unless="CI")
        found = str(find_binary()) if kind == "valkey" else shutil.which("redis-server")
        binary = found or missing("no redis-server on PATH", unless="CI")
        self.kind = kind
        self.clock = Clock(folder)
        """The server's clock."""
        self._server = EmbeddedServer(folder / "data", binary=self.clock.program(Path(binary)))
        (folder / "data").mkdir()

    @property
    def url(self) -> str:
        """The URL for clients."""
        return self._server.url

    def set(self, offset: float, *, rate: float = 1.0) -> None:
        """Set the clock as `Clock.set` does, and wait until the server uses it: Valkey caches its time for 1 ms."""
        self.clock.set(offset, rate=rate)
        with Redis.from_url(self.url, protocol=3, legacy_responses=False) as client:

            def follows() -> bool:
                seconds, microseconds = client.time()
                return abs(int(seconds) + int(microseconds) / 1e6 - self.clock.now()) < _CLOSE

            until(follows, what="the server's new time")

    def clear(self) -> None:
        """Remove every key, and set the clock to that of the machine."""
        self.set(0)
        with Redis.from_url(self.url, protocol=3, legacy_responses=False) as client:
            client.flushall()

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
