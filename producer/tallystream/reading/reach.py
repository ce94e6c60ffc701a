"""Reads in part: a query leaves out the partitions whose node does not answer, and its answer names them.

If no partition that a query needs can be read, there is no answer but the error `NodeUnreachable`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tallystream.client.replies import is_unreachable
from tallystream.errors import NodeUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from redis.exceptions import RedisError

    from tallystream.deployment import Deployment
    from tallystream.reading.query import Answer, Command, Query, Question
    from tallystream.storage.keys import Layout

    Locate = Callable[[str], str | None]
    """Returns the address of the node that serves a key; `None` if no node is known to serve it."""


class UnreachablePartition(msgspec.Struct, frozen=True):
    """A partition that an answer lacks, because its node does not answer.

    Attributes:
        stream: The name of the stream of the partition.
        node: The address of its node in the cluster, as `host:port`; `null` if no node is known to serve the partition.
    """

    stream: str
    node: str | None


class Unreached(msgspec.Struct, frozen=True):
    """The answer of a checked query some of whose partitions could not be read: ask again without them.

    Attributes:
        errors: By number of each such partition, the first error among its replies.
    """

    errors: Mapping[int, RedisError]

    def beyond(self, known: Deployment) -> dict[int, str]:
        """Return, by number, the error texts of the partitions that `known` does not have as unreachable.

        Raises:
            redis.RedisError: there are none, so to ask again would not help; it is the first of `errors`.
        """
        found = {number: str(error) for number, error in self.errors.items() if number not in known.unreachable}
        if not found:
            raise next(iter(self.errors.values()))
        return found


def unreached_among(commands: Sequence[Command], replies: Iterable[Any]) -> Unreached | None:
    """Return the partitions with a command that their node did not answer or could not execute; `None` for none.

    A node cannot execute a command while it loads its data, for example: see `is_unreachable`.
    """
    errors: dict[int, RedisError] = {}
    for command, reply in zip(commands, replies, strict=True):
        if isinstance(reply, Exception) and is_unreachable(reply) and (number := partition_in(command)) is not None:
            errors.setdefault(number, reply)
    return Unreached(errors) if errors else None


def partitions_in(query: Query[Any]) -> list[int]:
    """Return the numbers of the partitions that a query reads, each once, in ascending order.

    They are those of the first argument of each of its commands; further queries that its `parse` returns may read
    others.
    """
    return sorted({number for command in query.commands if (number := partition_in(command)) is not None})


def partition_in(command: Command) -> int | None:
    """Return the number of the partition that a command reads, by the tag (see `tag_of`) in its first argument.

    Return `None` if the first argument is no key with such a tag; a key that comes later is not found.
    """
    key = command[1] if len(command) > 1 else ""
    number = key.partition("{p")[2].partition(".")[0] if isinstance(key, str) else ""
    return int(number) if number.isdecimal() else None


def within_reach(question: Question[Answer], deployment: Deployment, locate: Locate) -> Query[Answer]:
    """Return the query of a question without the unreachable partitions of a deployment that it would read.

    The answer names them: it must have a method `lacking`, as `Figure` has, if the question reads several partitions.

    Args:
        question: Takes a deployment, and returns the query.
        deployment: The deployment, with the partitions that are known to be unreachable.
        locate: Finds the nodes of these partitions.

    Raises:
        NodeUnreachable: the query would read unreachable partitions only.

    Any error of `question` is raised too.
    """
    whole = question(deployment)
    if not deployment.unreachable:
        return whole
    wanted = partitions_in(whole)
    lost = [number for number in wanted if number in deployment.unreachable]
    if not lost:
        return whole
    named = named_partitions(deployment.layout, lost, locate)
    if len(lost) == len(wanted):
        raise NodeUnreachable({each.stream: each.node for each in named}, deployment.unreachable[lost[0]])
    return question(deployment.in_reach).then(lambda answer: answer.lacking(named))  # type: ignore[attr-defined]


def named_partitions(layout: Layout, numbers: Collection[int], locate: Locate) -> list[UnreachablePartition]:
    """Return the streams and the nodes of some partitions, by ascending number."""
    streams = [layout.keys[number].stream for number in sorted(numbers)]
    return [UnreachablePartition(stream, locate(stream)) for stream in streams]
