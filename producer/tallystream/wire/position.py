"""How far counting has come in a partition: what `as_of`, `lag` and read-your-writes rest on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from redis.exceptions import ResponseError

from tallystream.client.replies import is_stream_or_group_missing
from tallystream.wire.stream_id import before, parse_id

if TYPE_CHECKING:
    from tallystream.storage.keys import PartitionKeys

Command = tuple[Any, ...]


class CountingPosition(msgspec.Struct, frozen=True):
    """Where a partition's counting stands.

    Attributes:
        as_of: Stream ID up to which every entry is counted, `0-0` before the first.
        pending: Entries delivered to a worker and not acknowledged.
        lag: Entries not counted yet, pending ones included; `None` where the server cannot tell.
    """

    as_of: str
    pending: int
    lag: int | None


def position_commands(keys: PartitionKeys) -> list[Command]:
    """Return the commands whose replies `parse_position` reads.

    Values that are read after these commands are complete up to the position found, or further.
    """
    return [("XINFO GROUPS", keys.stream), ("XPENDING", keys.stream, keys.group)]


def parse_position(replies: list[Any], group_name: str) -> CountingPosition:
    """Read the replies to `position_commands` for that group; a stream or group that does not exist yet is at `0-0`."""
    groups, pending_summary = replies
    if isinstance(groups, ResponseError):
        if is_stream_or_group_missing(groups):
            return CountingPosition("0-0", 0, 0)
        raise groups
    group = next((group for group in groups if group["name"] == group_name.encode()), None)
    if group is None:
        return CountingPosition("0-0", 0, None)  # a stream whose entries nobody counts: XPENDING says NOGROUP
    if isinstance(pending_summary, ResponseError):
        raise pending_summary
    delivered = parse_id(group["last-delivered-id"].decode())
    pending = int(pending_summary["pending"])
    if pending_summary["min"] is not None:
        # The two replies are of two moments: the lower of both is true of each.
        delivered = min(delivered, before(parse_id(pending_summary["min"].decode())))
    lag = None if group["lag"] is None else int(group["lag"]) + pending
    return CountingPosition(f"{delivered[0]}-{delivered[1]}", pending, lag)
