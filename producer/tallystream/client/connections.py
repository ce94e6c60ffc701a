"""Connections that are not used again if a reply is still to come, or if their handshake was interrupted.

Ctrl-C, and any other exception that is no error of Redis, may come between a command and its reply, between two replies
of a pipeline, or while a new connection has not yet chosen its database. redis-py then returns the connection to its
pool, and the next command would get the reply to another command, or be executed in another database.
"""

from __future__ import annotations

from typing import Any

import redis
from redis.connection import UnixDomainSocketConnection
from redis.sentinel import SentinelManagedConnection


class _Counted:
    """A redis-py connection that counts the replies that are still to come; the base for each kind of connection.

    Args:
        settings: Settings of the redis-py connection.
    """

    def __init__(self, **settings: Any) -> None:
        self._forget()
        super().__init__(**settings)

    def connect(self) -> None:
        """Connect, unless connected; a connection on which a reply is still to come is closed first.

        A pool calls this whenever it hands out a connection.
        """
        if self._unread:
            self.disconnect()
        super().connect()  # type: ignore[misc]  # the method of the redis-py connection, as in all methods here

    def connect_check_health(self, *args: Any, **options: Any) -> None:
        """Connect and do the handshake, unless connected; the arguments are those of the redis-py connection.

        If there is any exception, close the connection, and raise the exception: so no command is sent before a whole
        handshake.
        """
        try:
            super().connect_check_health(*args, **options)  # type: ignore[misc]
        except BaseException:
            self.disconnect()
            raise

    def pack_commands(self, commands: Any) -> Any:
        """Return the bytes of some commands, in one or more parts, and keep the number of the commands.

        The next call of `send_packed_command` must send all of them: it takes this for the number of the replies.
        """
        commands = list(commands)
        self._packed = len(commands)
        return super().pack_commands(commands)  # type: ignore[misc]

    def send_packed_command(self, *args: Any, **options: Any) -> None:
        """Send packed commands; connect first if not connected. The arguments are those of the redis-py connection.

        Raises:
            redis.RedisError: the connection failed or was refused; the server may have received some of the commands.
            ConfigurationError: it had to connect, and the server is a node of a cluster, but the URL names none.
        """
        packed, self._packed = self._packed, 1
        if not self.is_connected:  # type: ignore[attr-defined]
            self.connect_check_health(check_health=False)
        self._unread += packed
        super().send_packed_command(*args, **options)  # type: ignore[misc]

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Wait for the next reply and return it; arguments and errors are those of the redis-py connection."""
        try:
            reply = super().read_response(*args, **options)  # type: ignore[misc]
        except redis.ResponseError:
            self._unread -= 1
            raise
        self._unread -= 1
        return reply

    def disconnect(self, *args: Any, **options: Any) -> None:
        """Close the connection; the arguments are those of the redis-py connection."""
        super().disconnect(*args, **options)  # type: ignore[misc]
        self._forget()

    def _forget(self) -> None:
        self._unread = 0  # replies to commands that were sent, or that may have been sent
        self._packed = 1  # commands that `send_packed_command` sends next


class CountedConnection(_Counted, redis.Connection):
    """A plain connection, which its pool closes before the next use if a reply is still to come."""


class CountedSSLConnection(_Counted, redis.SSLConnection):
    """A TLS connection, which its pool closes before the next use if a reply is still to come."""


class CountedUnixConnection(_Counted, UnixDomainSocketConnection):
    """A connection to a unix socket, which its pool closes before the next use if a reply is still to come."""


class CountedSentinelConnection(_Counted, SentinelManagedConnection):
    """A connection to the primary that Sentinels name; closed before its next use if a reply is still to come."""


def connection_class(url: str) -> type[redis.Connection | UnixDomainSocketConnection]:
    """Return the class of the connections to one server, by the scheme of its URL: `unix`, `rediss`, or any other."""
    if url.startswith("unix://"):
        return CountedUnixConnection
    return CountedSSLConnection if url.startswith("rediss://") else CountedConnection
