"""Calculates the processor time of the servers' main threads, of the workers, and of the apps that emit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.rules.parts import board_length

if TYPE_CHECKING:
    from tallystream_plan.load import ExpectedLoad
    from tallystream_plan.packing import Packing
    from tallystream_worker.capacity.costs import Costs

MICROSECOND: Final = 1e-6
"""One microsecond in seconds; the measured costs are in microseconds."""


def server_seconds(load: ExpectedLoad, packing: Packing, costs: Costs) -> dict[str, float]:
    """Return, by task, how many cores the main threads of all primaries use: seconds of processor time per second.

    A task that the load does not cause is left out. The tasks are for people, such as `appending` or `leaderboards`.
    """
    each = costs.server
    spent = dict.fromkeys(("appending", "reading and acknowledging", "totals", "windows", "leaderboards"), 0.0)
    spent |= dict.fromkeys(("limits", "votes", "unique actors"), 0.0)
    travelling = packing.subjects + packing.singles
    spent["appending"] = packing.entries * each.append_entry + travelling * each.append_subject
    spent["reading and acknowledging"] = packing.entries * each.entry + travelling * each.subject
    for name, counters in packing.counters.items():
        rule = load.metrics[name]
        spent["totals"] += counters * each.total
        spent["windows"] += counters * each.window * len(rule.windows)
        # At most `board_length` subjects of a batch are in a leaderboard; equal subjects may exceed it for a while.
        placed = min(counters, packing.batches * board_length(rule.top))
        boards = 1 + len(rule.windows) if rule.top else 0
        spent["leaderboards"] += (counters * each.board + placed * each.place) * boards
        spent["limits"] += counters * each.limit * (rule.limit is not None)
        spent["votes"] += load.of(name) * each.vote * (rule.once is not None)
        spent["unique actors"] += load.of(name) * each.unique * (rule.unique is not None and load.bears_actors(name))
    return {what: seconds * MICROSECOND for what, seconds in spent.items() if seconds}


def worker_seconds(packing: Packing, costs: Costs) -> float:
    """Return how many cores all workers together use: seconds of processor time per second."""
    each = costs.worker
    counters = sum(packing.counters.values())
    spent = packing.entries * each.entry + packing.subjects * each.subject
    spent += counters * each.counter + packing.fresh * each.fresh
    return (spent + packing.singles * each.single) * MICROSECOND


def producer_seconds(load: ExpectedLoad, packing: Packing, costs: Costs) -> float:
    """Return how many cores the producers in all apps together use: seconds of processor time per second."""
    return (load.events * costs.producer.event + packing.entries * costs.producer.entry) * MICROSECOND
