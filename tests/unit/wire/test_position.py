"""The position of a partition, from the replies of the server."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from tallystream.wire.position import CountingPosition, parse_position

GROUP = {"name": b"g", "last-delivered-id": b"5-0", "lag": 2}
BROKEN = RedisConnectionError("Connection refused")


@pytest.mark.parametrize(
    "replies",
    [
        [BROKEN, BROKEN],
        [[GROUP], BROKEN],
        [NoPermissionError("no permissions"), ResponseError("NOGROUP no such group")],
        [[GROUP], ResponseError("NOGROUP no such group")],
    ],
)
def test_an_error_among_the_replies_is_raised(replies):
    """An error reply is raised, also the broken connection to a node of a cluster."""
    with pytest.raises(RedisError) as raised:
        parse_position(replies, "g")
    assert raised.value in replies


def test_a_stream_or_a_group_that_is_missing():
    """Without a stream or the group, nothing is counted yet."""
    gone = ResponseError("no such key")
    assert parse_position([gone, ResponseError("NOGROUP no such group")], "g") == CountingPosition("0-0", 0, 0)
    assert parse_position([[], ResponseError("NOGROUP no such group")], "g") == CountingPosition("0-0", 0, None)
