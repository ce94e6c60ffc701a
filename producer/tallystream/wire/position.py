"""Reads how far a partition has been counted: the source of `as_of`, `lag` and the read barrier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from redis.exceptions import RedisError

from tallystream.client.replies import is_stream_or_group_missing
from tallystream.wire.stream_id import before, parse_id

if TYPE_CHECKING:
    from tallystream.storage.keys import PartitionKeys

Command = tuple[Any, ...]
"""A Redis command: its name, then its arguments."""


class CountingPosition(msgspec.Struct, frozen=True):
    """How far one partition has been counted.

    Attributes:
        as_of: The stream ID up to which every entry is counted, `0-0` before the first.
        pending: The number of entries that were delivered to a worker and not acknowledged.
        lag: The number of entries not counted yet, pending ones included. `None` if the server does not report it, or
            if the stream exists without the group; 0 if there is no stream.
        delivered: The stream ID of the last entry that was delivered to a worker, `0-0` before the first.
    """

    as_of: str
    pending: int
    lag: int | None
    delivered: str = "0-0"


def position_commands(keys: PartitionKeys) -> list[Command]:
    """Return the commands for the counting position of a partition; `parse_position` reads their replies.

    A counter that is read after these commands contains every entry up to the position, and perhaps later ones.
    """
    return [("XINFO GROUPS", keys.stream), ("XPENDING", keys.stream, keys.group)]


def parse_position(replies: list[Any], group_name: str) -> CountingPosition:
    """Return the counting position of a partition.

    If the stream or the group does not exist yet, `as_of` is `0-0`, and `lag` is 0 without a stream, but `None` without
    the group.

    Args:
        replies: The two replies to `position_commands`, in order; an error reply is an element (`redis.ResponseError`).
        group_name: The consumer group that counts the generation.

    Raises:
        redis.RedisError: a reply is an error that does not mean a missing stream or group, also the broken connection
            to one node of a cluster; or the stream or the group was removed between the two replies.
    """
    groups, pending_summary = replies
    if isinstance(groups, RedisError):
        if is_stream_or_group_missing(groups):
            return CountingPosition("0-0", 0, 0)
        raise groups
    group = next((group for group in groups if group["name"] == group_name.encode()), None)
    if group is None:
        return CountingPosition("0-0", 0, None)  # no worker has created the group yet: XPENDING replied NOGROUP
    if isinstance(pending_summary, RedisError):
        raise pending_summary
    last = group["last-delivered-id"].decode()
    delivered = parse_id(last)
    pending = int(pending_summary["pending"])
    if pending_summary["min"] is not None:
        # The two replies are from two moments: everything up to the lower ID was counted at both.
        delivered = min(delivered, before(parse_id(pending_summary["min"].decode())))
    lag = None if group["lag"] is None else int(group["lag"]) + pending
    return CountingPosition(f"{delivered[0]}-{delivered[1]}", pending, lag, last)
