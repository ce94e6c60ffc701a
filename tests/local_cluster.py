"""A cluster of three primaries and up to three replicas, one process each, for tests that move slots or stop nodes."""

from __future__ import annotations

import contextlib
import shutil
import socket
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from redis.exceptions import RedisError, ResponseError

from tallystream.client.cluster.slots import SLOTS, slot_of
from tallystream.client.connect import connect
from tests.local_node import ServerNode
from tests.servers import Server, missing
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from redis import Redis

KINDS = ("cluster-valkey", "cluster-redis")
PRIMARIES = 3
NODE_TIMEOUT = 1500
"""Milliseconds without contact after which the other nodes consider a node failed."""


class LocalNode(ServerNode):
    """One node of the cluster, a server process.

    With certificates, nodes use TLS between themselves, and clients can use TLS on `tls_port`.
    """

    def __init__(
        self, data: Path, binary: Path | None, *, node_timeout: int, fsync: str, certificates: Path | None = None
    ) -> None:
        self.bus_port = free_port()
        extra = [
            "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-port", str(self.bus_port),
            "--cluster-node-timeout", str(node_timeout), "--cluster-replica-validity-factor", "0",
            "--repl-diskless-sync-delay", "0", "--appendfsync", fsync,
        ]  # fmt: skip
        if certificates is not None:
            extra += ["--tls-port", str(free_port()), "--tls-cluster", "yes", "--tls-replication", "yes"]
            extra += ["--tls-cert-file", f"{certificates}/server.crt", "--tls-key-file", f"{certificates}/server.key"]
            extra += ["--tls-ca-cert-file", f"{certificates}/ca.crt"]
        super().__init__(data, binary, extra)
        self.tls_port = None if certificates is None else int(extra[extra.index("--tls-port") + 1])

    @property
    def id(self) -> str:
        """The node's ID in the cluster."""
        return self.ask("CLUSTER", "MYID").decode()

    @property
    def moves_at_once(self) -> bool:
        """Whether the server has the command CLUSTER MIGRATESLOTS."""
        return any(b"MIGRATESLOTS" in bytes(line) for line in self.ask("CLUSTER", "HELP"))

    def lose_data(self) -> None:
        """Remove all data of the node, which must not run; it stays the same node of the cluster."""
        for path in self.server.data.iterdir():
            if path.name == "appendonlydir":
                shutil.rmtree(path)
            elif path.suffix == ".rdb":
                path.unlink()


