"""Transactions on a cluster: an error is a reply, also if it comes before a node is known."""

from __future__ import annotations

from contextlib import contextmanager

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


class Refusing:
    """A router whose node refuses the first transaction, and which then finds the node only if it is awaited."""

    def __init__(self):
        self.asked = 0
        self.client = self.topology = self

    def owner(self, _slot):
        """Return the node at first; then raise."""
        self.asked += 1
        if self.asked > 1:
            raise ClusterDownError("no node is known for a moment")
        return self

    def await_owner(self, _slot, deadline):
        """Return the node."""
        assert deadline
        return self

    def apply_redirect(self, *_):
        """Do nothing."""

    @contextmanager
    def pipeline(self, **_):
        """Return a transaction."""
        yield self

    def execute_command(self, *_, **__):
        """Do nothing."""

    def execute(self, **_):
        """Refuse the first transaction."""
        if self.asked == 1 and not hasattr(self, "refused"):
            self.refused = True
            raise ClusterDownError("the slot is not served")
        return [b"1"]


def test_a_transaction_that_was_not_executed_waits_for_a_node():
    """If a node refuses a transaction, and no node of its slot is known for a moment, it waits for the next."""
    run = _Run(Refusing(), lambda *_: None, [(("GET", "{a}1"), {})])
    assert run.run(transaction=True) == [b"1"]
