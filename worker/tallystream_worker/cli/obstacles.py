"""States why entries of a partition are not counted: its stream is lost, or the consumer group of the workers is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from tallystream.client.replies import is_key_missing
from tallystream.errors import ConsumerGroupMissing, KeyLost
from tallystream.reading.query import Query

if TYPE_CHECKING:
    from tallystream.storage.keys import Layout, PartitionKeys


@dataclass(frozen=True)
class Obstacle:
    """A reason for which entries of a partition are not counted.

    Attributes:
        text: The reason, and what mends it.
        is_loss: Whether something was lost. `False` if no worker has counted in the partition yet, so that a worker
            creates what is missing.
    """

    text: str
    is_loss: bool


def query_obstacles(layout: Layout) -> Query[list[Obstacle]]:
    """Return a query whose answer has an obstacle for each partition without its stream or group.

    A stream is also lost if there is a new one, which never had as many entries as the ledger states. A partition
    without a stream has no obstacle if its ledger states no entry: none was appended, except plain entries that were
    not counted. One that cannot be read, for example because its node of a cluster does not answer, has none either.
    """

    def parse(replies: list[Any]) -> list[Obstacle]:
        each = zip(layout.keys, replies[::4], replies[1::4], replies[2::4], replies[3::4], strict=True)
        found = (_obstacle(keys, [gated, settled], about, groups) for keys, gated, settled, about, groups in each)
        return [obstacle for obstacle in found if obstacle is not None]

    commands: list[tuple[Any, ...]] = []
    for keys in layout.keys:  # the ledgers first: then a stream that is whole has had as many entries
        commands += [("HGET", keys.topic_ledger, "entries:gated"), ("HGET", keys.ledger, "entries:settled")]
        commands += [("XINFO STREAM", keys.stream), ("XINFO GROUPS", keys.stream)]
    return Query(commands, parse)


def _obstacle(keys: PartitionKeys, ledger: list[Any], about: Any, groups: Any) -> Obstacle | None:
    if any(isinstance(reply, RedisError) for reply in ledger):
        return None
    gated, settled = (int(value or 0) for value in ledger)
    if isinstance(about, RedisError):
        is_lost = is_key_missing(about) and max(gated, settled) > 0
        return Obstacle(str(KeyLost(keys.stream)), is_loss=True) if is_lost else None
    if about["entries-added"] < max(gated, settled):
        return Obstacle(str(KeyLost(keys.stream)), is_loss=True)
    if isinstance(groups, RedisError) or any(group["name"] == keys.group.encode() for group in groups):
        return None
    return Obstacle(str(ConsumerGroupMissing(keys.stream, keys.group)), is_loss=settled > 0)
