"""Calculates the network traffic between producers, servers and workers, and the writes to disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tallystream_plan.load import ExpectedLoad
    from tallystream_plan.packing import Packing
    from tallystream_worker.capacity.costs import Costs


def traffic(load: ExpectedLoad, packing: Packing, costs: Costs) -> dict[str, float]:
    """Return the bytes per second that all primaries together receive, send and write, by direction.

    The directions are `from apps`, `to workers`, `from workers` and `to the disk` (the append-only file). The traffic
    to replicas is not included: each receives what its primary writes to the disk.
    """
    each = costs.wire
    payload = packing.subjects * each.append_subject + packing.singles * each.append_single
    counters = sum(packing.counters.values())
    fields = sum(count * len(load.metrics[name].windows) for name, count in packing.counters.items())
    return {
        "from apps": packing.entries * each.append_entry + payload,
        "to workers": packing.entries * each.read_entry + payload,
        "from workers": counters * each.apply_counter + packing.singles * each.apply_single,
        "to the disk": packing.entries * each.log_entry
        + payload
        + counters * each.log_total
        + fields * each.log_window
        + packing.singles * each.log_single,
    }
