"""Finds the node of each slot in a cluster, follows redirects, and finds out when nodes fail or are replaced."""

from __future__ import annotations

import contextlib
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import redis
from redis.exceptions import ClusterDownError, MovedError, RedisError, ResponseError

from tallystream.client.cluster.topology import PAUSE, PROBE, Address, Node, Topology, refuse_single
from tallystream.client.replies import BROKEN, is_asking

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tallystream.client.cluster.slots import Command

    Opener = Callable[..., redis.Redis]


class Router:
    """What is known of the nodes, kept up to date by what they reply; safe across threads.

    Args:
        seeds: Some of the nodes.
        open_node: Makes a client of one node, for a question, with other settings if some are given.
        open_watched: Makes the client of one node that commands are sent by; it asks the second argument, now and
            then, whether to go on waiting for a reply.
    """

    def __init__(
        self,
        seeds: Sequence[Address],
        open_node: Opener,
        open_watched: Callable[[Address, Callable[[], bool]], redis.Redis],
    ) -> None:
        self._open = open_node
        self.topology: Topology = Topology(
            seeds, lambda address: open_watched(address, partial(self._is_replaced, address))
        )
        self._refreshing = threading.Lock()

    def send(self, node: Node, command: Command, options: dict[str, Any], *, asking: bool = False) -> Any:
        """Send one command to a node, after ASKING if it takes the slot over; raise an error reply."""
        try:
            if not asking:
                return node.client.execute_command(*command, **options)
            with node.client.pipeline(transaction=False) as pipeline:
                pipeline.execute_command("ASKING")
                pipeline.execute_command(*command, **options)
                _, reply = pipeline.execute(raise_on_error=False)
        except BROKEN as error:
            self.topology.fail(node, error)
            raise
        if isinstance(reply, RedisError):
            raise reply
        return reply

    def redirect(
        self, slot: int, node: Node, error: ResponseError, deadline: float, attempts: int
    ) -> tuple[Node, bool]:
        """Return where to send next what a node did not execute, and whether it must be told that it was asked for."""
        if time.monotonic() >= deadline:
            raise error
        self.topology.apply_redirect(slot, error, node)
        if is_asking(error):
            return self.topology.node(self.topology.target(error, node)), True
        if attempts > 1 or not isinstance(error, MovedError):
            time.sleep(PAUSE)
        return self.owner(slot), False

    def await_owner(self, slot: int, deadline: float) -> Node:
        """Return the node that serves a slot; while it is away, wait for its successor: nothing is sent yet."""
        while True:
            try:
                return self.owner(slot)
            except (*BROKEN, ClusterDownError):
                if time.monotonic() >= deadline:
                    raise
            time.sleep(PAUSE)

    def owner(self, slot: int | None) -> Node:
        """Return the node that serves a slot, or any node.

        Raises:
            redis.ConnectionError, redis.TimeoutError: it is known not to answer.
        """
        self.refresh()
        node = self.topology.owner(slot)
        self.check(node)
        return node

    def check(self, node: Node) -> None:
        """Let a node that has failed prove that it answers, soon, before anything is entrusted to it."""
        if not node.failed:
            return
        if time.monotonic() < node.retry_at:
            self.topology.is_stale = True
            raise redis.ConnectionError(f"{node.name} of the cluster did not answer, and is tried again soon")
        try:
            with contextlib.closing(self._open(node.address, **PROBE)) as probe:
                probe.ping()
        except BROKEN as error:
            self.topology.fail(node, error)
            raise
        node.client.connection_pool.disconnect(inuse_connections=False)
        node.failed = False

    def refresh(self) -> None:
        """Read the slot map again, if a reply did not fit it."""
        if not self.topology.must_look():
            return
        with self._refreshing:
            if not self.topology.must_look():
                return  # another thread has
            failure: RedisError | None = None
            for address in self.topology.refresh_candidates():
                try:
                    with contextlib.closing(self._open(address, **PROBE)) as source:
                        left = self.topology.apply_map(source.execute_command("CLUSTER", "SLOTS"), address)
                except (*BROKEN, ClusterDownError) as error:
                    failure = error
                except ResponseError as error:
                    refuse_single(error, address)
                    raise
                else:
                    for node in left:
                        node.client.connection_pool.disconnect(inuse_connections=False)
                    return
            self.topology.looked_in_vain()
            raise failure or redis.ConnectionError("no node of the cluster is known")

    def _is_replaced(self, address: Address) -> bool:
        """Ask the others about a node that is silent."""
        self.topology.suspect(address)
        try:
            self.refresh()
        except RedisError:
            return False
        return not self.topology.serves(address)
