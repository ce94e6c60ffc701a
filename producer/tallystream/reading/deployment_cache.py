"""What is stored here, as readers see it: read without a right to write, and remembered for a moment."""

from __future__ import annotations

import time
from typing import Any, Final

from redis.exceptions import RedisError

from tallystream.deployment import Deployment
from tallystream.reading.query import Query, raise_on_error
from tallystream.storage.deployment_hash import live_topic
from tallystream.storage.keys import DEFAULT_PARTITIONS, FIRST_TOPIC, Layout

DEPLOYMENT_AGE: Final = 1.0
"""Seconds after which it is read again what is stored: which generation is live, and which rules are published.

After a rebuild's switch, a reader goes on for as long with the generation before, complete up to its position.
"""


def query_deployment(partitions: int | None, namespace: str) -> Query[Deployment]:
    """Ask what is stored here.

    Before anything is stored, the answer has the partitions that are expected or usual (see `is_stored`).

    Raises:
        ConfigurationError: what is stored disagrees with `partitions` or with this release's layout.
    """
    unstored = Deployment(Layout(partitions or DEFAULT_PARTITIONS, namespace))

    def parse(replies: list[Any]) -> Deployment | Query[Deployment]:
        if isinstance(replies[0], RedisError):
            raise replies[0]
        root = replies[0]
        if not root:
            return unstored
        live = live_topic(root, namespace)
        if live.topic == FIRST_TOPIC:
            return found(root, root)
        return Query([("HGETALL", live.meta)], lambda replies: found(raise_on_error(replies[0]), root))

    def found(fields: dict[bytes, bytes], root: dict[bytes, bytes]) -> Deployment | Query[Deployment]:
        deployment = Deployment.parse(fields, partitions, namespace, root)
        return query_live(deployment) if deployment.was_rebuilt else deployment

    return Query([("HGETALL", unstored.layout.root)], parse)


def query_live(deployment: Deployment) -> Query[Deployment]:
    """Ask which generation is live in each partition."""

    def parse(replies: list[Any]) -> Deployment:
        return deployment.with_live([raise_on_error(reply) for reply in replies])

    return Query([("GET", keys.live) for keys in deployment.layout.keys], parse)


class DeploymentCache:
    """The `Deployment` that was last read, while it may still be used."""

    def __init__(self) -> None:
        self._deployment: Deployment | None = None
        self._until = 0.0

    def get(self) -> Deployment | None:
        """Return it, or `None` where it must be read."""
        return self._deployment if time.monotonic() < self._until else None

    def expected(self, partitions: int | None) -> int | None:
        """Return the number to check against: none once it was checked, since a live system may be moved to another."""
        return partitions if self._deployment is None else None

    def put(self, deployment: Deployment) -> Deployment:
        """Keep it, unless it still lacks the rules: these come the moment that a worker starts."""
        if deployment.declared is not None:
            self._deployment = deployment
            self._until = time.monotonic() + DEPLOYMENT_AGE
        return deployment
