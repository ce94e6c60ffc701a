"""A pipeline to a cluster: each node gets its share of the commands; all shares are sent before a reply is read."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from redis.client import Pipeline
from redis.exceptions import MovedError, RedisError, ResponseError

from tallystream.client.cluster.slots import CommandPart, guarded, least, parts_of, to_send_again
from tallystream.client.cluster.topology import PATIENCE, PAUSE, Node
from tallystream.client.replies import BROKEN, NOT_EXECUTED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import redis

    from tallystream.client.cluster.router import Router
    from tallystream.client.cluster.slots import Command

    Staged = tuple[Command, dict[str, Any]]


class ClusterPipeline(Pipeline):
    """A pipeline with the interface of redis-py's, whose commands go to the nodes of their keys; `watch` does not work.

    Args:
        client: Client of the cluster.
        router: Finds the node of each slot.
        transaction: Whether the commands of each slot are executed in one transaction.
    """

    def __init__(self, client: redis.Redis, router: Router, *, transaction: bool) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, None)
        self._client = client
        self._router = router
        self._is_atomic = transaction

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the commands of this pipeline, empty it, and return the replies in the order of the commands.

        In a transaction, WAIT and WAITAOF are not sent, and their replies are `None`. Otherwise each node with commands
        of the pipeline gets them after these commands, and the reply is the least of the nodes' replies, or the error
        of a node. A node that answers no command does not count for this reply: its other commands have errors as
        replies. If no node answers, the reply is the first of these errors. If the pipeline has no other command, WAIT
        and WAITAOF are not sent, and the reply is 0.

        A command that was not executed (MOVED, ASK, ...) is sent again if that cannot change the order of writes; a
        transaction that was not executed, as a whole, for 2 seconds. If the pipeline has WAIT or WAITAOF, and is no
        transaction, no command is sent again: the caller gets the errors.

        Args:
            raise_on_error: Whether to raise the first error among the replies; otherwise errors are returned as
                replies.

        Raises:
            redis.ConnectionError, redis.TimeoutError: none of the commands got a reply, so that each of them may or may
                not have been executed; raised also without `raise_on_error`, except by a transaction with WAIT or
                WAITAOF.
            redis.RedisError: the first error among the replies, with `raise_on_error`; other commands may have been
                executed.
            ConfigurationError: a server is not a node of a cluster; commands may have been executed.
            ValueError: a SCAN has no pattern, or its pattern has no hash tag, or only one with a wildcard; nothing was
                sent.
        """
        staged = self.command_stack
        try:
            replies = _Run(self._router, self._client.execute_command, staged).run(transaction=self._is_atomic)
        finally:
            self.reset()
        if raise_on_error and (error := next((each for each in replies if isinstance(each, RedisError)), None)):
            if isinstance(error, ResponseError):
                self.raise_first_error(staged, replies)  # type: ignore[no-untyped-call]  # it names the command
            raise error  # redis-py does not look for errors of connections, which are replies only in a cluster
        return replies


