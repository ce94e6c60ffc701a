"""A client of a cluster that is used like a client of one server.

redis-py's own cluster client sends writes again, asks for the keys of each command first, and splits MULTI wrongly.
This one is told everything by the shape of our keys: a partition lies in one slot, and so on one node.

What was not executed (MOVED, ASK, and for a while TRYAGAIN and CLUSTERDOWN) is sent again where that cannot change
the order of what is written; what may have been executed never is: that is for the gates of those who sent it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import redis
from redis.client import Pipeline
from redis.exceptions import ClusterDownError, MovedError, RedisError, ResponseError, TryAgainError

from tallystream.client.cluster.slots import (
    CommandPart,
    goes_everywhere,
    guarded,
    key_of,
    least,
    parts_of,
    slot_of,
    to_send_again,
)
from tallystream.client.cluster.topology import PATIENCE, PAUSE, PROBE, Address, Node, Topology, refuse_single
from tallystream.client.replies import BROKEN, NOT_EXECUTED, is_asking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tallystream.client.cluster.slots import Command

    Opener = Callable[..., redis.Redis]
    Staged = tuple[Command, dict[str, Any]]


class ClusterClient(redis.Redis):
    """Sends each command to the node that serves its slot; safe across threads.

    Args:
        seeds: Some of the nodes.
        open_node: Makes a client of one node, for a question, with other settings where some are given.
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
        self._topology: Topology = Topology(
            seeds, lambda address: open_watched(address, partial(self._is_replaced, address))
        )
        self._looking = threading.Lock()
        super().__init__(connection_pool=_Pools(self._topology))

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
        node, asking, attempts = self._awaited(slot, deadline), False, 0
        while True:
            try:
                return self._send(node, command, options, asking=asking)
            except NOT_EXECUTED as error:
                if isinstance(error, TryAgainError) and command[0] == "MGET":
                    # Some keys are on one node and some on the other, or nowhere: each by itself can be had.
                    return [self.execute_command("GET", each) for each in command[1:]]
                attempts += 1
                node, asking = self._elsewhere(slot, node, error, deadline, attempts)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:  # noqa: ARG002  # redis-py's word
        """Return a pipeline; with `transaction`, what it holds is of one moment slot by slot."""
        return _ClusterPipeline(self, transaction=transaction)

    def scan_iter(self, *args: Any, **options: Any) -> Iterator[Any]:
        """Yield the keys of all nodes."""
        self._look()
        for node in self._topology.primaries:
            yield from node.client.scan_iter(*args, **options)

    def close(self) -> None:
        """Give the connections to all nodes back."""
        for node in self._topology.nodes:
            node.client.close()

    # -- one command ------------------------------------------------------------------------------------

    def _send(self, node: Node, command: Command, options: dict[str, Any], *, asking: bool = False) -> Any:
        try:
            if not asking:
                return node.client.execute_command(*command, **options)
            with node.client.pipeline(transaction=False) as pipeline:
                pipeline.execute_command("ASKING")
                pipeline.execute_command(*command, **options)
                _, reply = pipeline.execute(raise_on_error=False)
        except BROKEN as error:
            self._topology.fail(node, error)
            raise
        if isinstance(reply, RedisError):
            raise reply
        return reply

    def _elsewhere(
        self, slot: int, node: Node, error: ResponseError, deadline: float, attempts: int
    ) -> tuple[Node, bool]:
        """Return where to send next what a node did not execute, and whether it must be told that it was asked for."""
        if time.monotonic() >= deadline:
            raise error
        self._topology.apply_redirect(slot, error, node)
        if is_asking(error):
            return self._topology.node(self._topology.target(error, node)), True
        if attempts > 1 or not isinstance(error, MovedError):
            time.sleep(PAUSE)
        return self._owner(slot), False

    def _without_key(self, command: Command, options: dict[str, Any]) -> Any:
        return self._send(self._owner(None), command, options)

    def _everywhere(self, command: Command, options: dict[str, Any]) -> Any:
        """Ask all that can be reached, so that one node that is away does not keep the others from it."""
        self._look()
        replies: list[Any] = []
        failure: RedisError | None = None
        for node in self._topology.primaries:
            try:
                self._make_sure(node)
                replies.append(self._send(node, command, options))
            except BROKEN as error:
                failure = error
        if not replies:
            raise failure or redis.ConnectionError("no node of the cluster is known")
        return replies[0]

    def _awaited(self, slot: int, deadline: float) -> Node:
        """Return who serves a slot; while it is known to be away, wait for its successor: nothing is sent yet."""
        while True:
            try:
                return self._owner(slot)
            except (*BROKEN, ClusterDownError):
                if time.monotonic() >= deadline:
                    raise
            time.sleep(PAUSE)

    def _owner(self, slot: int | None) -> Node:
        self._look()
        node = self._topology.owner(slot)
        self._make_sure(node)
        return node

    def _make_sure(self, node: Node) -> None:
        """Let a node that has failed prove that it answers, soon, before anything is entrusted to it."""
        if not node.failed:
            return
        if time.monotonic() < node.retry_at:
            self._topology.is_stale = True
            raise redis.ConnectionError(f"{node.name} of the cluster did not answer, and is tried again soon")
        try:
            with contextlib.closing(self._open(node.address, **PROBE)) as probe:
                probe.ping()
        except BROKEN as error:
            self._topology.fail(node, error)
            raise
        node.client.connection_pool.disconnect(inuse_connections=False)
        node.failed = False

    def _look(self) -> None:
        """See who serves what, where something did not fit."""
        if not self._topology.must_look():
            return
        with self._looking:
            if not self._topology.must_look():
                return  # another thread has
            failure: RedisError | None = None
            for address in self._topology.refresh_candidates():
                try:
                    with contextlib.closing(self._open(address, **PROBE)) as informant:
                        left = self._topology.apply_map(informant.execute_command("CLUSTER", "SLOTS"), address)
                except (*BROKEN, ClusterDownError) as error:
                    failure = error
                except ResponseError as error:
                    refuse_single(error, address)
                    raise
                else:
                    for node in left:
                        node.client.connection_pool.disconnect(inuse_connections=False)
                    return
            self._topology.looked_in_vain()
            raise failure or redis.ConnectionError("no node of the cluster is known")

    def _is_replaced(self, address: Address) -> bool:
        """Ask the others about a node that is silent."""
        self._topology.suspect(address)
        try:
            self._look()
        except RedisError:
            return False
        return not self._topology.serves(address)

    # -- pipelines --------------------------------------------------------------------------------------

    def run(self, staged: Sequence[Staged], *, transaction: bool) -> list[Any]:
        """Send commands, each to its node, and return their replies in order; an error is a reply.

        Raises:
            redis.ConnectionError, redis.TimeoutError: no node answered at all.
        """
        commands = [guarded(command) for command, _ in staged]
        parts, following = parts_of(commands)
        replies: list[Any] = [None] * len(commands)
        if transaction:
            for part in parts:
                self._run_atomic(part, commands, staged, replies)
        else:
            self._run_parts(parts, following, commands, staged, replies)
        if replies and all(map(_is_broken, replies)):
            raise replies[0]
        return replies

    def _run_parts(
        self,
        parts: list[CommandPart],
        following: list[int],
        commands: list[Command],
        staged: Sequence[Staged],
        replies: list[Any],
    ) -> None:
        by_node: dict[Node, list[int]] = {}
        for part in parts:
            try:
                by_node.setdefault(self._owner(part.slot), []).extend(part.places)
            except RedisError as error:
                _fill(replies, part.places, error)
        waits: dict[int, list[Any]] = {place: [] for place in following}
        sent = [_Sent(node, sorted(places) + following, commands) for node, places in by_node.items()]
        try:
            for each in sent:
                each.write()
            for each in sent:
                each.read(staged, replies, waits)
                if each.error is not None:
                    self._topology.fail(each.node, each.error)
        finally:
            for each in sent:
                each.release()
        for place, answers in waits.items():
            # A node of which nothing is known answers for nothing: its other replies are errors already.
            replies[place] = least(answers) if answers else next(filter(_is_broken, replies), 0)
        if not following:  # what is sent again later would not be waited for
            for part in parts:
                self._run_again(part, commands, staged, replies)
        elif any(isinstance(reply, MovedError) for reply in replies):
            self._topology.is_stale = True

    def _run_again(
        self, part: CommandPart, commands: list[Command], staged: Sequence[Staged], replies: list[Any]
    ) -> None:
        if any(isinstance(replies[place], NOT_EXECUTED) for place in part.places):
            self._topology.is_stale = True
        for place in to_send_again(commands, part, replies):
            try:
                replies[place] = self.execute_command(*staged[place][0], **staged[place][1])
            except ResponseError as error:
                replies[place] = error
                if isinstance(error, NOT_EXECUTED):
                    _fill(replies, part.places[part.places.index(place) :], error)
                    return
            except RedisError as error:
                _fill(replies, part.places[part.places.index(place) :], error)
                return

    def _run_atomic(
        self, part: CommandPart, commands: list[Command], staged: Sequence[Staged], replies: list[Any]
    ) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                node = self._owner(part.slot)
                with node.client.pipeline(transaction=True) as pipeline:
                    for place in part.places:
                        pipeline.execute_command(*commands[place], **staged[place][1])
                    found = pipeline.execute(raise_on_error=False)
            except NOT_EXECUTED as error:
                if time.monotonic() < deadline:
                    self._topology.apply_redirect(part.slot, error, node)
                    time.sleep(PAUSE)
                    continue
                _fill(replies, part.places, error)
            except RedisError as error:
                if isinstance(error, BROKEN):
                    self._topology.fail(node, error)
                _fill(replies, part.places, error)
            else:
                for place, reply in zip(part.places, found, strict=True):
                    replies[place] = reply
            return


