"""Transactions on a cluster: an error is a reply, also if it comes before a node is known."""

from __future__ import annotations

import pytest
from redis.exceptions import ClusterDownError, ConnectionError  # noqa: A004  # the name of redis-py

from tallystream.client.cluster.pipeline import _Run


class Lost:
    """A router that finds no node."""

    def __init__(self, error):
        self.error = error

    def owner(self, _slot):
        """Raise the error."""
        raise self.error


@pytest.mark.parametrize("error", [ConnectionError("the node failed a moment ago"), ClusterDownError("no node")])
def test_a_transaction_without_a_node_replies_with_the_error(error):
    """If the node of a slot has just failed, or no node serves it, the commands of this slot get that error."""
    run = _Run(Lost(error), lambda *_: None, [(("GET", "{a}1"), {}), (("SET", "{a}2", "x"), {})])
    if isinstance(error, ClusterDownError):
        assert run.run(transaction=True) == [error, error]
    else:
        with pytest.raises(ConnectionError, match="a moment ago"):
            run.run(transaction=True)
