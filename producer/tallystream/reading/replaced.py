"""Checks whether a query has read a topic or generation that is not live any more, or a partition that has lost a key.

A reader keeps the deployment for a second. If its topic or generation is dropped meanwhile, all its counters look like
0. The same happens if a partition has lost its keys. So each query ends with a check: it reads, after everything else
of a partition, which generation is live there, and whether the keys exist that every partition has.
"""

from __future__ import annotations

from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import KeyLost
from tallystream.reading.query import Answer, Query, raise_on_error
from tallystream.reading.reach import Unreached, partitions_in, unreached_among
from tallystream.storage.deployment_hash import parse_live
from tallystream.storage.lost_keys import has_sentinels, lost_commands, parse_lost, sentinels_command

if TYPE_CHECKING:
    from tallystream.deployment import Deployment
    from tallystream.storage.keys import PartitionKeys


class _Replaced(Enum):
    REPLACED = 0


REPLACED: Final = _Replaced.REPLACED
"""The answer of a checked query if a partition that it read has another live generation, is closed, is being restored,
or has lost a key."""

CHECKS: Final = frozenset(("GET", "EXISTS"))
"""The commands of a check; no query for counters has another command of these names."""


def checked(query: Query[Answer], deployment: Deployment) -> Query[Answer | _Replaced | Unreached]:
    """Return the same query, but with another answer if a partition that it reads did not answer, or may not be live.

    The answer is `Unreached` if the node of a partition did not answer one of the commands. It is `REPLACED` if a
    partition may no longer be the live one. That is so if, after the query's own reads, the partition has another live
    generation than in the deployment, is closed, is being restored, or lacks a key that every partition has. The
    partitions are those of the first key of each of the query's commands. With these two answers, the `parse` of the
    query is not called. Each further query that its `parse` returns is checked in the same way. If the deployment is
    not stored, return `query` itself: it has no partitions to check.

    The `parse` of the returned query raises `DamagedValue` if the live generation of a partition has a value that
    tallystream never writes.

    Args:
        query: The query.
        deployment: The deployment that the query was made for.
    """
    if not deployment.is_stored:
        return query  # type: ignore[return-value]  # an answer is an answer or REPLACED
    partitions = [deployment.layout.keys[number] for number in partitions_in(query)]

    def parse(replies: list[Any]) -> Any:
        if (unreached := unreached_among(commands, replies)) is not None:
            return unreached
        end = len(query.commands)
        checks = list(map(raise_on_error, replies[end:]))
        if not all(map(_is_live, partitions, checks[::2], checks[1::2])):
            return REPLACED
        answer = query.parse(replies[:end])
        return checked(answer, deployment) if isinstance(answer, Query) else answer

    checks = [command for keys in partitions for command in (("GET", keys.live), sentinels_command(keys))]
    commands = [*query.commands, *checks]
    return Query(commands, parse, query.atomic)


def unless_lost(query: Query[Answer], deployment: Deployment) -> Query[Answer | Unreached]:
    """Return the same query, but running it raises `KeyLost` if a partition that it reads has lost a key.

    The answer is `Unreached` if the node of a partition did not answer one of the commands.

    The keys are the sequences, the live generation, the ledger of the topic, and, in a later generation, its own
    ledger. If one is lost, counters may be lost too, and a figure without them would be too small. If one is missing,
    `parse` returns a further query, whose `parse` raises the error. If no key is lost any more, or the topic was
    dropped, that one returns `query`, which then runs without this check.

    As in `checked`, the partitions are those of the first key of each command, and further queries of `query` are
    checked, too. A partition may have another live generation, or be closed. If the deployment is not stored, return
    `query` itself.

    Args:
        query: The query.
        deployment: The deployment that the query was made for.
    """
    if not deployment.is_stored:
        return query  # type: ignore[return-value]  # an answer is an answer or Unreached
    partitions = [deployment.layout.keys[number] for number in partitions_in(query)]

    def parse(replies: list[Any]) -> Any:
        if (unreached := unreached_among(commands, replies)) is not None:
            return unreached
        end = len(query.commands)
        found = map(raise_on_error, replies[end:])
        lacking = [keys for keys, reply in zip(partitions, found, strict=True) if not has_sentinels(keys, reply)]
        if lacking:
            return _name_lost(lacking, query)
        answer = query.parse(replies[:end])
        return unless_lost(answer, deployment) if isinstance(answer, Query) else answer

    commands = [*query.commands, *map(sentinels_command, partitions)]
    return Query(commands, parse, query.atomic)


def _name_lost(partitions: list[PartitionKeys], query: Query[Answer]) -> Query[Answer]:
    """Return a query whose `parse` raises `KeyLost` for the first lost key of the given partitions.

    If no key is lost, because the partitions were repaired meanwhile or their topic was dropped, it returns `query`.
    """
    commands = [lost_commands(keys) for keys in partitions]

    def parse(replies: list[Any]) -> Query[Answer]:
        rest = iter(map(raise_on_error, replies))
        for keys, own in zip(partitions, commands, strict=True):
            if (lost := parse_lost(keys, list(islice(rest, len(own))))) is not None:
                raise KeyLost(lost)
        return query

    return Query([command for own in commands for command in own], parse, atomic=True)


def _is_live(keys: PartitionKeys, live: bytes | None, found: int) -> bool:
    if live is None or not has_sentinels(keys, found):
        return False
    return parse_live(live, keys.live) == (keys.generation, True)
