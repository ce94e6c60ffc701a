"""Servers that require authentication or TLS, for tests: start one with given arguments, wait for it, and stop it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tallystream.client.connect import connect
from tallystream_worker.server.binary import find_binary
from tests.servers import missing
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def binary_of(kind: str) -> str:
    """Return the path of the program of a kind of server; if it is missing, skip the test, or fail it in CI."""
    if kind == "valkey":
        return str(find_binary())
    return shutil.which("redis-server") or missing("no redis-server on PATH", unless="CI")


def free_port() -> int:
    """Return a local TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(binary: str, folder: Path, url: str, *arguments: str) -> Iterator[None]:
    """Run a server with `arguments` until the block ends; it is ready when `url` answers PING."""
    with (folder / "server.log").open("wb") as log:
        command = [binary, "--dir", str(folder), "--save", "", *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:

        def answers() -> bool:
            assert process.poll() is None, (folder / "server.log").read_text()
            with contextlib.closing(connect(url)) as client, contextlib.suppress(RedisError):
                return bool(client.ping())
            return False

        until(answers, what="the server's answer")
        yield
    finally:
        process.terminate()
        process.wait(10)
