"""The data that a process began with: still there, or gone; and connections that lead to where it is no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tallystream.client.replies import is_connection_stale
from tallystream.deployment import load

if TYPE_CHECKING:
    from collections.abc import Iterable

    import redis

    from tallystream.deployment import Deployment


def load_same(client: redis.Redis, deployment: Deployment) -> Deployment | None:
    """Return what is stored by now; `None` if it is not the data that `deployment` was read from, or nothing.

    Raises:
        redis.RedisError: the server does not answer, or refuses.
    """
    found = load(client, deployment.layout.namespace)
    return found if found is not None and found.epoch == deployment.epoch else None


def drop_stale_connections(error: Exception, clients: Iterable[redis.Redis]) -> None:
    """Close the connections of clients after an error, unless it is the answer of a server that works.

    Pooled connections would keep going to a node that was demoted, or is gone.
    """
    if not isinstance(error, RedisError) or is_connection_stale(error):
        for client in clients:
            client.connection_pool.disconnect()
