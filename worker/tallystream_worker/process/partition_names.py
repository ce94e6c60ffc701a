"""Finds and removes the keys of a partition, in bounded steps; an interrupted removal can be run again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tallystream.storage.keys import FIRST_TOPIC

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import redis

    from tallystream.storage.keys import PartitionKeys

_STEP: Final = 500
"""Keys that one command removes at most."""

_OF_A_LATER_TOPIC: Final = re.compile(rb"l\d+:")
"""What follows the prefix of the first topic in the names of the keys of a later one."""


def partition_names(client: redis.Redis, keys: PartitionKeys) -> Iterator[tuple[bytes, bytes]]:
    """Yield the full name of each key of a partition in its topic, and the name without the prefix.

    The names are found by SCAN, so a key may come twice; if a node fails over or a slot moves meanwhile, keys may be
    missing. The keys of all generations are among them. For partition 0 of a later topic than the first, so are the
    keys `meta` and `rules` of the topic. A `redis.RedisError` is raised while the names are iterated.
    """
    prefix = keys.prefix.encode()
    pattern = keys.prefix.translate({ord(c): f"\\{c}" for c in "*?[]\\"}) + "*"
    for name in client.scan_iter(match=pattern, count=1000):
        below = name.removeprefix(prefix)
        if keys.topic != FIRST_TOPIC or not _OF_A_LATER_TOPIC.match(below):
            yield name, below


def unlink_all(client: redis.Redis, names: Iterable[bytes]) -> int:
    """Remove keys of one partition, at most 500 with one command, and return how many existed.

    After an error of a command (`redis.RedisError`), the keys of the commands before are removed.
    """
    removed = 0
    page: list[bytes] = []
    for name in names:
        page.append(name)
        if len(page) == _STEP:
            removed += client.unlink(*page)
            page = []
    return removed + client.unlink(*page) if page else removed