class LocalCluster:
    """A cluster of local nodes.

    The first three nodes start as primaries. The primary of a replica is three places before it in `nodes`.
    """

    def __init__(self, nodes: list[LocalNode], start: Callable[[], LocalNode]) -> None:
        self.nodes = nodes
        self._start = start

    @property
    def url(self) -> str:
        """The URL of the cluster, which lists its first three nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:3])

    def form(self) -> None:
        """Make a cluster of the nodes: introduce them, assign slots, attach replicas, and wait until all agree."""
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            for other in self.nodes[:number]:  # introduce each pair: gossip would take a second longer
                node.ask("CLUSTER", "MEET", "127.0.0.1", other.tls_port or other.port, other.bus_port)
        until(lambda: all(self._known_by(node) == len(self.nodes) for node in self.nodes), 30, 0.05, "mutual contact")
        edges = [SLOTS * i // PRIMARIES for i in range(PRIMARIES + 1)]
        for i in range(PRIMARIES):
            self.nodes[i].ask("CLUSTER", "ADDSLOTSRANGE", edges[i], edges[i + 1] - 1)
        for i, replica in enumerate(self.nodes[PRIMARIES:]):
            until(lambda r=replica, p=self.nodes[i]: _follow(r, p), 30, 0.05, "the replica")
        self.wait_until_whole()

    def add(self) -> LocalNode:
        """Start a node, let it join as a primary without slots, and return it."""
        node = self._start()
        node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, self.nodes[0].bus_port)
        self.nodes.append(node)
        until(lambda: all(self._known_by(each) == len(self.nodes) for each in self.nodes), 30, 0.05, "mutual contact")
        self.wait_until_whole()
        return node

    def remove(self, node: LocalNode) -> None:
        """Remove a primary without slots from the cluster; its process keeps running, and forgets the other nodes."""
        self.nodes.remove(node)
        name = node.id
        for each in self.nodes:
            each.ask("CLUSTER", "FORGET", name)
        node.ask("CLUSTER", "RESET", "SOFT")
        self.wait_until_whole()

    def replace_lost(self, lost: Sequence[LocalNode], heir: LocalNode) -> None:
        """Remove nodes that are gone for good, and give their slots, which are empty then, to a primary."""
        port = lost[0].port
        slots = [(begin, end) for begin, end, (_, owner, *_), *_ in heir.ask("CLUSTER", "SLOTS") if owner == port]
        names = [row.split() for row in bytes(heir.ask("CLUSTER", "NODES")).decode().splitlines()]
        ids = [row[0] for row in names for node in lost if row[1].partition("@")[0].endswith(f":{node.port}")]
        for node in lost:
            self.nodes.remove(node)
        for node in self.nodes:
            for name in ids:
                node.ask("CLUSTER", "FORGET", name)
        for begin, end in slots:
            heir.ask("CLUSTER", "ADDSLOTSRANGE", begin, end)
        heir.ask("CLUSTER", "BUMPEPOCH")
        self.wait_until_whole()

    def rejoin(self, node: LocalNode) -> None:  # noqa: ARG002  # the argument of `LocalSentinels.rejoin`
        """Wait until a former primary that runs again is a replica; the nodes see to that themselves."""
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Wait until every node reports a healthy cluster and the same slot map, and each replica's link is up."""
        until(self._is_whole, 60, 0.05, "a whole cluster")

    def _is_whole(self) -> bool:
        try:
            for node in self.nodes:
                if b"cluster_state:ok" not in node.ask("CLUSTER", "INFO"):
                    return False
                about = node.client.info("replication")
                if about["role"] != "master" and about["master_link_status"] != "up":
                    return False
            return len({str(sorted(node.ask("CLUSTER", "SLOTS"), key=str)) for node in self.nodes}) == 1
        except RedisError:
            return False

    def _known_by(self, node: LocalNode) -> int:
        lines = bytes(node.ask("CLUSTER", "NODES")).decode().splitlines()
        return sum("handshake" not in line for line in lines)

    def owner(self, key: str) -> LocalNode:
        """Return the primary that serves the slot of a key."""
        for node in self.nodes:
            with contextlib.suppress(RedisError):
                for begin, end, (_, port, *_), *_ in node.ask("CLUSTER", "SLOTS"):
                    if begin <= slot_of(key) <= end:
                        return next(each for each in self.nodes if each.port == port)
        raise AssertionError(f"no node serves the slot of {key}")

    def replica_of(self, primary: LocalNode) -> LocalNode:
        """Return a replica of a primary, as the primary lists it; the primary must be reachable."""
        name = primary.id
        rows = [bytes(line).split() for line in bytes(primary.ask("CLUSTER", "NODES")).splitlines()]
        port = next(int(row[1].split(b":")[1].split(b"@")[0]) for row in rows if row[3] == name.encode())
        return next(node for node in self.nodes if node.port == port)

    def open_move(self, slot: int, source: LocalNode, target: LocalNode) -> None:
        """Begin to move a slot between two primaries; until `close_move`, its keys may be on either node."""
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)

    def move_keys(self, slot: int, source: LocalNode, target: LocalNode, most: int = 10_000) -> int:
        """Move at most `most` keys of a slot, one at a time; return the number that was moved."""
        moved = 0
        while moved < most and (keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1)):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            moved += len(keys)
        return moved

    def close_move(self, slot: int, source: LocalNode, target: LocalNode) -> None:
        """End the move of a slot after all its keys have been moved: assign it to the target on every primary."""
        name = target.id
        target.ask("CLUSTER", "SETSLOT", slot, "NODE", name)
        with contextlib.suppress(ResponseError):  # without slots, the source has become a replica of the target
            source.ask("CLUSTER", "SETSLOT", slot, "NODE", name)
        for node in self.nodes:
            if node not in (source, target) and node.is_primary():
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", name)

    def move(self, slot: int, source: LocalNode, target: LocalNode) -> None:
        """Move a slot with all its keys from one primary to another; clients may use it meanwhile."""
        self.open_move(slot, source, target)
        self.move_keys(slot, source, target)
        self.close_move(slot, source, target)

    def move_at_once(self, slot: int, source: LocalNode, target: LocalNode) -> None:
        """Move a slot with all its keys at one moment (CLUSTER MIGRATESLOTS), and wait until all nodes know it."""
        source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target.id)

        def has_ended() -> bool:
            moves = [_texts(each) for each in source.ask("CLUSTER", "GETSLOTMIGRATIONS")]
            own = [each for each in moves if each["slot_ranges"] == f"{slot}-{slot}" and each["operation"] == "EXPORT"]
            assert own[0]["state"] not in ("failed", "cancelled"), own[0]
            return own[0]["state"] == "success"

        until(has_ended, 30, 0.01, "the move of the slot")
        self.wait_until_whole()


class ClusterServer(Server):
    """A cluster with the interface of `Server`, for tests written for a single server."""

    def __init__(self, kind: str, cluster: LocalCluster) -> None:
        super().__init__(kind, cluster.url)
        self.cluster = cluster

    def client(self, **_settings: object) -> Redis:
        """Return a new cluster client; it is closed when the test ends."""
        client = connect(self.url)
        self._clients.append(client)
        return client

    def clear(self) -> None:
        """Remove every key of the cluster."""
        with contextlib.closing(connect(self.url)) as client:
            client.flushall()


@contextlib.contextmanager
def local_cluster(
    kind: str,
    folder: Path,
    *,
    replicas: int = PRIMARIES,
    node_timeout: int = NODE_TIMEOUT,
    fsync: str = "always",
    certificates: Path | None = None,
) -> Iterator[LocalCluster]:
    """Run a cluster until the block ends, then kill it; the first `replicas` primaries have one replica each."""
    binary: Path | None = None
    if kind == "cluster-redis":
        binary = Path(shutil.which("redis-server") or missing("no redis-server on PATH", unless="CI"))
    with contextlib.ExitStack() as stack:

        def start() -> LocalNode:
            data = Path(mkdtemp(dir=folder))
            node = LocalNode(data, binary, node_timeout=node_timeout, fsync=fsync, certificates=certificates)
            stack.callback(node.close)
            return node

        folder.mkdir(parents=True, exist_ok=True)
        cluster = LocalCluster([start() for _ in range(PRIMARIES + replicas)], start)
        cluster.form()
        yield cluster


def free_port() -> int:
    """Return a local TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _follow(replica: LocalNode, primary: LocalNode) -> bool:
    try:
        replica.ask("CLUSTER", "REPLICATE", primary.id)
    except RedisError:  # the gossip about the primary has not arrived yet
        return False
    return True


def _texts(reply: object) -> dict[str, str]:
    """Return a reply of names and values, whose values are texts or numbers, as texts."""
    pairs = dict(reply) if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    return {
        bytes(name).decode(): value.decode() if isinstance(value, bytes) else str(value)
        for name, value in pairs.items()
    }


def slots_of(keys: Sequence[str]) -> list[int]:
    """Return the hash slot of each key."""
    return [slot_of(key) for key in keys]
