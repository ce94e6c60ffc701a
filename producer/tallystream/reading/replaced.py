"""Notices that a query has read a topic or generation that is not live any more.

A reader keeps the deployment for a second. If its topic or generation is dropped meanwhile, all its counters look like
0. So each query ends with a check: it reads, after everything else of a partition, which generation is live there.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from tallystream.reading.query import Answer, Command, Query, raise_on_error
from tallystream.storage.deployment_hash import parse_live
from tallystream.storage.keys import FIRST, FIRST_TOPIC

if TYPE_CHECKING:
    from tallystream.storage.keys import Layout, PartitionKeys


class _Replaced(Enum):
    REPLACED = 0


REPLACED: Final = _Replaced.REPLACED
"""The answer of a checked query if a partition that it read has another live generation, is closed, or is being
restored."""

CHECK: Final = "GET"
"""The command of a check; no query for counters has another command of this name."""


def checked(query: Query[Answer], layout: Layout) -> Query[Answer | _Replaced]:
    """Return the same query, but with the answer `REPLACED` if a partition that it reads may no longer be the live one.

    That is so if, after the query's own reads, the partition has another live generation than in `layout`, is closed,
    or is being restored. The partitions are those in the keys of the query's commands. Each further query that its
    `parse` returns is checked in the same way.

    Args:
        query: The query.
        layout: The layout that the query was made for.
    """
    numbers = sorted({number for command in query.commands if (number := _partition(command)) is not None})
    keys = [layout.keys[number] for number in numbers]

    def parse(replies: list[Any]) -> Any:
        end = len(query.commands)
        if not all(map(_is_live, keys, map(raise_on_error, replies[end:]))):
            return REPLACED
        answer = query.parse(replies[:end])
        return checked(answer, layout) if isinstance(answer, Query) else answer

    return Query([*query.commands, *((CHECK, each.live) for each in keys)], parse, query.atomic)


def _is_live(keys: PartitionKeys, live: bytes | None) -> bool:
    if live is None:
        return keys.topic == FIRST_TOPIC and keys.generation == FIRST
    return parse_live(live) == (keys.generation, True)


def _partition(command: Command) -> int | None:
    """Return the number of the partition that a command reads, by the tag (see `tag_of`) in its first argument.

    Return `None` if the first argument is no key with such a tag; a key that comes later is not found.
    """
    key = command[1] if len(command) > 1 else ""
    number = key.partition("{p")[2].partition(".")[0] if isinstance(key, str) else ""
    return int(number) if number.isdecimal() else None
