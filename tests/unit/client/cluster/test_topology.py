"""Topology: the slot map follows the replies of the nodes, and nodes that have left are removed."""

from __future__ import annotations

import pytest
from redis.exceptions import ClusterDownError, MovedError, TryAgainError

from tallystream.client.cluster.topology import Topology

A, B, C = ("a", 1), ("b", 1), ("c", 1)


def seen(*owners):
    """Return a topology whose slots are split between the given nodes, and the CLUSTER SLOTS reply for it."""
    width = 16384 // len(owners)
    reply = [[i * width, (i + 1) * width - 1, [host.encode(), port, b"id"]] for i, (host, port) in enumerate(owners)]
    topology = Topology([A], lambda address: address)
    topology.apply_map(reply, A)
    return topology, reply


def test_a_node_that_has_left_is_let_go():
    """`apply_map` returns each node that is not in the new slot map, once."""
    topology, _ = seen(A, B)
    assert [node.address for node in topology.primaries] == [A, B]
    _, reply = seen(A, C)
    assert [node.address for node in topology.apply_map(reply, A)] == [B]
    assert topology.apply_map(reply, A) == []
    assert (topology.serves(C), topology.serves(B)) == (True, False)


def test_who_knows_nobody_is_not_believed():
    """An empty slot map is refused and changes nothing."""
    topology, _ = seen(A, B)
    with pytest.raises(ClusterDownError, match="a:1 reports no node"):
        topology.apply_map([], A)
    assert topology.owner(0).address == A


def test_answers_say_where_to_look():
    """MOVED changes its slot and marks the slot map as stale, CLUSTERDOWN only marks it, TRYAGAIN does neither."""
    topology, _ = seen(A, B)
    node = topology.owner(0)
    topology.apply_redirect(0, TryAgainError("x"), node)
    assert not topology.is_stale
    topology.apply_redirect(0, MovedError("0 c:1"), node)
    assert (topology.is_stale, topology.owner(0).address, topology.owner(1).address) == (True, C, A)
    topology.is_stale = False
    topology.apply_redirect(0, ClusterDownError("x"), node)
    assert (topology.is_stale, topology.owner(0).address) == (True, C)


def test_who_is_silent_is_asked_last():
    """A suspected node is asked last for the slot map, and is marked as failed."""
    topology, _ = seen(A, B)
    topology.suspect(A)
    assert list(topology.refresh_candidates()) == [B, A]
    assert (topology.is_stale, topology.owner(0).failed) == (True, True)
