"""Explains a plan: each figure with the constants that it follows from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tallystream_plan.packing import ENTRY_EVENTS
from tallystream_plan.sizing import HEADROOM, PER_PRIMARY, UTILISATION
from tallystream_worker.counting.fetch import MAX_READ

if TYPE_CHECKING:
    from tallystream_plan.load import ExpectedLoad
    from tallystream_plan.sizing import Plan
    from tallystream_worker.capacity.costs import Costs
    from tallystream_worker.settings.settings import Settings

_FEW: Final = 10
_SHOWN: Final = 8
"""Most costs of each kind (time, memory) that are shown."""


@dataclass(frozen=True)
class PlanLine:
    """One line of the output of `plan`: a figure and its reason."""

    name: str
    """Name of the figure."""

    figure: str
    """The figure with its unit."""

    because: str
    """The reason of the figure."""


def lines(
    load: ExpectedLoad, plan: Plan, costs: Costs, settings: Settings, replicas: int, node_memory: float
) -> list[PlanLine]:
    """Return what a load needs, each figure with its reason, such as the partitions, servers, memory and traffic.

    Args:
        load: The expected load.
        plan: The plan for the load.
        costs: The measured constants.
        settings: The settings that the plan was made with.
        replicas: Number of replicas of each primary.
        node_memory: Bytes of memory of one server.
    """
    packing = plan.packing
    each = load.events / load.producers / plan.partitions
    hint = "; few: a longer --linger or fewer producers would save most" if packing.entry_events < _FEW else ""
    cores = sum(plan.server.values())
    return [
        PlanLine("partitions", f"{plan.partitions:,}", f"a power of two, at least {PER_PRIMARY} for each primary"),
        PlanLine(
            "events in an entry",
            f"{packing.entry_events:,.1f}",
            f"1 + {each:,.1f} events/s of one producer for one partition x {load.linger * 1000:g} ms, "
            f"at most {ENTRY_EVENTS:,}{hint}",
        ),
        PlanLine(
            "events in a batch",
            f"{packing.batch_events:,.0f}",
            f"{settings.worker.max_keys:,} counters, or {MAX_READ} entries: the size when a worker is busy",
        ),
        PlanLine(
            "primaries",
            f"{plan.primaries:,}",
            f"the larger of {cores:,.2f} cores of main threads at {UTILISATION:.0%} each, and the memory below divided "
            f"by {size(node_memory)}",
        ),
        PlanLine("replicas", f"{plan.primaries * replicas:,}", f"{replicas} for each primary"),
        PlanLine(
            "worker processes",
            f"{plan.workers:,}",
            f"{plan.worker:,.2f} cores at {UTILISATION:.0%} each: {costs.worker.entry:.1f} us an entry, "
            f"{costs.worker.subject:.2f} us a subject in it, {costs.worker.counter:.2f} us a counter, "
            f"{costs.worker.fresh:.2f} us more for a subject that is not cached",
        ),
        PlanLine(
            "memory of the primaries",
            size(plan.memory),
            f"counters {size(sum(plan.counters.values()))} and streams {size(plan.log)}, x {HEADROOM} for copies",
        ),
        PlanLine(
            "from apps",
            size(plan.traffic["from apps"]) + "/s",
            f"{costs.wire.append_entry:.0f} bytes an entry, {costs.wire.append_subject:.0f} bytes a subject in it",
        ),
        PlanLine(
            "to and from workers",
            size(plan.traffic["to workers"] + plan.traffic["from workers"]) + "/s",
            f"{costs.wire.read_entry:.0f} bytes an entry and its events, "
            f"{costs.wire.apply_counter:.0f} bytes a counter",
        ),
        PlanLine(
            "to the disk, to each replica",
            size(plan.traffic["to the disk"]) + "/s",
            f"{costs.wire.log_entry:.0f} bytes an entry, {costs.wire.log_total:.0f} bytes a counter, "
            f"{costs.wire.log_window:.0f} bytes a bucket",
        ),
        PlanLine(
            "processor time of the apps",
            f"{plan.producer:,.2f} cores",
            f"{costs.producer.event:.2f} us an event, {costs.producer.entry:.0f} us an entry",
        ),
    ]


def drivers(plan: Plan) -> list[PlanLine]:
    """Return the largest costs of a plan, at most 8 of each kind, each with its share in the sum of all of its kind.

    First come the cores of the servers' main threads, by task; then the memory of the counters, by metric and rule, and
    of the streams, without headroom. In each kind, the largest is first.
    """
    spent = sum(plan.server.values())
    time = [
        PlanLine(f"time: {what}", f"{seconds:,.3f} cores", f"{seconds / spent:.0%} of the servers' time")
        for what, seconds in _largest(plan.server)
    ]
    kept = plan.counters | {"streams": plan.log}
    memory = [
        PlanLine(f"memory: {what}", size(taken), f"{taken / sum(kept.values()):.0%} of the servers' memory")
        for what, taken in _largest(kept)
    ]
    return time + memory


def document(load: ExpectedLoad, plan: Plan, costs: Costs, settings: Settings, replicas: int) -> dict[str, Any]:
    """Return a plan, its load and its constants as a dict for JSON, in bytes, cores and bytes per second.

    Of its figures, only `memory_bytes` includes the headroom. Its `replicas` is the number of all replicas together.
    Its `measured` has the constants in their own units, such as microseconds.

    Args:
        load: The expected load.
        plan: The plan for the load.
        costs: The measured constants.
        settings: The settings that the plan was made with.
        replicas: Number of replicas of each primary.
    """
    return {
        "load": {
            "events_per_second": load.events,
            "subjects": load.subjects,
            "shares": dict(load.shares),
            "actors": load.actors,
            "producers": load.producers,
            "linger": load.linger,
            "skew": load.skew,
            "retention": settings.retention.age,
        },
        "partitions": plan.partitions,
        "primaries": plan.primaries,
        "replicas": plan.primaries * replicas,
        "workers": plan.workers,
        "memory_bytes": round(plan.memory),
        "counters_bytes": {what: round(taken) for what, taken in plan.counters.items()},
        "log_bytes": round(plan.log),
        "server_cores": plan.server,
        "worker_cores": plan.worker,
        "app_cores": plan.producer,
        "bytes_per_second": {what: round(rate) for what, rate in plan.traffic.items()},
        "packing": asdict(plan.packing),
        "stated": {"utilisation": UTILISATION, "memory_headroom": HEADROOM, "partitions_per_primary": PER_PRIMARY},
        "measured": msgspec.to_builtins(costs),
    }


def size(value: float) -> str:
    """Return a number of bytes as text with a unit: `12 bytes`, `1.5 KiB`, MiB, GiB or TiB, which are powers of 1,024.

    The text has one decimal from 1 KiB on, and none below.
    """
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:  # noqa: PLR2004  # the step from unit to unit
            return f"{value:,.1f} {unit}" if unit != "bytes" else f"{value:,.0f} bytes"
        value /= 1024
    return f"{value:,.1f} TiB"


def _largest(of: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(of.items(), key=lambda item: -item[1])[:_SHOWN]
