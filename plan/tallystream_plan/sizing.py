"""How many of everything: partitions, primaries, replicas, workers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tallystream.errors import ConfigurationError
from tallystream.storage.keys import DEFAULT_PARTITIONS, MAX_PARTITIONS
from tallystream_plan.network import traffic
from tallystream_plan.packing import Packing, pack
from tallystream_plan.processor import producer_seconds, server_seconds, worker_seconds
from tallystream_plan.storage import counter_bytes, log_bytes

if TYPE_CHECKING:
    from tallystream_plan.load import ExpectedLoad
    from tallystream_worker.capacity.costs import Costs
    from tallystream_worker.settings.settings import Settings

UTILISATION: Final = 0.6
"""Share of a core that is planned for, of a server's main thread and of a worker: the rest is for surprises."""

HEADROOM: Final = 1.5
"""Memory of a machine by that of the data: copies while the append-only file is rewritten, fragments, backlog."""

PER_PRIMARY: Final = 2
"""Partitions for each primary at least, so that they can be spread evenly."""


@dataclass(frozen=True)
class Plan:
    """What a load needs; seconds are of one core, by the second.

    Attributes:
        partitions: Streams, a power of two.
        primaries: Servers that are written to.
        workers: Worker processes.
        packing: How events are packed.
        server: Seconds of the servers' main threads, by what they are spent on.
        worker: Seconds of the workers.
        producer: Seconds of the apps.
        counters: Bytes of the counters, by metric and rule.
        log: Bytes of the log.
        traffic: Bytes a second between the parts.
    """

    partitions: int
    primaries: int
    workers: int
    packing: Packing
    server: dict[str, float]
    worker: float
    producer: float
    counters: dict[str, float]
    log: float
    traffic: dict[str, float]

    @property
    def memory(self) -> float:
        """Bytes of memory that the primaries need together, room for copies included."""
        return HEADROOM * (sum(self.counters.values()) + self.log)


def plan(
    load: ExpectedLoad, costs: Costs, settings: Settings, *, node_memory: float, partitions: int | None = None
) -> Plan:
    """Return what a load needs.

    Args:
        load: What comes.
        costs: What each piece of it costs.
        settings: `worker.max_keys` and the retention are looked at.
        node_memory: Bytes of memory of one server.
        partitions: A number that is fixed; else the smallest power of two that will do.

    Raises:
        ConfigurationError: no number of partitions will do.
    """
    if partitions is not None:
        return _with(load, costs, settings, node_memory, partitions)
    number = DEFAULT_PARTITIONS
    while number <= MAX_PARTITIONS:
        found = _with(load, costs, settings, node_memory, number)
        if found.primaries == 1 or found.primaries * PER_PRIMARY <= number:
            return found
        number *= 2
    raise ConfigurationError(
        f"plan: {found.primaries:,} primaries would be needed, and {MAX_PARTITIONS:,} partitions are for "
        f"{MAX_PARTITIONS // PER_PRIMARY}. Pack more into an entry (fewer producers, a longer --linger), keep less, or "
        "split the load over several namespaces"
    )


def _with(load: ExpectedLoad, costs: Costs, settings: Settings, node_memory: float, partitions: int) -> Plan:
    packing = pack(load, partitions, settings.worker.max_keys)
    server = server_seconds(load, packing, costs)
    worker = worker_seconds(packing, costs)
    counters = counter_bytes(load, partitions, costs)
    log = log_bytes(packing, partitions, costs, settings.retention)
    primaries = max(
        math.ceil(sum(server.values()) / UTILISATION),
        math.ceil(HEADROOM * (sum(counters.values()) + log) / node_memory),
    )
    return Plan(
        partitions,
        primaries,
        max(1, math.ceil(worker / UTILISATION)),
        packing,
        server,
        worker,
        producer_seconds(load, packing, costs),
        counters,
        log,
        traffic(load, packing, costs),
    )
