"""While the memory of a node is full, the ledgers of all partitions can be read."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tallystream.producing.producer import Producer
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tests.harness import Harness

if TYPE_CHECKING:
    from tests.local_cluster import ClusterServer, LocalCluster

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("full", [1, 3])
def test_the_ledger_is_read_while_nodes_are_full(server: ClusterServer, cluster: LocalCluster, full: int) -> None:
    """The ledger can be read from nodes that reject MULTI because their memory is full, and from the others with it."""
    with Harness(server.url) as harness, Producer(server.url) as producer, Totals(server.url) as totals:
        for number in range(40):
            producer.emit("view", f"s{number}")
        producer.flush()
        harness.drain()
        before = totals.run(query_ledger(harness.layout)).summary()
        nodes = [node for node in cluster.nodes if node.is_primary()][:full]
        with contextlib.ExitStack() as stack:
            for node in nodes:
                stack.callback(node.ask, "CONFIG", "SET", "maxmemory", 0)
                node.ask("CONFIG", "SET", "maxmemory", 1)
            books = totals.run(query_ledger(harness.layout))
            assert (books.counted, books.unaccounted) == (40, 0)
            assert totals.ledger().ledger == before.ledger
