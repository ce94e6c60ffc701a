"""A connection pool with a bound, for a client that many threads share: further commands wait for a free connection."""

from __future__ import annotations

import threading
from typing import Any

import redis
from redis.exceptions import MaxConnectionsError


class Bounded:
    """Limits how many connections of a redis-py pool are in use at a time; a base class, before that of the pool.

    Args:
        most: The most connections in use.
        patience: Seconds to wait for a free one, if so many are in use.
        arguments: Arguments of the pool.
        settings: Settings of the pool.
    """

    def __init__(self, *arguments: Any, most: int, patience: float, **settings: Any) -> None:
        self._free = threading.Semaphore(most)
        self._patience = patience
        self._lent: set[Any] = set()
        super().__init__(*arguments, **settings)

    def get_connection(self, *arguments: Any, **options: Any) -> Any:
        """Return a connection, as the pool does; if `most` are in use, wait for one, at most `patience` seconds.

        The caller must pass the connection to `release` when it needs it no more.

        Raises:
            MaxConnectionsError: none became free in time; the command was not sent.
            redis.RedisError, ConfigurationError: the connection cannot be made, or the server is of the wrong kind.
        """
        if not self._free.acquire(timeout=self._patience):
            raise MaxConnectionsError(f"no connection to the server became free within {self._patience:g} s")
        connection = None
        try:
            connection = super().get_connection(*arguments, **options)  # type: ignore[misc]  # of the pool
            self._lent.add(connection)
        finally:
            if connection is None:
                self._free.release()
        return connection

    def release(self, connection: Any) -> None:
        """Give a connection back to the pool, so that another thread can get one."""
        try:
            super().release(connection)  # type: ignore[misc]  # of the pool
        finally:
            if connection in self._lent:  # the pool also releases a connection that it could not make
                self._lent.remove(connection)
                self._free.release()


class BoundedPool(Bounded, redis.ConnectionPool):
    """A connection pool of one server, with a bound on the connections in use: see `Bounded`."""
