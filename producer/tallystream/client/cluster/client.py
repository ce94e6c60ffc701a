"""A client of a cluster with the interface of a client of one server.

redis-py's own cluster client sends writes again, asks the server for the keys of each command, and splits MULTI
wrongly. This client finds the node of a command by its first key: all keys of a partition are in one slot, and so on
one node.

A command with a key that was not executed (MOVED, ASK, TRYAGAIN, CLUSTERDOWN) is sent again for 2 seconds; in a
pipeline, only if that cannot change the order of writes. A write that may have been executed is never sent again: only
its caller, for example through the sequence gate, can repeat it safely.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import redis
from redis.exceptions import ClusterDownError, RedisError, TryAgainError

from tallystream.client.cluster.pipeline import ClusterPipeline
from tallystream.client.cluster.slots import goes_everywhere, guarded, key_of, slot_of
from tallystream.client.cluster.topology import PATIENCE
from tallystream.client.replies import BROKEN, NOT_EXECUTED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis.client import Pipeline

    from tallystream.client.cluster.router import Router
    from tallystream.client.cluster.slots import Command
    from tallystream.client.cluster.topology import Topology


class ClusterClient(redis.Redis):
    """A client that sends each command to the node that serves its slot; safe across threads.

    The slot is that of the first key: all keys of a command must be in one slot, or the node refuses the command.
    `execute_command` states the node of a command without a key, and the errors. A pipeline may have commands for
    several nodes; `pipeline` states what a transaction is then.

    Do not use what needs one connection for several commands: `pubsub`, `monitor`, `transaction`, and `watch` of a
    pipeline. They would connect to `localhost`, not to the cluster.

    Args:
        router: Finds the node of each slot.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        super().__init__(connection_pool=_Pools(router.topology))

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute a command on the node of its first key, and return the reply.

        A command without a key is executed on one primary. SCRIPT LOAD, SCRIPT FLUSH and FLUSHALL are executed on every
        primary that answers, and the first reply is returned. A `redis.ResponseError` ends this: later primaries are
        not asked. A primary that replies LOADING or refuses the password counts as one that does not answer. While a
        slot is moved, the keys of an MGET may be read one after another. A SCAN is executed on the node of the hash tag
        in its pattern.

        Raises:
            redis.ResponseError: the error reply of the node. MOVED, ASK, TRYAGAIN and CLUSTERDOWN in reply to a command
                with a key are raised only after 2 seconds of attempts. Or `ClusterDownError`, possibly at once: no node
                is known to serve the slot.
            redis.ConnectionError, redis.TimeoutError: the command may or may not have been executed, and is not sent
                again, even if it only reads.
            ConfigurationError: the server is not a node of a cluster.
            ValueError: a SCAN has no pattern, or its pattern has no hash tag, or only one with a wildcard.
        """
        key = key_of(args)
        if key is None:
            return self._everywhere(args, options) if goes_everywhere(args) else self._without_key(args, options)
        command, slot = guarded(args), slot_of(key)
        deadline = time.monotonic() + PATIENCE
        node, asking, attempts = self._router.await_owner(slot, deadline), False, 0
        while True:
            try:
                return self._router.send(node, command, options, asking=asking)
            except NOT_EXECUTED as error:
                if isinstance(error, TryAgainError) and command[0] == "MGET":
                    # While the slot is moved, its keys are on two nodes: read each key with a separate command.
                    return [self.execute_command("GET", each) for each in command[1:]]
                attempts += 1
                node, asking = self._router.redirect(slot, node, error, deadline, attempts)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:  # noqa: ARG002  # redis-py's argument
        """Return a pipeline; with `transaction`, the commands of each slot are executed in one transaction.

        Commands of two slots are never in the same transaction; commands without a key join that of another command.
        `shard_hint` has no effect.
        """
        return ClusterPipeline(self, self._router, transaction=transaction)

    def scan_iter(self, *args: Any, **options: Any) -> Iterator[Any]:
        """Yield the matching keys of every primary; the arguments are those of `redis.Redis.scan_iter`.

        A key may come more than once. While slots are moved, keys may be missing. The slot map is read again first.

        Raises:
            redis.RedisError: no node returned the slot map, or a slot has no primary: nothing is yielded. Or a primary
                does not answer, or replies with an error: later primaries are not read.
            ConfigurationError: the server is not a node of a cluster.
        """
        for node in self._router.all_primaries():
            yield from node.client.scan_iter(*args, **options)

    def count_primaries(self) -> int:
        """Return the number of primaries that serve slots, by the latest slot map; read the map first if it is stale.

        Raises:
            redis.RedisError: no node returned the slot map, or a node refused the command.
            ConfigurationError: the server is not a node of a cluster.
        """
        self._router.refresh()
        return len(self._router.topology.primaries)

    def node_of(self, key: str) -> str | None:
        """Return the address, as `host:port`, of the node that serves a key by the latest slot map; send nothing.

        Return `None` if no node is known to serve the key.
        """
        try:
            return self._router.topology.owner(slot_of(key)).name
        except ClusterDownError:
            return None

    def close(self) -> None:
        """Close the connections to all nodes; a later command connects again."""
        for node in self._router.topology.nodes:
            node.client.close()

    def _without_key(self, command: Command, options: dict[str, Any]) -> Any:
        return self._router.send(self._router.owner(None), command, options)

    def _everywhere(self, command: Command, options: dict[str, Any]) -> Any:
        """Execute a command on every primary that answers, also if others do not; return the first reply.

        Raises:
            redis.ResponseError: a primary replied with an error, and the primaries after it were not asked; or no
                usable slot map was returned.
            redis.ConnectionError, redis.TimeoutError: no primary answered, or no node returned the slot map.
            ConfigurationError: the server is not a node of a cluster.
        """
        self._router.refresh()
        replies: list[Any] = []
        failure: RedisError | None = None
        for node in self._router.topology.primaries:
            try:
                self._router.check(node)
                replies.append(self._router.send(node, command, options))
            except BROKEN as error:
                failure = error
        if not replies:
            raise failure or redis.ConnectionError("no node of the cluster is known to serve a slot")
        return replies[0]


def node_of(client: redis.Redis, key: str) -> str:
    """Return, for a message, the address `host:port` of the server that `client` sends commands on a key to.

    In a cluster, it is that of the node by the latest slot map. If the address is not known, return `a node` for a
    cluster, else `the server`: so for a unix socket and for Sentinels.
    """
    if isinstance(client, ClusterClient):
        return client.node_of(key) or "a node"
    about = client.connection_pool.connection_kwargs
    return f"{about['host']}:{about['port']}" if "host" in about and "port" in about else "the server"


class _Pools(redis.ConnectionPool):
    """The connection pool of a cluster client: closes the connections to all nodes, and has no connections itself."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        super().__init__(protocol=3, legacy_responses=False)

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections to all nodes, and mark the slot map as stale, so that a later command reads it again.

        Args:
            inuse_connections: Whether to close the connections that are in use, too; otherwise only idle ones.
        """
        self._topology.is_stale = True
        for node in self._topology.nodes:
            node.client.connection_pool.disconnect(inuse_connections)
