"""A bounded pool never has more connections in use than its bound, and commands wait for a free one."""

from __future__ import annotations

import threading

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError

from tallystream.client.bounded_pool import Bounded


class Pool:
    """A pool that makes connections, which are numbers; with `fails`, it raises an error instead."""

    def __init__(self) -> None:
        self.made = 0
        self.fails = False

    def get_connection(self) -> int:
        """Return a new connection; after an error, release the connection first, as redis-py does."""
        self.made += 1
        if self.fails:
            self.release(self.made)
            raise RedisConnectionError("gone")
        return self.made

    def release(self, connection: int) -> None:
        """Take a connection back."""


class BoundedNumbers(Bounded, Pool):
    """The same with a bound."""


def test_a_command_waits_for_a_free_connection():
    """While all connections are in use, the next command waits; a released one wakes it."""
    pool = BoundedNumbers(most=1, patience=10)
    first = pool.get_connection()
    got: list[int] = []
    waiting = threading.Thread(target=lambda: got.append(pool.get_connection()))
    waiting.start()
    assert pool.made == 1
    pool.release(first)
    waiting.join(10)
    assert got == [2]


def test_a_command_does_not_wait_for_ever():
    """If no connection becomes free in time, the command is refused, and was not sent."""
    pool = BoundedNumbers(most=1, patience=0.01)
    pool.get_connection()
    with pytest.raises(MaxConnectionsError, match=r"no connection to the server became free within 0\.01 s"):
        pool.get_connection()


def test_a_connection_that_fails_is_not_counted_twice():
    """After connections that could not be made, and connections that were released twice, the bound is the same."""
    pool = BoundedNumbers(most=2, patience=0.01)
    pool.fails = True
    for _ in range(3):
        with pytest.raises(RedisConnectionError, match="gone"):
            pool.get_connection()
    pool.fails = False
    first, _ = pool.get_connection(), pool.get_connection()
    for _ in range(2):
        pool.release(first)
    pool.get_connection()
    with pytest.raises(MaxConnectionsError):
        pool.get_connection()
