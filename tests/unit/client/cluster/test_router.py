"""The router: without a slot map, no question about all nodes has an empty answer."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest
from redis.exceptions import (
    ClusterDownError,
    ConnectionError,  # noqa: A004  # the name of redis-py
    MovedError,
    ResponseError,
)

from tallystream.client.cluster.router import Router
from tallystream.client.connect import connect
from tests.waiting import until

A = ("a", 1)


@pytest.fixture
def dead():
    """A client of a cluster whose only known node does not exist."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with contextlib.closing(connect(f"redis+cluster://127.0.0.1:{port}")) as client:
        yield client


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: list(client.scan_iter(match="tally:*")),
        lambda client: client.get("k"),
        lambda client: client.time(),
        lambda client: client.execute_command("WAITAOF", 1, 0, 1),
        lambda client: client.script_load("return 1"),
        lambda client: client.flushall(),
        lambda client: client.pipeline(transaction=False).get("k").execute(raise_on_error=False),
        lambda client: client.pipeline(transaction=True).get("k").execute(raise_on_error=False),
        lambda client: client.pipeline(transaction=False).get("k").wait(1, 100).execute(raise_on_error=False),
    ],
)
def test_no_question_to_an_unknown_cluster_has_an_empty_answer(dead, ask):
    """If no node has ever returned the slot map, each command raises the reason, also right after another attempt."""
    for _ in range(2):
        with pytest.raises(ConnectionError, match="Connection refused"):
            ask(dead)


class Answers:
    """A node that replies to CLUSTER SLOTS, or raises."""

    def __init__(self, slots):
        self.slots = slots

    def __call__(self, _address, **_settings):
        """Return a client of the node."""
        return self

    def execute_command(self, *_):
        """Return the slot map."""
        if isinstance(self.slots, Exception):
            raise self.slots
        return self.slots

    def close(self):
        """Do nothing."""


def reply(*owned):
    """Return a reply to CLUSTER SLOTS in which hosts serve ranges of slots."""
    return [[first, last, [host.encode(), 1, b"id"]] for first, last, host in owned]


def test_a_part_of_the_primaries_is_not_taken_for_all():
    """If no node serves a slot, `all_primaries` raises: the slot may have keys."""
    node = Answers(reply((0, 8191, "a"), (8192, 16383, "b")))
    router = Router([A], node, lambda address, _: address)
    assert [each.address for each in router.all_primaries()] == [("a", 1), ("b", 1)]
    node.slots = reply((0, 8191, "a"), (8193, 16383, "b"))
    with pytest.raises(ClusterDownError, match="no node of the cluster is known to serve slot 8192"):
        router.all_primaries()


def test_all_primaries_are_those_of_now():
    """`all_primaries` reads the slot map also if it does not seem stale: a node that joined may have keys."""
    node = Answers(reply((0, 16383, "a")))
    router = Router([A], node, lambda address, _: address)
    router.refresh()
    node.slots = reply((0, 8191, "a"), (8192, 16383, "b"))
    assert [each.address for each in router.all_primaries()] == [("a", 1), ("b", 1)]
    node.slots = ConnectionError("nobody answers")
    for _ in range(2):
        with pytest.raises(ConnectionError, match="nobody answers"):
            router.all_primaries()


def test_a_wrong_server_among_the_others_ends_no_wait():
    """If an address of the cluster turns out to be a single server, a silent node does not count as replaced."""
    node = Answers(reply((0, 16383, "a")))
    router = Router([A], node, lambda address, _: address)
    router.refresh()
    node.slots = ResponseError("This instance has cluster support disabled")
    router.topology.suspect(A)
    until(router.topology.must_look, what="the next read of the slot map")
    assert router._is_replaced(A) is False


class Client:
    """A client of a node; its pool has no connections."""

    def __init__(self, address):
        self.address = address
        self.connection_pool = self

    def disconnect(self, **_):
        """Do nothing."""


class Recovering(Answers):
    """A node that replies to CLUSTER SLOTS with another error or map each time, and at last with the same one."""

    def __init__(self, *replies):
        super().__init__(None)
        self.replies = list(replies)

    def execute_command(self, *command):
        """Return the next reply."""
        self.slots = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return super().execute_command(*command)


@pytest.mark.parametrize("error", [ClusterDownError("down"), MovedError("0 b:1")])
@pytest.mark.parametrize("trouble", [reply((1, 16383, "a")), ConnectionError("nobody answers")])
def test_a_command_that_was_not_executed_waits_for_a_node(error, trouble):
    """If a node refuses a command, and no node of its slot is known for a moment, the command waits for the next."""
    first, last = reply((0, 16383, "a")), reply((0, 0, "b"), (1, 16383, "a"))
    router = Router([A], Recovering(first, trouble, trouble, last), lambda address, _: Client(address))
    node = router.owner(0)
    found, asking = router.redirect(0, node, error, time.monotonic() + 20, 1)
    assert (found.address, asking) == (("b", 1), False)


def test_a_command_that_was_not_executed_waits_until_the_deadline():
    """At the deadline, the error of the last attempt to find a node is raised."""
    router = Router([A], Recovering(reply((0, 16383, "a")), reply((1, 16383, "a"))), lambda address, _: Client(address))
    node = router.owner(0)
    with pytest.raises(ClusterDownError, match="serve slot 0"):
        router.redirect(0, node, ClusterDownError("down"), time.monotonic() + 0.3, 1)