class _Sent:
    """A node's share of a pipeline, on a connection of its own: all are written before the first reply is awaited."""

    def __init__(self, node: Node, places: list[int], commands: list[Command]) -> None:
        self.node = node
        self.error: RedisError | None = None
        self._places = places
        self._commands = commands
        self._connection: Any = None
        self._unread = len(places)
        self._has_answered = False

    def write(self) -> None:
        try:
            self._connection = self.node.client.connection_pool.get_connection()
            self._connection.send_packed_command(
                self._connection.pack_commands([self._commands[place] for place in self._places])
            )
        except RedisError as error:
            self.error = error

    def read(self, staged: Sequence[Staged], replies: list[Any], waits: dict[int, list[Any]]) -> None:
        for place in self._places:
            reply: Any = self.error
            if reply is None:
                try:
                    reply = self.node.client.parse_response(
                        self._connection, self._commands[place][0], **staged[place][1]
                    )
                except ResponseError as error:
                    reply = error
                except RedisError as error:
                    reply = self.error = error
                self._unread -= 1
                self._has_answered = self._has_answered or self.error is None
            if place in waits:
                if self._has_answered:
                    waits[place].append(reply)
            else:
                replies[place] = reply

    def release(self) -> None:
        if self._connection is not None:
            if self._unread or self.error is not None:
                self._connection.disconnect()  # replies that nobody has read must not answer the next question
            self.node.client.connection_pool.release(self._connection)


class _ClusterPipeline(Pipeline):
    def __init__(self, client: ClusterClient, *, transaction: bool) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, None)
        self._client = client
        self._is_atomic = transaction

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        staged = self.command_stack
        try:
            replies = self._client.run(staged, transaction=self._is_atomic)
        finally:
            self.reset()
        if raise_on_error:
            self.raise_first_error(staged, replies)  # type: ignore[no-untyped-call]
        return replies


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


def _is_broken(reply: Any) -> bool:
    return isinstance(reply, BROKEN)


def _fill(replies: list[Any], places: Sequence[int], error: RedisError) -> None:
    for place in places:
        replies[place] = error
