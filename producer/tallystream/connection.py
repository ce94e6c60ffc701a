"""The one place that knows how to reach Redis.

redis-py's defaults are made for caches: it retries ten times and sends writes again, and its time limit cuts
blocking reads short. Both would make counts wrong, so every client of ours is made here.
"""

from __future__ import annotations

from typing import Any, Final

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from tallystream.errors import ConfigurationError

DEFAULT_URL: Final = "redis://127.0.0.1:6379"
TIMEOUT: Final = 5.0
"""Seconds without a byte after which a connection is taken for dead."""


def connect(url: str, *, block: float = 0.0, timeout: float = TIMEOUT) -> redis.Redis:
    """Return a client that never sends anything twice; it connects on first use.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        block: The longest server-side wait, in seconds, of the reads that go through this client.
        timeout: Seconds without a byte, beyond `block`, after which a connection counts as dead.

    Raises:
        ConfigurationError: the URL cannot be read.
    """
    client: redis.Redis = _made(redis.Redis, url, block + timeout, Retry(NoBackoff(), 0))
    return client


def connect_async(url: str, *, timeout: float = TIMEOUT) -> redis.asyncio.Redis:
    """Return an asyncio client with the same settings as `connect`."""
    client: redis.asyncio.Redis = _made(redis.asyncio.Redis, url, timeout, AsyncRetry(NoBackoff(), 0))
    return client


def _made(kind: Any, url: str, timeout: float, retry: Any) -> Any:
    settings: dict[str, Any] = {
        "protocol": 3,
        "legacy_responses": False,
        "decode_responses": False,
        "socket_timeout": timeout,
        "socket_connect_timeout": min(timeout, TIMEOUT),
        "retry": retry,
        "retry_on_timeout": False,
        "driver_info": None,  # it would be announced with a command that Redis 7.0 does not know, nor an ACL of it
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    try:
        return kind.from_url(url, **settings)
    except ValueError as error:
        raise ConfigurationError(
            f"Redis URL {_without_password(url)!r} cannot be used: {error}. "
            "Write redis://HOST:PORT, rediss://HOST:PORT (TLS) or unix:///PATH"
        ) from None


def is_refusal(error: RedisError) -> bool:
    """Tell whether trying again cannot help: a wrong password, a missing right, a command that is unknown."""
    # redis-py turns the first word of some errors into a class and cuts it off.
    if isinstance(error, (AuthenticationError, NoPermissionError)):
        return True
    return isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE")


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.rpartition("@")[2]
