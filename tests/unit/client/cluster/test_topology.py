"""What a client knows of a cluster: it follows what the nodes say, and lets go of those that have left."""

from __future__ import annotations

import pytest
from redis.exceptions import ClusterDownError, MovedError, TryAgainError

from tallystream.client.cluster.topology import Topology

A, B, C = ("a", 1), ("b", 1), ("c", 1)


def seen(*owners):
    """Return a topology of nodes that share the slots, and the reply that it was taken from."""
    width = 16384 // len(owners)
    reply = [[i * width, (i + 1) * width - 1, [host.encode(), port, b"id"]] for i, (host, port) in enumerate(owners)]
    topology = Topology([A], lambda address: address)
    topology.apply_map(reply, A)
    return topology, reply


def test_a_node_that_has_left_is_let_go():
    """The clients of nodes that no node names any more are handed back, once."""
    topology, _ = seen(A, B)
    assert [node.address for node in topology.primaries] == [A, B]
    _, reply = seen(A, C)
    assert [node.address for node in topology.apply_map(reply, A)] == [B]
    assert topology.apply_map(reply, A) == []
    assert (topology.serves(C), topology.serves(B)) == (True, False)


def test_who_knows_nobody_is_not_believed():
    """A node that serves and knows nothing changes nothing of what is known."""
    topology, _ = seen(A, B)
    with pytest.raises(ClusterDownError, match="a:1 knows of no node"):
        topology.apply_map([], A)
    assert topology.owner(0).address == A


def test_answers_say_where_to_look():
    """MOVED is believed for its slot, CLUSTERDOWN only as a reason to look, TRYAGAIN as neither."""
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
    """A node that does not answer is not the one to say who serves what, and must prove itself before it is used."""
    topology, _ = seen(A, B)
    topology.suspect(A)
    assert list(topology.refresh_candidates()) == [B, A]
    assert (topology.is_stale, topology.owner(0).failed) == (True, True)
