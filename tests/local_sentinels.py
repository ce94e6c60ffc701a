"""A primary, its replica and three Sentinels, for tests in which the primary fails again and again."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tests.local_node import ServerNode
from tests.sentinel import NAME, SentinelProcess
from tests.servers import missing
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

SENTINELS = 3
QUORUM = 2
"""The number of Sentinels that must agree that the primary is down."""


class LocalSentinels:
    """Two servers, of which one is the primary, and the Sentinels that watch them; it can be used as a `LocalCluster`.

    Args:
        nodes: The two servers.
        sentinels: The Sentinels.
    """

    def __init__(self, nodes: list[ServerNode], sentinels: list[SentinelProcess]) -> None:
        self.nodes = nodes
        self._sentinels = sentinels
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in sentinels)
        self.url = f"redis+sentinel://{hosts}/{NAME}"

    def replica_of(self, primary: ServerNode) -> ServerNode:
        """Return the other server."""
        return next(node for node in self.nodes if node is not primary)

    def rejoin(self, node: ServerNode) -> None:
        """Make a former primary that runs again a replica, and wait until its link is up.

        It gets the commands that a Sentinel sends for this purpose, about ten seconds earlier.
        """
        primary = self.replica_of(node)
        with node.client.pipeline(transaction=True) as pipeline:
            pipeline.execute_command("REPLICAOF", "127.0.0.1", primary.port)
            pipeline.execute_command("CLIENT", "KILL", "TYPE", "normal")
            with contextlib.suppress(RedisError):  # this connection is closed, too
                pipeline.execute()
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Wait until the replica's link is up, and every Sentinel reports both servers and no failure."""
        until(self._is_whole, 60, 0.05, "a primary with a replica, and Sentinels that report them")

    def _is_whole(self) -> bool:
        try:
            roles = {str(node.port): node.client.info("replication") for node in self.nodes}
            primaries = [port for port, about in roles.items() if about["role"] == "master"]
            replicas = [about for about in roles.values() if about["role"] != "master"]
            if len(primaries) != 1 or replicas[0]["master_link_status"] != "up":
                return False
            if str(replicas[0]["master_port"]) != primaries[0]:
                return False
            return all(each.reports(primaries[0], others=len(self._sentinels) - 1) for each in self._sentinels)
        except RedisError:
            return False


@contextlib.contextmanager
def local_sentinels(kind: str, folder: Path, *, patience: float) -> Iterator[LocalSentinels]:
    """Run a primary, a replica and three Sentinels until the block ends, then kill them.

    Args:
        kind: `valkey` or `redis`, the kind of both servers.
        folder: The folder for all data.
        patience: Seconds without a reply after which a Sentinel considers the primary down.
    """
    binary: Path | None = None
    if kind == "redis":
        binary = Path(shutil.which("redis-server") or missing("no redis-server on PATH", unless="CI"))
    with contextlib.ExitStack() as stack:
        nodes: list[ServerNode] = []
        for name in ("one", "two"):
            follows = ["--replicaof", "127.0.0.1", str(nodes[0].port)] if nodes else []
            nodes.append(ServerNode(folder / name, binary, ["--repl-diskless-sync-delay", "0", *follows]))
            stack.callback(nodes[-1].close)
        sentinels = []
        for number in range(SENTINELS):
            place = folder / f"sentinel-{number}"
            place.mkdir()
            sentinels.append(
                stack.enter_context(SentinelProcess(place, str(nodes[0].port), patience=patience, quorum=QUORUM))
            )
        found = LocalSentinels(nodes, sentinels)
        found.wait_until_whole()
        yield found
