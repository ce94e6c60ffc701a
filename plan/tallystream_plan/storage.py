"""Calculates the memory of the counters, by metric and rule, and of the streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.rules.windows import seconds
from tallystream.wire.window import DAY, HOUR, MINUTE
from tallystream_worker.capacity.footprint import parts

if TYPE_CHECKING:
    from tallystream_plan.load import ExpectedLoad
    from tallystream_plan.packing import Packing
    from tallystream_worker.capacity.costs import Costs
    from tallystream_worker.capacity.footprint import MemoryPart
    from tallystream_worker.settings.settings import RetentionSettings

YEAR: Final = 365 * DAY
"""Seconds for which a plan is made: data that is kept forever is calculated with this age."""

_LENGTHS: Final = {"minute": MINUTE, "hour": HOUR, "day": DAY, "month": 30 * DAY}


def counter_bytes(load: ExpectedLoad, partitions: int, costs: Costs) -> dict[str, float]:
    """Return the bytes of the counters of all partitions, by metric and rule, such as `view: hours`.

    The names are for people. The bytes are those after a year of events at the rate of the peak, when older buckets
    have expired; without headroom. A rule that needs no memory is left out. A leaderboard is in the memory of its
    total, window or sketch. Not included are exact ids, Bloom filters, alerts, the sketch of `max_subjects`, and unique
    actors of metrics whose events have no actors (see `ExpectedLoad.bears_actors`).
    """
    found: dict[str, float] = {}
    for name, rule in load.metrics.items():
        for part in parts(rule, costs.memory):
            if part.actor and not load.bears_actors(name):
                continue
            taken = _bytes(part, load, name, partitions)
            if taken:
                found[f"{name}: {part.name}"] = taken
    return found


def _bytes(part: MemoryPart, load: ExpectedLoad, metric: str, partitions: int) -> float:
    if part.window is None:
        span, buckets = float(YEAR), 1.0
    else:
        span = float(_LENGTHS.get(part.window) or seconds(part.window) or YEAR)
        buckets = 1 + (YEAR if part.kept is None else min(part.kept, YEAR)) / span
    events = load.of(metric) * span
    active = load.distinct(events)
    actors = min(load.actors or 1, max(1.0, events / active)) if part.actor else 0.0
    return buckets * (active * (part.subject + min(part.most, part.actor * actors)) + part.partition * partitions)


def entry_bytes(packing: Packing, costs: Costs) -> float:
    """Return the bytes of memory per second by which the streams of all partitions grow, without trimming."""
    each = costs.memory
    return packing.entries * each.entry + packing.subjects * each.subject + packing.singles * each.single


def log_bytes(packing: Packing, partitions: int, costs: Costs, retention: RetentionSettings) -> float:
    """Return the bytes of the streams of all partitions at their bound of age or of size, whichever is smaller.

    The bound of size is `retention.bytes` for each partition; 0 is no bound. Without a bound of age (`forever`), the
    streams have the entries of a year. The rate is that of the peak, all the time. Headroom is not included.
    """
    age = retention.age_seconds
    by_age = entry_bytes(packing, costs) * (YEAR if age is None else age)
    return min(by_age, retention.bytes * partitions) if retention.bytes else by_age
