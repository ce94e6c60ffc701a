"""A primary, a replica and a Sentinel, each a real process, for tests that kill the primary."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Any, Self

from redis import Redis
from redis.exceptions import RedisError

from tests.servers import missing
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tallystream_worker.server.embedded import EmbeddedServer

NAME = "counters"


class SentinelProcess:
    """A Sentinel, and a client of it; a context manager that kills the process.

    Args:
        folder: An empty folder for its configuration and its log.
        primary: The port of the primary to watch.
        patience: Seconds without a reply after which it considers the primary down.
        quorum: The number of Sentinels that must do so before one starts a failover.
    """

    def __init__(self, folder: Path, primary: str, *, patience: float, quorum: int = 1) -> None:
        binary = shutil.which("redis-sentinel") or missing("no redis-sentinel on PATH", unless="CI")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        configuration = folder / "sentinel.conf"
        configuration.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor {NAME} 127.0.0.1 {primary} {quorum}\n"
            f"sentinel down-after-milliseconds {NAME} {patience * 1000:.0f}\nsentinel failover-timeout {NAME} 3000\n"
        )
        with (folder / "sentinel.log").open("wb") as log:
            self._process = subprocess.Popen([binary, str(configuration)], stdout=log, stderr=log)
        self.client = Redis(port=self.port, protocol=3, legacy_responses=False)

    def primary_port(self) -> str:
        """Return the port of the primary, as this Sentinel reports it."""
        address = self.client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        return address[1].decode()

    def reports(self, primary: str, *, others: int) -> bool:
        """Return whether this Sentinel reports a primary with one replica, `others` other Sentinels, and no failure."""
        about: Any = self.client.execute_command("SENTINEL", "MASTER", NAME)
        replicas: Any = self.client.execute_command("SENTINEL", "REPLICAS", NAME)
        wanted = {b"port": primary, b"flags": "master", b"num-other-sentinels": str(others)}
        return (
            all(about[name].decode() == value for name, value in wanted.items())
            and [each[b"flags"] for each in replicas] == [b"slave"]
            and replicas[0][b"master-link-status"] == b"ok"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._process.kill()
        self._process.wait()


class Watched:
    """A primary, its replica and a Sentinel; `url` leads clients to the current primary through the Sentinel."""

    def __init__(self, primary: EmbeddedServer, replica: EmbeddedServer, sentinel: SentinelProcess) -> None:
        self.primary = primary
        self.replica = replica
        self.url = f"redis+sentinel://127.0.0.1:{sentinel.port}/{NAME}"
        self._sentinel = sentinel
        self.sentinel = sentinel.client

    def primary_port(self) -> str:
        """Return the port of the primary, as the Sentinel reports it."""
        return self._sentinel.primary_port()

    def fail_over(self) -> None:
        """Kill the primary and wait until the Sentinel reports the replica as the primary."""
        port = port_of(self.replica)
        self.primary.kill()
        until(lambda: self.primary_port() == port, timeout=30, what="the failover")


def port_of(server: EmbeddedServer) -> str:
    """Return the port in a server's URL."""
    return server.url.rpartition(":")[2]


@contextlib.contextmanager
def watched(start: Callable[..., EmbeddedServer], folder: Path, *, patience: float = 0.5) -> Iterator[Watched]:
    """Run a primary, a replica, and a Sentinel that starts a failover when the primary is down for some seconds."""
    quick = ["--repl-diskless-sync-delay", "0", "--appendfsync", "always"]
    primary = start(port=0, extra=quick)
    replica = start(port=0, extra=[*quick, "--replicaof", "127.0.0.1", port_of(primary)])
    with SentinelProcess(folder, port_of(primary), patience=patience) as sentinel:

        def is_whole() -> bool:
            with contextlib.suppress(RedisError):
                return sentinel.reports(port_of(primary), others=0)
            return False

        until(is_whole, timeout=30, what="the Sentinel's knowledge of the replica")
        yield Watched(primary, replica, sentinel)
