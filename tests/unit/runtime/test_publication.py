"""The number of the rules is not read from a reply that is an error."""

from __future__ import annotations

from typing import Any, Self

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tallystream.deployment import Deployment
from tallystream.storage.keys import Layout
from tallystream_worker.runtime.publication import counting_number


class Cluster:
    """A client whose pipeline returns the error of a node as an element, as that of a cluster does."""

    def __init__(self, *replies: Any) -> None:
        self._replies = list(replies)

    def pipeline(self, *, transaction: bool) -> Self:
        """Return a pipeline."""
        assert not transaction
        return self

    def get(self, _key: str) -> None:
        """Queue a read."""

    def execute(self, *, raise_on_error: bool = True) -> list[Any]:
        """Return the replies, errors included."""
        assert not raise_on_error
        return self._replies

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_the_error_of_a_node_is_raised() -> None:
    """If a node does not reply, its error is raised; otherwise the highest number counts."""
    layout = Layout(3)
    deployment = Deployment(layout, "epoch", 1)
    assert counting_number(Cluster(b"1 4", None, b"1 7"), deployment, layout.keys) == 7
    with pytest.raises(RedisConnectionError):
        counting_number(Cluster(b"1 4", RedisConnectionError("gone"), b"1 7"), deployment, layout.keys)
