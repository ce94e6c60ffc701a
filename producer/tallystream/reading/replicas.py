"""Waits until a replica has the counting that a reader has seen, with commands that only read.

A primary sends its writes to its replicas in one order. So a replica that has reached the offset which the primary had
when a reader saw an entry counted has that counting too. `INFO replication` of the primary has both offsets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tallystream.client.replies import is_unreachable
from tallystream.errors import ConfigurationError
from tallystream.reading.query import Command, Query, raise_on_error
from tallystream.wire.position import parse_position, position_commands

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tallystream.storage.keys import Layout, PartitionKeys
    from tallystream.wire.position import CountingPosition


class ReplicaBarrier:
    """Finds out, over several queries, whether a replica of each node has the counting of its partitions.

    Args:
        is_counted: Returns whether a partition at a position has counted everything that is waited for.
    """

    def __init__(self, is_counted: Callable[[CountingPosition], bool]) -> None:
        self._is_counted = is_counted
        self._marks: dict[str, tuple[str, int]] = {}

    def query(self, layout: Layout, numbers: Sequence[int]) -> Query[bool]:
        """Return a query for whether, for each of the given partitions, a replica of its node has the counting.

        The answer is also `False` if a partition has not counted everything, for example after a failover, or if its
        node does not answer. It is `True` if no partition is given. Send the query again until it is `True`.

        Raises:
            redis.RedisError: a reply is another error, such as a missing right to INFO; raised by the query's `parse`.
        """
        partitions = [layout.keys[number] for number in numbers]
        commands: list[Command] = []
        for keys in partitions:
            # INFO is between two commands of the partition, so it goes to its node, after the position was read there.
            commands += [*position_commands(keys), ("INFO", "replication"), ("EXISTS", keys.live)]

        def parse(replies: list[Any]) -> bool:
            if any(map(is_unreachable, replies)):
                return False
            found = [
                self._has(keys, parse_position(replies[first : first + 2], keys.group), replies[first + 2])
                for first, keys in zip(range(0, len(replies), 4), partitions, strict=True)
            ]
            return all(found)  # after all of them are marked

        return Query(commands, parse)

    def _has(self, keys: PartitionKeys, position: CountingPosition, reply: Any) -> bool:
        info: Mapping[str, Any] = raise_on_error(reply)
        if not self._is_counted(position):
            self._marks.pop(keys.stream, None)
            return False
        history, offset = str(info["master_replid"]), int(info["master_repl_offset"])
        marked, wanted = self._marks.get(keys.stream, ("", 0))
        if marked != history:  # first seen, or another primary
            wanted = offset
            self._marks[keys.stream] = history, wanted
        replicas = [value for name, value in info.items() if name.startswith("slave") and isinstance(value, dict)]
        return any(each.get("state") == "online" and int(each["offset"]) >= wanted for each in replicas)


def awaits_replica(durability: str) -> bool:
    """Return whether a reader with this durability waits for a replica.

    Raises:
        ConfigurationError: `durability` is not `memory` or `replica`.
    """
    if durability not in ("memory", "replica"):
        raise ConfigurationError(
            f"the durability of a reader must be memory or replica, not {durability!r}: only a program that writes can "
            "find out what is on the server's disk"
        )
    return durability == "replica"
