"""The state of a cluster as a client has it: the nodes, the slots that each serves, and which nodes have failed.

This module sends nothing; `router` sends.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    MaxConnectionsError,
    MovedError,
    RedisError,
    ResponseError,
)

from tallystream.client.cluster.slots import SLOTS
from tallystream.client.replies import is_single_server
from tallystream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import redis
    from redis.exceptions import AskError

Address = tuple[str, int]
"""Host and port of a node."""

PROBE_TIMEOUT: Final = 1.0
"""Seconds for a node to answer a read of the slot map, or a ping after it has failed."""

_FRESH: Final = 0.05
"""Least seconds between two reads of the slot map."""

_SUSPICION: Final = 0.5
"""Seconds for which a failed node is not tried again, so that commands to other nodes do not wait for it."""

PATIENCE: Final = 2.0
"""Seconds for which a command that no node executes is sent again."""

PROBE: Final = {"socket_timeout": PROBE_TIMEOUT, "socket_connect_timeout": PROBE_TIMEOUT}
"""Settings of a client that only reads the slot map or pings a node."""

PAUSE: Final = 0.05
"""Seconds between two attempts to send a command that no node executes."""


class Node:
    """A node of the cluster.

    Args:
        address: Host and port.
        client: Client of the node.

    Attributes:
        address: Host and port.
        client: Client of the node.
        failed: Whether the node was marked as failed (`Topology.fail`, `Topology.suspect`), and has not answered a ping
            since.
        retry_at: Monotonic second before which a failed node is not tried again.
    """

    def __init__(self, address: Address, client: redis.Redis) -> None:
        self.address = address
        self.client = client
        self.failed = False
        self.retry_at = 0.0

    @property
    def name(self) -> str:
        """Host and port of the node, as `host:port`."""
        return "{}:{}".format(*self.address)


class Topology:
    """The nodes of a cluster and their slots, as the caller last learned them; `Router` asks the nodes.

    Args:
        seeds: Addresses that `refresh_candidates` yields in addition to the nodes of the latest slot map.
        open_node: Makes the client of a node, without connecting.
    """

    def __init__(self, seeds: Sequence[Address], open_node: Callable[[Address], redis.Redis]) -> None:
        self._seeds = list(seeds)
        self._open = open_node
        self._nodes: dict[Address, Node] = {}
        self._owners: list[Address | None] = [None] * SLOTS
        self._members: list[Address] = []
        self._looked_at = float("-inf")
        self._failure: RedisError | None = None
        self.is_stale = True
        """Whether the slot map may be wrong and must be read again before the next command."""

    @property
    def nodes(self) -> list[Node]:
        """Every node that has a client, also nodes that serve no slot or are marked as failed."""
        return list(self._nodes.values())

    @property
    def primaries(self) -> list[Node]:
        """The nodes that are known to serve slots, each once; a node without a client gets one.

        It is empty if no slot map was read, and lacks nodes if some slots have no known node: see `all_primaries`.
        """
        return [self.node(address) for address in dict.fromkeys(self._owners) if address is not None]

    def all_primaries(self) -> list[Node]:
        """Return the nodes that together serve all slots, each once.

        Raises:
            ClusterDownError: no node is known to serve some slot, which may have keys; the slot map is then marked as
                stale.
        """
        if None in self._owners:
            self.owner(self._owners.index(None))
        return self.primaries

    def must_look(self) -> bool:
        """Return whether to read the slot map now: it is stale, and was not asked for in the last 50 milliseconds.

        Only calls of `apply_map` (without an error) and of `looked_in_vain` count as asking.
        """
        return self.is_stale and time.monotonic() - self._looked_at >= _FRESH

    def refresh_candidates(self) -> Iterator[Address]:
        """Yield the addresses to ask for the slot map, each once: the nodes of the latest one, then the seeds.

        Its replicas are among the nodes. Nodes that are marked as failed come last.
        """
        known = dict.fromkeys([*self._members, *self._seeds])
        yield from sorted(known, key=lambda address: address in self._nodes and self._nodes[address].failed)

    def apply_map(self, reply: list[Any], asked: Address) -> list[Node]:
        """Replace the slot map by a node's reply to CLUSTER SLOTS, and remove the nodes that are not in the reply.

        A node that is in the reply only as a replica stays. The map is then not stale.

        Args:
            reply: The reply.
            asked: Address of the node that sent the reply.

        Returns:
            The removed nodes, whose connections may be closed.

        Raises:
            ClusterDownError: the reply is empty: the node itself may have left the cluster. Nothing has changed.
        """
        if not reply:
            raise ClusterDownError("{}:{} reports no node that serves a slot".format(*asked))
        owners: list[Address | None] = [None] * SLOTS
        members: dict[Address, None] = {}
        for first, last, *nodes in reply:
            found = [(_host(node[0], asked), int(node[1])) for node in nodes]
            owners[first : last + 1] = [found[0]] * (last + 1 - first)
            members.update(dict.fromkeys(found))
        self._owners, self._members = owners, list(members)
        self._looked_at, self._failure = time.monotonic(), None
        self.is_stale = False
        left = [address for address in self._nodes if address not in members]
        return [self._nodes.pop(address) for address in left]

    def looked_in_vain(self, error: RedisError) -> None:
        """Record the time and the error of a read of the slot map that failed at every node; the present map stays.

        Args:
            error: The error of the last node that was asked.
        """
        self._looked_at, self._failure = time.monotonic(), error

    def ensure_map(self) -> None:
        """Raise the error of the latest attempt to read the slot map, if no slot map was ever read.

        Do nothing if one was read, or if no attempt was recorded (`looked_in_vain`).

        Raises:
            redis.RedisError: the error that was passed to `looked_in_vain`.
        """
        if not self._members and self._failure is not None:
            raise self._failure.with_traceback(None)

    def node(self, address: Address) -> Node:
        """Return the node at an address; if the address is new, add a node with a new client."""
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes.setdefault(address, Node(address, self._open(address)))
        return node

    def owner(self, slot: int | None) -> Node:
        """Return the node that serves a slot.

        Args:
            slot: The slot; `None` for any primary, preferably one that is not marked as failed.

        Returns:
            The node, which may be marked as failed.

        Raises:
            ClusterDownError: no such node is known; the slot map is then marked as stale.
        """
        if slot is None:
            serving = sorted(self.primaries, key=lambda node: node.failed)
            if serving:
                return serving[0]
        elif (address := self._owners[slot]) is not None:
            return self.node(address)
        self.is_stale = True
        raise ClusterDownError(
            f"no node of the cluster is known to serve {'any slot' if slot is None else f'slot {slot}'}"
        )

    def apply_redirect(self, slot: int | None, error: RedisError, by: Node) -> None:
        """Record the new node of a slot after MOVED; mark the slot map as stale after MOVED, CLUSTERDOWN or MASTERDOWN.

        Do nothing after any other error. After MOVED other slots may have moved, too; a node that replies CLUSTERDOWN
        may have left the cluster.

        Args:
            slot: Slot of the command; `None` if the command has no key.
            error: Error reply to the command.
            by: Node that sent the reply.
        """
        if isinstance(error, MovedError) and slot is not None:
            self._owners[slot] = self.target(error, by)
        if isinstance(error, (MovedError, ClusterDownError)):
            self.is_stale = True

    def target(self, error: AskError, by: Node) -> Address:
        """Return the address in a MOVED or ASK reply; a reply without a host means the host of node `by`."""
        return error.host or by.address[0], error.port

    def suspect(self, address: Address) -> None:
        """Mark a silent node as failed, so that `refresh_candidates` yields it last, and the slot map as stale.

        Unlike `fail`, this does not delay the next attempt on the node. An address without a node gets one.
        """
        self.node(address).failed = True
        self.is_stale = True

    def serves(self, address: Address) -> bool:
        """Return whether a node serves any slot, according to the latest slot map and later redirects."""
        return address in self._owners

    def fail(self, node: Node, error: RedisError) -> None:
        """Mark a node as failed, not to be tried again for half a second, and the slot map as stale.

        Do nothing if `error` is a wrong or missing password, or too many connections in the client's own pool: neither
        shows that the node has failed.
        """
        if isinstance(error, (AuthenticationError, MaxConnectionsError)):
            return
        node.failed = True
        node.retry_at = time.monotonic() + _SUSPICION
        self.is_stale = True


def refuse_single(error: ResponseError, asked: Address) -> None:
    """Raise a `ConfigurationError` if the error reply to CLUSTER SLOTS is that of a server in no cluster; else return.

    Args:
        error: The error reply.
        asked: Address of the server that sent it.
    """
    if is_single_server(error):
        host, port = asked
        raise ConfigurationError(
            f"{host}:{port} is a single server, not a node of a cluster: write redis://{host}:{port}"
        ) from None


def _host(stated: bytes | str | None, asked: Address) -> str:
    # A node without a configured address sends no host: it is the one that was asked.
    text = stated.decode() if isinstance(stated, bytes) else stated
    return text if text and text != "?" else asked[0]
