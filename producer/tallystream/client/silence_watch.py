"""Connections to a cluster's nodes that do not wait for one that the cluster has replaced.

A node that freezes, or whose machine is gone, closes no connection: its clients would wait for their whole time limit,
long after a replica has been promoted. So who has waited for a while asks the other nodes, now and then, and gives up
as soon as they say that another serves instead. One that is only slow is waited for as ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import redis

if TYPE_CHECKING:
    from collections.abc import Callable

SILENCE: Final = 1.5
"""Seconds without a byte after which the other nodes are asked: more than a blocking read of ours waits."""

_AGAIN: Final = 0.25
"""Seconds until they are asked again."""


class _FailoverAware:
    """What the two kinds of connection have in common.

    Args:
        is_replaced: Asks whether another node serves instead.
    """

    def __init__(self, *, is_replaced: Callable[[], bool], **settings: Any) -> None:
        self._is_replaced = is_replaced
        super().__init__(**settings)

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Return the next reply.

        Raises:
            redis.ConnectionError: as ever; also where the node has been replaced.
        """
        connection: Any = self
        left = connection.socket_timeout
        pause = SILENCE
        while not connection.can_read(min(pause, left)):
            left -= pause
            if left <= 0:
                connection.disconnect()
                raise redis.TimeoutError(f"Timeout reading from {connection.host}:{connection.port}")
            if self._is_replaced():
                connection.disconnect()
                raise redis.ConnectionError(
                    f"{connection.host}:{connection.port} was silent, and the cluster has replaced it"
                )
            pause = _AGAIN
        return super().read_response(*args, **options)  # type: ignore[misc]  # that of the connection it is mixed into


class FailoverAwareConnection(_FailoverAware, redis.Connection):
    """A connection to a node."""


class FailoverAwareSSLConnection(_FailoverAware, redis.SSLConnection):
    """The same by TLS."""


def failover_aware(is_replaced: Callable[[], bool], *, tls: bool) -> dict[str, Any]:
    """Return the settings of a client of one node by which its connections are such."""
    return {
        "connection_class": FailoverAwareSSLConnection if tls else FailoverAwareConnection,
        "is_replaced": is_replaced,
    }
