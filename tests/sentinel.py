"""A primary, a replica and a Sentinel, each a real process, for tests that kill the primary."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

from redis import Redis
from redis.exceptions import RedisError

from tests.servers import missing
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tallystream_worker.server.embedded import EmbeddedServer

NAME = "counters"


class Watched:
    """A primary, its replica and a Sentinel; `url` leads clients to the current primary through the Sentinel."""

    def __init__(self, primary: EmbeddedServer, replica: EmbeddedServer, port: int) -> None:
        self.primary = primary
        self.replica = replica
        self.url = f"redis+sentinel://127.0.0.1:{port}/{NAME}"
        self.sentinel = Redis(port=port, protocol=3, legacy_responses=False)

    def primary_port(self) -> str:
        """Return the port of the primary, as the Sentinel reports it."""
        address = self.sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        return address[1].decode()

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
    binary = shutil.which("redis-sentinel") or missing("no redis-sentinel on PATH", unless="CI")
    quick = ["--repl-diskless-sync-delay", "0", "--appendfsync", "always"]
    primary = start(port=0, extra=quick)
    replica = start(port=0, extra=[*quick, "--replicaof", "127.0.0.1", port_of(primary)])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configuration = folder / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
        f"sentinel monitor {NAME} 127.0.0.1 {port_of(primary)} 1\n"
        f"sentinel down-after-milliseconds {NAME} {patience * 1000:.0f}\nsentinel failover-timeout {NAME} 3000\n"
    )
    with (folder / "sentinel.log").open("wb") as log:
        process = subprocess.Popen([binary, str(configuration)], stdout=log, stderr=log)
    found = Watched(primary, replica, port)
    try:

        def knows_both() -> bool:
            with contextlib.suppress(RedisError):
                rows = found.sentinel.execute_command("SENTINEL", "REPLICAS", NAME)
                return bool(rows) and b"master-link-status" in str(rows).encode() and b"'ok'" in str(rows).encode()
            return False

        until(knows_both, timeout=30, what="the Sentinel's knowledge of the replica")
        yield found
    finally:
        found.sentinel.close()
        process.kill()
        process.wait()
