"""The same client of a cluster as `cluster` has, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import redis.asyncio
from redis.asyncio.client import Pipeline
from redis.exceptions import ClusterDownError, MovedError, RedisError, ResponseError, TryAgainError

from tallystream.client.cluster.slots import (
    CommandPart,
    goes_everywhere,
    guarded,
    key_of,
    parts_of,
    slot_of,
    to_send_again,
)
from tallystream.client.cluster.topology import PATIENCE, PAUSE, PROBE, Address, Node, Topology, refuse_single
from tallystream.client.replies import BROKEN, NOT_EXECUTED, is_asking

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tallystream.client.cluster.slots import Command

    Opener = Callable[..., redis.asyncio.Redis]
    Staged = tuple[Command, dict[str, Any]]
    AsyncNode = Node[redis.asyncio.Redis]


class AsyncClusterClient(redis.asyncio.Redis):
    """Sends each command to the node that serves its slot; for one event loop.

    Args:
        seeds: Some of the nodes.
        open_node: Makes the client of one node, with other settings where some are given.
    """

    def __init__(self, seeds: Sequence[Address], open_node: Opener) -> None:
        self._open = open_node
        self._topology: Topology[redis.asyncio.Redis] = Topology(seeds, open_node)
        self._looking = asyncio.Lock()
        super().__init__(connection_pool=redis.asyncio.ConnectionPool(protocol=3, legacy_responses=False))

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute a command; see `tallystream.client.cluster.threaded.ClusterClient`."""
        key = key_of(args)
        if key is None:
            if goes_everywhere(args):
                return await self._everywhere(args, options)
            return await self._send(await self._owner(None), args, options)
        command, slot = guarded(args), slot_of(key)
        deadline = time.monotonic() + PATIENCE
        node, asking, attempts = await self._owner(slot), False, 0
        while True:
            try:
                return await self._send(node, command, options, asking=asking)
            except NOT_EXECUTED as error:
                if isinstance(error, TryAgainError) and command[0] == "MGET":
                    return [await self.execute_command("GET", each) for each in command[1:]]
                attempts += 1
                if time.monotonic() >= deadline:
                    raise
                if asking := is_asking(error):
                    node = self._topology.node(self._topology.target(error, node))
                    continue
                self._topology.apply_redirect(slot, error, node)
                if attempts > 1 or not isinstance(error, MovedError):
                    await asyncio.sleep(PAUSE)
                node = await self._owner(slot)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:  # noqa: ARG002  # redis-py's
        """Return a pipeline; with `transaction`, what it holds is of one moment slot by slot."""
        return _ClusterPipeline(self, transaction=transaction)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: ARG002  # redis-py's word
        """Give the connections to all nodes back."""
        for node in self._topology.nodes:
            await node.client.aclose()

    # -- one command ------------------------------------------------------------------------------------

    async def _send(self, node: AsyncNode, command: Command, options: dict[str, Any], *, asking: bool = False) -> Any:
        try:
            if not asking:
                return await node.client.execute_command(*command, **options)
            async with node.client.pipeline(transaction=False) as pipeline:
                pipeline.execute_command("ASKING")
                pipeline.execute_command(*command, **options)
                _, reply = await pipeline.execute(raise_on_error=False)
        except BROKEN as error:
            self._topology.fail(node, error)
            raise
        if isinstance(reply, RedisError):
            raise reply
        return reply

    async def _owner(self, slot: int | None) -> AsyncNode:
        await self._look()
        node = self._topology.owner(slot)
        await self._make_sure(node)
        return node

    async def _everywhere(self, command: Command, options: dict[str, Any]) -> Any:
        """Ask all that can be reached."""
        await self._look()
        replies: list[Any] = []
        failure: RedisError | None = None
        for node in self._topology.primaries:
            try:
                await self._make_sure(node)
                replies.append(await self._send(node, command, options))
            except BROKEN as error:
                failure = error
        if not replies:
            raise failure or redis.ConnectionError("no node of the cluster is known")
        return replies[0]

    async def _make_sure(self, node: AsyncNode) -> None:
        if not node.failed:
            return
        if time.monotonic() < node.retry_at:
            self._topology.is_stale = True
            raise redis.ConnectionError(f"{node.name} of the cluster did not answer, and is tried again soon")
        try:
            async with contextlib.aclosing(self._open(node.address, **PROBE)) as probe:
                await probe.ping()
        except BROKEN as error:
            self._topology.fail(node, error)
            raise
        await node.client.connection_pool.disconnect(inuse_connections=False)
        node.failed = False

    async def _look(self) -> None:
        """See who serves what, where something did not fit."""
        if not self._topology.must_look():
            return
        async with self._looking:
            if not self._topology.must_look():
                return  # another task has
            failure: RedisError | None = None
            for address in self._topology.refresh_candidates():
                try:
                    async with contextlib.aclosing(self._open(address, **PROBE)) as informant:
                        left = self._topology.apply_map(await informant.execute_command("CLUSTER", "SLOTS"), address)
                except (*BROKEN, ClusterDownError) as error:
                    failure = error
                except ResponseError as error:
                    refuse_single(error, address)
                    raise
                else:
                    for node in left:
                        await node.client.connection_pool.disconnect(inuse_connections=False)
                    return
            self._topology.looked_in_vain()
            raise failure or redis.ConnectionError("no node of the cluster is known")

    # -- pipelines --------------------------------------------------------------------------------------

    async def run(self, staged: Sequence[Staged], *, transaction: bool) -> list[Any]:
        """Send commands, each to its node, and return their replies in order; an error is a reply.

        Raises:
            redis.ConnectionError, redis.TimeoutError: no node answered at all.
        """
        commands = [guarded(command) for command, _ in staged]
        parts, _ = parts_of(commands)
        replies: list[Any] = [None] * len(commands)
        if transaction:
            await asyncio.gather(*(self._run_atomic(part, staged, replies) for part in parts))
        else:
            by_node: dict[AsyncNode, list[int]] = {}
            for part in parts:
                try:
                    by_node.setdefault(await self._owner(part.slot), []).extend(part.places)
                except RedisError as error:
                    _fill(replies, part.places, error)
            shares = by_node.items()
            await asyncio.gather(*(self._run_share(node, sorted(places), staged, replies) for node, places in shares))
            for part in parts:
                await self._run_again(part, commands, staged, replies)
        if replies and all(isinstance(reply, BROKEN) for reply in replies):
            raise replies[0]
        return replies

    async def _run_share(
        self,
        node: AsyncNode,
        places: list[int],
        staged: Sequence[Staged],
        replies: list[Any],
        *,
        transaction: bool = False,
    ) -> None:
        try:
            async with node.client.pipeline(transaction=transaction) as pipeline:
                for place in places:
                    pipeline.execute_command(*guarded(staged[place][0]), **staged[place][1])
                found = await pipeline.execute(raise_on_error=False)
        except NOT_EXECUTED:
            raise
        except RedisError as error:
            if isinstance(error, BROKEN):
                self._topology.fail(node, error)
            _fill(replies, places, error)
        else:
            for place, reply in zip(places, found, strict=True):
                replies[place] = reply

    async def _run_again(
        self, part: CommandPart, commands: list[Command], staged: Sequence[Staged], replies: list[Any]
    ) -> None:
        if any(isinstance(replies[place], NOT_EXECUTED) for place in part.places):
            self._topology.is_stale = True
        for place in to_send_again(commands, part, replies):
            try:
                replies[place] = await self.execute_command(*staged[place][0], **staged[place][1])
            except RedisError as error:
                replies[place] = error
                if isinstance(error, NOT_EXECUTED) or not isinstance(error, ResponseError):
                    _fill(replies, part.places[part.places.index(place) :], error)
                    return

    async def _run_atomic(self, part: CommandPart, staged: Sequence[Staged], replies: list[Any]) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                node = await self._owner(part.slot)
                await self._run_share(node, part.places, staged, replies, transaction=True)
            except NOT_EXECUTED as error:
                if time.monotonic() < deadline:
                    self._topology.apply_redirect(part.slot, error, node)
                    await asyncio.sleep(PAUSE)
                    continue
                _fill(replies, part.places, error)
            except RedisError as error:
                _fill(replies, part.places, error)
            return


class _ClusterPipeline(Pipeline):
    def __init__(self, client: AsyncClusterClient, *, transaction: bool) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, None)
        self._client = client

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        staged: Any = self.command_stack
        try:
            replies = await self._client.run(staged, transaction=self.is_transaction)
        finally:
            await self.reset()  # type: ignore[no-untyped-call]
        if raise_on_error:
            self.raise_first_error(staged, replies)
        return replies


def _fill(replies: list[Any], places: Sequence[int], error: RedisError) -> None:
    for place in places:
        replies[place] = error
