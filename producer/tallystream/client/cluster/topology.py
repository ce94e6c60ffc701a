"""What a client knows of a cluster: its nodes, which of them serves which slot, and who did not answer lately.

Pure but for the clock: `client` asks and sends.
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

PROBE_TIMEOUT: Final = 1.0
"""Seconds for a node to say who serves what, or, after it has failed, that it is there again."""

_FRESH: Final = 0.05
"""Seconds between two looks at who serves what."""

_SUSPICION: Final = 0.5
"""Seconds for which a node that has failed is not tried again: what goes to the others must not wait for it."""

PATIENCE: Final = 2.0
"""Seconds for which a command is sent again that no node would execute yet."""

PROBE: Final = {"socket_timeout": PROBE_TIMEOUT, "socket_connect_timeout": PROBE_TIMEOUT}
"""The settings of a client that only asks this."""

PAUSE: Final = 0.05
"""Seconds between two of these attempts."""


class Node:
    """One node, and the client of it."""

    def __init__(self, address: Address, client: redis.Redis) -> None:
        self.address = address
        self.client = client
        self.failed = False
        self.retry_at = 0.0

    @property
    def name(self) -> str:
        """What people call it."""
        return "{}:{}".format(*self.address)


class Topology:
    """The nodes and their slots, as last heard of.

    Args:
        seeds: Where to ask at first, and where nobody else answers.
        open_node: Makes the client of a node; it must not connect yet.
    """

    def __init__(self, seeds: Sequence[Address], open_node: Callable[[Address], redis.Redis]) -> None:
        self._seeds = list(seeds)
        self._open = open_node
        self._nodes: dict[Address, Node] = {}
        self._owners: list[Address | None] = [None] * SLOTS
        self._members: list[Address] = []
        self._looked_at = float("-inf")
        self.is_stale = True
        """Something does not fit what is known: look before the next command."""

    @property
    def nodes(self) -> list[Node]:
        """Every node that there is a client of."""
        return list(self._nodes.values())

    @property
    def primaries(self) -> list[Node]:
        """The nodes that serve slots."""
        return [self.node(address) for address in dict.fromkeys(self._owners) if address is not None]

    def must_look(self) -> bool:
        """Tell whether to look now who serves what."""
        return self.is_stale and time.monotonic() - self._looked_at >= _FRESH

    def refresh_candidates(self) -> Iterator[Address]:
        """Yield whom to ask who serves what: those who answered lately before those who did not."""
        known = dict.fromkeys([*self._members, *self._seeds])
        yield from sorted(known, key=lambda address: address in self._nodes and self._nodes[address].failed)

    def apply_map(self, reply: list[Any], asked: Address) -> list[Node]:
        """Take what a node answers to CLUSTER SLOTS; return the nodes that have left, whose connections may go.

        Raises:
            ClusterDownError: it knows of nobody who serves anything: it may have left itself.
        """
        if not reply:
            raise ClusterDownError("{}:{} knows of no node that serves any slot".format(*asked))
        owners: list[Address | None] = [None] * SLOTS
        members: dict[Address, None] = {}
        for first, last, *nodes in reply:
            found = [(_host(node[0], asked), int(node[1])) for node in nodes]
            owners[first : last + 1] = [found[0]] * (last + 1 - first)
            members.update(dict.fromkeys(found))
        self._owners, self._members = owners, list(members)
        self._looked_at = time.monotonic()
        self.is_stale = False
        left = [address for address in self._nodes if address not in members]
        return [self._nodes.pop(address) for address in left]

    def looked_in_vain(self) -> None:
        """Nobody could say: what is known has to do for now."""
        self._looked_at = time.monotonic()

    def node(self, address: Address) -> Node:
        """Return a node, whether or not it is known to serve anything."""
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes.setdefault(address, Node(address, self._open(address)))
        return node

    def owner(self, slot: int | None) -> Node:
        """Return the node that serves a slot; for `None`, one that answered lately.

        Raises:
            ClusterDownError: nobody is known to.
        """
        if slot is None:
            serving = sorted(self.primaries, key=lambda node: node.failed)
            if serving:
                return serving[0]
        elif (address := self._owners[slot]) is not None:
            return self.node(address)
        self.is_stale = True
        raise ClusterDownError(f"no node of the cluster is known to serve {'any slot' if slot is None else slot}")

    def apply_redirect(self, slot: int | None, error: RedisError, by: Node) -> None:
        """Take MOVED's word for one slot; the others may have moved as well. CLUSTERDOWN may be of one who has left."""
        if isinstance(error, MovedError) and slot is not None:
            self._owners[slot] = self.target(error, by)
        if isinstance(error, (MovedError, ClusterDownError)):
            self.is_stale = True

    def target(self, error: AskError, by: Node) -> Address:
        """Return where MOVED or ASK sends us."""
        return error.host or by.address[0], error.port

    def suspect(self, address: Address) -> None:
        """Take notice of a node that has been silent for a while: it is asked last who serves what."""
        self.node(address).failed = True
        self.is_stale = True

    def serves(self, address: Address) -> bool:
        """Tell whether a node serves anything, as far as is known."""
        return address in self._owners

    def fail(self, node: Node, error: RedisError) -> None:
        """Take notice of a node that does not answer."""
        if isinstance(error, (AuthenticationError, MaxConnectionsError)):
            return
        node.failed = True
        node.retry_at = time.monotonic() + _SUSPICION
        self.is_stale = True


def refuse_single(error: ResponseError, asked: Address) -> None:
    """Raise a `ConfigurationError` where the error says that a server is no cluster's node."""
    if is_single_server(error):
        host, port = asked
        raise ConfigurationError(
            f"{host}:{port} is a single server, not a node of a cluster: write redis://{host}:{port}"
        ) from None


def _host(stated: bytes | str | None, asked: Address) -> str:
    # A node that does not know its own address says nothing: it is where it was asked.
    text = stated.decode() if isinstance(stated, bytes) else stated
    return text if text and text != "?" else asked[0]
