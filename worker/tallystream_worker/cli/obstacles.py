"""States why entries of a partition are not counted: its stream is lost, or the consumer group of the workers is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from tallystream.client.replies import is_key_missing
from tallystream.errors import ConsumerGroupMissing, KeyLost
from tallystream.reading.query import Query

if TYPE_CHECKING:
    from tallystream.storage.keys import Layout


def query_obstacles(layout: Layout) -> Query[list[str]]:
    """Return a query whose answer has a text for each partition without its stream or group, with what mends it.

    A partition without a stream has no text if no event was ever appended to it. One that cannot be read, for example
    because its node of a cluster does not answer, has none either.
    """

    def parse(replies: list[Any]) -> list[str]:
        found = []
        for keys, groups, gated in zip(layout.keys, replies[::2], replies[1::2], strict=True):
            if isinstance(groups, RedisError):
                if is_key_missing(groups) and not isinstance(gated, RedisError) and int(gated or 0):
                    found.append(str(KeyLost(keys.stream)))
            elif all(group["name"] != keys.group.encode() for group in groups):
                found.append(str(ConsumerGroupMissing(keys.stream, keys.group)))
        return found

    commands: list[tuple[Any, ...]] = []
    for keys in layout.keys:
        commands += [("XINFO GROUPS", keys.stream), ("HGET", keys.topic_ledger, "entries:gated")]
    return Query(commands, parse)
