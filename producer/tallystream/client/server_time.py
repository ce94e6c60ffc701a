"""Reads the clock of a server. The clock of a host decides nothing about counters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import redis


def server_time(client: redis.Redis) -> int:
    """Return the present by the server's clock, in milliseconds since 1970.

    Raises:
        redis.RedisError: the server does not reply.
    """
    seconds, microseconds = client.execute_command("TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000
