"""Processes that cannot serve all partitions share them: none is left without a worker."""

from __future__ import annotations

from collections import Counter

import pytest

from tallystream_worker.runtime.share import chosen, exchanged


@pytest.mark.parametrize("names", [["w-0", "w-1", "w-2"], ["host-7", "host-8", "host-9"]])
def test_numbered_processes_that_start_together_choose_different_partitions(names):
    """Three processes with numbers serve all partitions if each can serve a third, although none sees the others."""
    served = [chosen([0] * 30, 10, name) for name in names]
    assert [len(each) for each in served] == [10, 10, 10]
    assert set().union(*served) == set(range(30))


def test_partitions_that_no_worker_serves_come_first():
    """A process that starts later serves the partitions that the others have left."""
    others = [1] * 20 + [0] * 10
    assert chosen(others, 10, "any name") == set(range(20, 30))
    assert chosen(others, 15, "any name") > set(range(20, 30))


def test_what_no_worker_serves_is_taken_over():
    """A process takes partitions that no worker serves: first with its free connections, then for shared partitions."""
    served, others = {0, 1, 2, 3}, [0, 2, 1, 0, 0, 0, 0, 3]
    exchange = exchanged(served, others, beyond=1)
    assert set(exchange) <= {4, 5, 6}
    assert Counter(exchange.values()) == Counter([-1, 1, 2])
    assert exchanged(served, [0, 2, 1, 0, 1, 1, 1, 3], beyond=0) == {}
    assert exchanged({0, 3}, others, beyond=0) == {}


def test_processes_reach_a_state_in_which_every_partition_is_served():
    """Processes that begin with the same partitions serve all of them after some rounds."""
    partitions, most = 40, 16
    processes = [set(range(most)) for _ in range(3)]
    for _ in range(40):
        for number, served in enumerate(processes):
            rest = Counter(each for other, others in enumerate(processes) if other != number for each in others)
            for taken, given in exchanged(served, [rest[each] for each in range(partitions)], 0).items():
                served.remove(given)
                served.add(taken)
    assert set().union(*processes) == set(range(partitions))
