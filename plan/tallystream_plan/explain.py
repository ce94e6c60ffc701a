"""A plan in words: each figure with the constant that it comes from."""

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
"""Parts of the cost that are shown."""


@dataclass(frozen=True)
class PlanLine:
    """A figure, and why it is that."""

    name: str
    figure: str
    because: str


def lines(
    load: ExpectedLoad, plan: Plan, costs: Costs, settings: Settings, replicas: int, node_memory: float
) -> list[PlanLine]:
    """Return what a load needs."""
    packing = plan.packing
    each = load.events / load.producers / plan.partitions
    hint = "; few: a longer --linger or fewer producers save most" if packing.entry_events < _FEW else ""
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
            f"{settings.worker.max_keys:,} counters, or {MAX_READ} entries: when busy, so at its cheapest",
        ),
        PlanLine(
            "primaries",
            f"{plan.primaries:,}",
            f"the larger of {cores:,.2f} cores of main threads at {UTILISATION:.0%} each, and of the memory below by "
            f"{size(node_memory)}",
        ),
        PlanLine("replicas", f"{plan.primaries * replicas:,}", f"{replicas} for each primary"),
        PlanLine(
            "worker processes",
            f"{plan.workers:,}",
            f"{plan.worker:,.2f} cores at {UTILISATION:.0%} each: {costs.worker.entry:.1f} us an entry, "
            f"{costs.worker.subject:.2f} a subject in it, {costs.worker.counter:.2f} a counter, "
            f"{costs.worker.fresh:.2f} more a subject that is not remembered",
        ),
        PlanLine(
            "memory of the primaries",
            size(plan.memory),
            f"counters {size(sum(plan.counters.values()))} and log {size(plan.log)}, x {HEADROOM} for copies",
        ),
        PlanLine(
            "from apps",
            size(plan.traffic["from apps"]) + "/s",
            f"{costs.wire.append_entry:.0f} bytes an entry, {costs.wire.append_subject:.0f} a subject in it",
        ),
        PlanLine(
            "to and from workers",
            size(plan.traffic["to workers"] + plan.traffic["from workers"]) + "/s",
            f"{costs.wire.read_entry:.0f} bytes an entry and what is in it; {costs.wire.apply_counter:.0f} a counter",
        ),
        PlanLine(
            "to the disk, to each replica",
            size(plan.traffic["to the disk"]) + "/s",
            f"{costs.wire.log_entry:.0f} bytes an entry, {costs.wire.log_total:.0f} a counter, "
            f"{costs.wire.log_window:.0f} a bucket",
        ),
        PlanLine(
            "of the apps' own time",
            f"{plan.producer:,.2f} cores",
            f"{costs.producer.event:.2f} us an event, {costs.producer.entry:.0f} us an entry",
        ),
    ]


def drivers(plan: Plan) -> list[PlanLine]:
    """Return what the servers' time and memory go to, the largest first."""
    spent = sum(plan.server.values())
    time = [
        PlanLine(f"time: {what}", f"{seconds:,.3f} cores", f"{seconds / spent:.0%} of the servers' time")
        for what, seconds in _largest(plan.server)
    ]
    kept = plan.counters | {"log": plan.log}
    memory = [
        PlanLine(f"memory: {what}", size(taken), f"{taken / sum(kept.values()):.0%} of the servers' memory")
        for what, taken in _largest(kept)
    ]
    return time + memory


def document(load: ExpectedLoad, plan: Plan, costs: Costs, settings: Settings, replicas: int) -> dict[str, Any]:
    """Return a plan as JSON-ready values; bytes, seconds of a core by the second, and bytes a second."""
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
    """Return bytes for people: `1.5 GiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:  # noqa: PLR2004  # the step from unit to unit
            return f"{value:,.1f} {unit}" if unit != "bytes" else f"{value:,.0f} bytes"
        value /= 1024
    return f"{value:,.1f} TiB"


def _largest(of: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(of.items(), key=lambda item: -item[1])[:_SHOWN]
