"""A client of a cluster that is used like a client of one server.

redis-py's own cluster client sends writes again, asks for the keys of each command first, and splits MULTI wrongly.
This one is told everything by the shape of our keys: a partition lies in one slot, and so on one node.

What was not executed (MOVED, ASK, and for a while TRYAGAIN and CLUSTERDOWN) is sent again where that cannot change
the order of what is written; what may have been executed never is: that is for the gates of those who sent it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import redis
from redis.exceptions import RedisError, TryAgainError

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
    """Sends each command to the node that serves its slot; safe across threads.

    Args:
        router: Finds the nodes.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        super().__init__(connection_pool=_Pools(router.topology))

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute a command on the node that it concerns, or on every one that it concerns.

        Raises:
            redis.ResponseError: the node's answer; TRYAGAIN and CLUSTERDOWN only where they last.
            redis.ConnectionError, redis.TimeoutError: it is not known whether it was executed.
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
                    # Some keys are on one node and some on the other, or nowhere: each by itself can be had.
                    return [self.execute_command("GET", each) for each in command[1:]]
                attempts += 1
                node, asking = self._router.redirect(slot, node, error, deadline, attempts)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:  # noqa: ARG002  # redis-py's word
        """Return a pipeline; with `transaction`, what it holds is of one moment slot by slot."""
        return ClusterPipeline(self, self._router, transaction=transaction)

    def scan_iter(self, *args: Any, **options: Any) -> Iterator[Any]:
        """Yield the keys of all nodes."""
        self._router.refresh()
        for node in self._router.topology.primaries:
            yield from node.client.scan_iter(*args, **options)

    def close(self) -> None:
        """Give the connections to all nodes back."""
        for node in self._router.topology.nodes:
            node.client.close()

    def _without_key(self, command: Command, options: dict[str, Any]) -> Any:
        return self._router.send(self._router.owner(None), command, options)

    def _everywhere(self, command: Command, options: dict[str, Any]) -> Any:
        """Ask all that can be reached, so that one node that is away does not keep the others from it."""
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
            raise failure or redis.ConnectionError("no node of the cluster is known")
        return replies[0]


class _Pools(redis.ConnectionPool):
    """Stands for the connections to all nodes where somebody wants them closed; has none of its own."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        super().__init__(protocol=3, legacy_responses=False)

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections; those in use only where told to. Something is wrong: look before the next command."""
        self._topology.is_stale = True
        for node in self._topology.nodes:
            node.client.connection_pool.disconnect(inuse_connections)
