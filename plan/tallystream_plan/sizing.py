"""Calculates the numbers of partitions, primaries and workers of a load."""

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
"""Planned load of the core of a server's main thread and of a worker; the rest is a reserve."""

HEADROOM: Final = 1.5
"""Planned memory per byte of data: for copies while the append-only file is rewritten, fragmentation and backlog."""

PER_PRIMARY: Final = 2
"""Least number of partitions for each primary, so that they can be distributed evenly."""


@dataclass(frozen=True)
class Plan:
    """The resources that a load needs.

    Attributes:
        partitions: Number of partitions; a power of two unless the caller of `plan` fixed the number.
        primaries: Number of servers that are written to.
        workers: Number of worker processes.
        packing: The packing of the load.
        server: Processor time of the servers' main threads in cores, by task.
        worker: Processor time of the workers in cores.
        producer: Processor time of the apps in cores.
        counters: Bytes of the counters, by metric and rule, without headroom.
        log: Bytes of the streams, without headroom.
        traffic: Bytes per second between apps, servers, workers and disk, by direction; see `network.traffic`.
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
        """Bytes of memory that all primaries need together, headroom included."""
        return HEADROOM * (sum(self.counters.values()) + self.log)


def plan(
    load: ExpectedLoad, costs: Costs, settings: Settings, *, node_memory: float, partitions: int | None = None
) -> Plan:
    """Return the partitions, primaries, workers, memory and traffic that a load needs.

    Args:
        load: The expected load.
        costs: The measured constants.
        settings: The settings; `worker.max_keys` and the retention are used.
        node_memory: Bytes of memory of one server.
        partitions: Fixed number of partitions, at least 1; not checked, so it may not suffice for the primaries. `None`
            for the smallest power of two from 4 on that suffices: one primary, or at least `PER_PRIMARY` (2) partitions
            for each primary.

    Raises:
        ConfigurationError: `partitions` is `None`, and even the largest possible number does not suffice.
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
        f"plan: the load needs {found.primaries:,} primaries, and {MAX_PARTITIONS:,} partitions suffice for "
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
