"""Connections to the nodes of a cluster that do not wait for a node after a failover has replaced it.

A node that freezes, or loses its machine, closes no connection: its clients would wait for their whole timeout, long
after a replica was promoted. So after 1.5 seconds without a byte, a connection asks the other nodes, again and again,
which node serves the slots. It disconnects before its timeout only if the silent node was replaced; a slow node keeps
its full timeout. Those questions take time, too, so a wait may be longer than the timeout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import redis

from tallystream.client.connections import CountedConnection, CountedSSLConnection

if TYPE_CHECKING:
    from collections.abc import Callable

SILENCE: Final = 1.5
"""Seconds without a byte after which the other nodes are asked: longer than any blocking read of tallystream."""

_AGAIN: Final = 0.25
"""Seconds until the other nodes are asked again."""


class _FailoverAware:
    """A redis-py connection whose wait for a reply ends after a failover; the base for plain and TLS ones.

    Args:
        is_replaced: Asks the other nodes, and returns whether this connection's node serves no slot any more.
        settings: Settings of the redis-py connection; `socket_timeout` must be a number of seconds.
    """

    def __init__(self, *, is_replaced: Callable[[], bool], **settings: Any) -> None:
        self._is_replaced = is_replaced
        super().__init__(**settings)

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Wait for the next reply and return it; the arguments are those of the redis-py connection.

        After 1.5 seconds without a byte, call `is_replaced`, and then again every 0.25 seconds.

        Raises:
            redis.ResponseError: the reply is an error.
            redis.ConnectionError: the connection broke, or the node was replaced while it did not reply.
            redis.TimeoutError: no byte arrived within the socket timeout, which does not include the time that asking
                the other nodes takes.

        Any error of `is_replaced` is raised, too.
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
                    f"{connection.host}:{connection.port} did not reply, and the cluster has replaced it"
                )
            pause = _AGAIN
        return super().read_response(*args, **options)  # type: ignore[misc]  # the method of the redis-py connection


class FailoverAwareConnection(_FailoverAware, CountedConnection):
    """A plain connection to a node of a cluster, which ends its wait after a failover."""


class FailoverAwareSSLConnection(_FailoverAware, CountedSSLConnection):
    """A TLS connection to a node of a cluster, which ends its wait after a failover."""


def failover_aware(is_replaced: Callable[[], bool], *, tls: bool) -> dict[str, Any]:
    """Return the redis-py settings that make the connections of a node's client end their wait after a failover.

    Args:
        is_replaced: Asks the other nodes, and returns whether the client's node serves no slot any more.
        tls: Whether the connections use TLS.
    """
    return {
        "connection_class": FailoverAwareSSLConnection if tls else FailoverAwareConnection,
        "is_replaced": is_replaced,
    }
