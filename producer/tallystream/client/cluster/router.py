"""Finds the node of each slot in a cluster, follows redirects, and detects that nodes fail or were replaced."""

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
from tallystream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tallystream.client.cluster.slots import Command

    Opener = Callable[..., redis.Redis]


class Router:
    """Finds the node for a command, and keeps the slot map current by the replies of the nodes; safe across threads.

    `owner` or `await_owner` returns the node of a slot, `send` sends a command to a node, and `redirect` returns
    the next node if that one did not execute it.

    Args:
        seeds: Addresses of some of the nodes.
        open_node: Opens a client of one node, to probe it or to read the slot map; keyword arguments are settings.
        open_watched: Opens the client of one node that sends commands. While a reply is missing, the client calls the
            second argument again and again, and disconnects if it returns true.

    Attributes:
        topology: The nodes and their slots.
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
        """Send one command to a node and return the reply; `asking` sends ASKING before the command.

        Raises:
            redis.RedisError: an error reply, or an error of the connection. The latter also marks the node as failed,
                and so does the reply LOADING; a refused password, or too many connections in this client's pool, does
                not.
        """
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
        """Return the node to send a command to that `node` did not execute, and whether ASKING must come before it.

        Also record the new node of the slot if the error is MOVED. Wait 50 milliseconds before looking for the next
        node, except after ASK, and except after MOVED in reply to the first attempt.

        Args:
            slot: Slot of the command.
            node: Node that did not execute the command.
            error: Error reply of that node.
            deadline: Monotonic second after which `error` is raised, and no further attempt to find a node is made.
            attempts: How many times the command was sent.

        Raises:
            redis.ResponseError: `error`, because the deadline has passed.
            ConfigurationError, redis.RedisError: the error of `await_owner`, which waits until the deadline.
        """
        if time.monotonic() >= deadline:
            raise error
        self.topology.apply_redirect(slot, error, node)
        if is_asking(error):
            return self.topology.node(self.topology.target(error, node)), True
        if attempts > 1 or not isinstance(error, MovedError):
            time.sleep(PAUSE)
        return self.await_owner(slot, deadline), False

    def await_owner(self, slot: int, deadline: float) -> Node:
        """Return the node that serves a slot, as `owner`; if it fails, try again until the monotonic second `deadline`.

        Trying again is safe, because the command was not sent yet.

        Raises:
            redis.ConnectionError, redis.TimeoutError, ClusterDownError: the last attempt failed after the deadline. A
                refused password is among these errors.
            ConfigurationError, redis.RedisError: any other error of `owner`; raised at once.
        """
        while True:
            try:
                return self.owner(slot)
            except (*BROKEN, ClusterDownError):
                if time.monotonic() >= deadline:
                    raise
            time.sleep(PAUSE)

    def owner(self, slot: int | None) -> Node:
        """Return the node that serves a slot; read the slot map again first, if it is stale.

        If the node is marked as failed, ping it; otherwise return it without a ping. See `refresh` and `check`.

        Args:
            slot: The slot; `None` for any primary, preferably one that is not marked as failed.

        Raises:
            redis.ConnectionError, redis.TimeoutError: no node returned the slot map, or the node that serves the slot
                is marked as failed, and failed less than half a second ago, did not answer a ping, or refused the
                password.
            ClusterDownError: no node is known to serve the slot.
            redis.RedisError: a node refused CLUSTER SLOTS or the ping.
            ConfigurationError: the server is not a node of a cluster.
        """
        self.refresh()
        node = self.topology.owner(slot)
        self.check(node)
        return node

    def check(self, node: Node) -> None:
        """Ping a node that is marked as failed; if it answers, remove the mark and close its idle connections.

        Do nothing for a node that is not marked. If the node does not answer, or failed less than half a second ago,
        mark the slot map as stale.

        Raises:
            redis.ConnectionError, redis.TimeoutError: the node failed less than half a second ago, or does not answer,
                or refuses the password.
            redis.ResponseError: the node refused the ping.
        """
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
        """Read the slot map from the first node that returns one, if the map is stale.

        Do nothing if the map was read within the last 50 milliseconds, or if no node returned one when it was asked for
        in that time: the map may then still be stale. Close the idle connections to nodes that the new map does not
        have.

        Raises:
            ConfigurationError: the server is not a node of a cluster.
            redis.RedisError: no node returned a slot map, or a node refused the command. If no slot map was ever read,
                also the error of an attempt within the last 50 milliseconds.
        """
        if self.topology.must_look():
            with self._refreshing:
                if self.topology.must_look():  # otherwise another thread has looked
                    self._look()
        self.topology.ensure_map()

    def all_primaries(self) -> list[Node]:
        """Read the slot map, also if it does not seem stale, and return the nodes that together serve all slots.

        Raises:
            ClusterDownError: no node is known to serve some slot.
            redis.RedisError: no node returned a slot map, or a node refused the command.
            ConfigurationError: the server is not a node of a cluster.
        """
        with self._refreshing:
            self._look()
        return self.topology.all_primaries()

    def _look(self) -> None:
        failure: RedisError = redis.ConnectionError("no node of the cluster is known")
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
        self.topology.looked_in_vain(failure)
        raise failure

    def _is_replaced(self, address: Address) -> bool:
        """Mark a silent node as failed, read the slot map, and return whether the node serves no slot any more.

        If a map was asked for within the last 50 milliseconds, use the present one. Return `False` if the slot map
        cannot be read.
        """
        self.topology.suspect(address)
        try:
            self.refresh()
        except (RedisError, ConfigurationError):
            return False  # the node may still reply: it alone decides about its command
        return not self.topology.serves(address)