class _Run:
    """One execution of a pipeline.

    Args:
        router: Finds the node of each slot.
        execute: Executes one command on the node of its key; used again for commands that were not executed.
        staged: The commands, each with its options.
    """

    def __init__(self, router: Router, execute: Callable[..., Any], staged: Sequence[Staged]) -> None:
        self._router = router
        self._execute = execute
        self._staged = staged
        self._commands = [guarded(command) for command, _ in staged]
        self._replies: list[Any] = [None] * len(staged)

    def run(self, *, transaction: bool) -> list[Any]:
        """Send the commands to the nodes of their keys, and return the replies in the order of the commands.

        An error of a command is its reply. In a transaction, WAIT and WAITAOF are not sent, and their replies are
        `None`. See `ClusterPipeline.execute` for these two commands without a transaction, and for what is sent again.

        Args:
            transaction: Whether the commands of each slot are executed in one transaction (MULTI). Commands of two
                slots are never in one.

        Raises:
            redis.ConnectionError, redis.TimeoutError: none of the commands got a reply; not raised by a transaction
                with WAIT or WAITAOF.
            ConfigurationError: a server is not a node of a cluster; commands may have been executed.
            ValueError: a SCAN has no pattern, or its pattern has no hash tag, or only one with a wildcard; nothing was
                sent.
        """
        parts, following = parts_of(self._commands)
        replies = self._replies
        if transaction:
            for part in parts:
                self._run_atomic(part)
        else:
            self._run_parts(parts, following)
        if replies and all(map(_is_broken, replies)):
            raise replies[0]
        return replies

    def _run_parts(self, parts: list[CommandPart], following: list[int]) -> None:
        commands, staged, replies = self._commands, self._staged, self._replies
        by_node: dict[Node, list[int]] = {}
        for part in parts:
            try:
                by_node.setdefault(self._router.owner(part.slot), []).extend(part.places)
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
                    self._router.topology.fail(each.node, each.error)
        finally:
            for each in sent:
                each.release()
        for place, answers in waits.items():
            # A node that has not answered does not count here: its other commands already have errors as replies.
            replies[place] = least(answers) if answers else next(filter(_is_error, replies), 0)
        if not following:  # a WAIT would not cover the commands that are sent again after it
            for part in parts:
                self._run_again(part)
        elif any(isinstance(reply, MovedError) for reply in replies):
            self._router.topology.is_stale = True

    def _run_again(self, part: CommandPart) -> None:
        commands, staged, replies = self._commands, self._staged, self._replies
        if any(isinstance(replies[place], NOT_EXECUTED) for place in part.places):
            self._router.topology.is_stale = True
        for place in to_send_again(commands, part, replies):
            try:
                replies[place] = self._execute(*staged[place][0], **staged[place][1])
            except ResponseError as error:
                replies[place] = error
                if isinstance(error, NOT_EXECUTED):
                    _fill(replies, part.places[part.places.index(place) :], error)
                    return
            except RedisError as error:
                _fill(replies, part.places[part.places.index(place) :], error)
                return

    def _run_atomic(self, part: CommandPart) -> None:
        commands, staged, replies = self._commands, self._staged, self._replies
        deadline, find = time.monotonic() + PATIENCE, self._router.owner
        while True:
            try:
                node = find(part.slot)
            except RedisError as error:
                _fill(replies, part.places, error)
                return
            try:
                with node.client.pipeline(transaction=True) as pipeline:
                    for place in part.places:
                        pipeline.execute_command(*commands[place], **staged[place][1])
                    found = pipeline.execute(raise_on_error=False)
            except NOT_EXECUTED as error:
                if time.monotonic() < deadline:
                    self._router.topology.apply_redirect(part.slot, error, node)
                    time.sleep(PAUSE)
                    find = partial(self._router.await_owner, deadline=deadline)
                    continue
                _fill(replies, part.places, error)
            except RedisError as error:
                if isinstance(error, BROKEN):
                    self._router.topology.fail(node, error)
                _fill(replies, part.places, error)
            else:
                for place, reply in zip(part.places, found, strict=True):
                    replies[place] = reply
            return


class _Sent:
    """One node's share of a pipeline, on a connection that no other share uses: `write`, `read`, then `release` it.

    Args:
        node: The node.
        places: Places in the pipeline of the commands to send, in order.
        commands: The commands of the whole pipeline.

    Attributes:
        node: The node.
        error: The error that ended the connection; `None` if there is none.
    """

    def __init__(self, node: Node, places: list[int], commands: list[Command]) -> None:
        self.node = node
        self.error: RedisError | None = None
        self._places = places
        self._commands = commands
        self._connection: Any = None
        self._has_answered = False

    def write(self) -> None:
        """Send the commands without reading replies; store a `redis.RedisError` in `error` instead of raising it.

        Any other error is raised.
        """
        try:
            self._connection = self.node.client.connection_pool.get_connection()
            self._connection.send_packed_command(
                self._connection.pack_commands([self._commands[place] for place in self._places])
            )
        except RedisError as error:
            self.error = error

    def read(self, staged: Sequence[Staged], replies: list[Any], waits: dict[int, list[Any]]) -> None:
        """Read the reply to each command into `replies`, or into `waits` if its place is there. Call it after `write`.

        After a connection error, that error is the reply to each remaining command. A node that has not answered any
        command adds nothing to `waits`.

        Args:
            staged: The commands of the whole pipeline, each with its options.
            replies: By place in the pipeline, the reply; changed here.
            waits: By place of each WAIT and WAITAOF, the replies of the nodes; changed here.
        """
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
                self._has_answered = self._has_answered or self.error is None
            if place in waits:
                if self._has_answered:
                    waits[place].append(reply)
            else:
                replies[place] = reply

    def release(self) -> None:
        """Return the connection to its pool; if replies are unread, the pool closes it before its next use.

        Call it exactly once, also if `write` or `read` was not called; it does nothing if no connection was made.
        """
        if self._connection is not None:
            self.node.client.connection_pool.release(self._connection)


def _is_broken(reply: Any) -> bool:
    return isinstance(reply, BROKEN)


def _is_error(reply: Any) -> bool:
    return isinstance(reply, RedisError)


def _fill(replies: list[Any], places: Sequence[int], error: RedisError) -> None:
    for place in places:
        replies[place] = error
