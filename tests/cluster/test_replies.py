"""The error replies of real nodes have the meanings that `tallystream.client.replies` gives them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ResponseError

from tallystream.client.cluster.slots import slot_of
from tests.replies import meanings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.local_cluster import LocalCluster, LocalNode

pytestmark = pytest.mark.slow

KEY, ABSENT, ELSEWHERE = "{tag}:1", "{tag}:2", "{another}:1"


@contextlib.contextmanager
def moving(cluster: LocalCluster, slot: int, source: LocalNode, target: LocalNode) -> Iterator[None]:
    """Begin to move a slot, and cancel the move at the end of the block."""
    cluster.open_move(slot, source, target)
    try:
        yield
    finally:
        for node in (source, target):
            node.ask("CLUSTER", "SETSLOT", slot, "STABLE")


def meanings_of(node: LocalNode, *command: object) -> set[str]:
    """Run a command that fails on a node; return the meanings of the error."""
    with pytest.raises(ResponseError) as caught:
        node.ask(*command)
    return meanings(caught.value)


def test_what_a_node_does_not_execute(cluster: LocalCluster) -> None:
    """MOVED, ASK, TRYAGAIN and CROSSSLOT of a node have the expected meanings."""
    source = cluster.owner(KEY)
    target = next(node for node in cluster.nodes if node.is_primary() and node is not source)
    source.ask("SET", KEY, 1)
    assert meanings_of(target, "GET", KEY) == {"not_executed", "about_server"}
    with moving(cluster, slot_of(KEY), source, target):
        assert meanings_of(source, "GET", ABSENT) == {"not_executed", "asking", "about_server"}
        assert meanings_of(source, "MGET", KEY, ABSENT) == {"not_executed", "about_server"}
    assert meanings_of(source, "MGET", KEY, ELSEWHERE) == {"about_server"}
