"""Reads the clock of a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import redis


def server_time(client: redis.Redis) -> int:
    """Return the present by the server's clock, in whole milliseconds since 1970; in a cluster, by that of one primary.

    Raises:
        redis.RedisError: the server does not reply, or refuses the command.
    """
    return parse_time(client.execute_command("TIME")) // 1000


def parse_time(reply: Any) -> int:
    """Return the time in a reply to TIME, in microseconds since 1970."""
    seconds, microseconds = reply
    return int(seconds) * 1_000_000 + int(microseconds)
