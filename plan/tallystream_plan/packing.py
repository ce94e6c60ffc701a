"""Into how many entries events are packed, and how many of them a worker folds into one batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tallystream_worker.counting.fetch import MAX_READ
from tallystream_worker.counting.validation import REMEMBERED

if TYPE_CHECKING:
    from tallystream_plan.load import ExpectedLoad

ENTRY_EVENTS: Final = 1000
"""Events at which a producer flushes an entry before its linger is over."""

_NEVER: Final = 1e15
"""Events after which a memory that is not full yet counts as one that never is."""


@dataclass(frozen=True)
class Packing:
    """Of all partitions together, by the second.

    Attributes:
        entry_events: Events in an entry.
        entries: Entries.
        subjects: Subjects in them: a subject that has several events in an entry is sent once.
        singles: Events with an actor, each by itself.
        batch_events: Events in a batch once the worker has no time to waste: full, or of the largest read.
        batches: Batches.
        counters: By metric, the subjects in the batches: each is one update of a total.
        fresh: Subjects in them that a worker does not remember, and looks at again.
    """

    entry_events: float
    entries: float
    subjects: float
    singles: float
    batch_events: float
    batches: float
    counters: dict[str, float]
    fresh: float


def pack(load: ExpectedLoad, partitions: int, max_keys: int) -> Packing:
    """Return how a load is packed.

    A producer seals the entry of a partition `linger` after its first event: by then 1 + rate * linger have come.
    """
    rate = load.events / load.producers / partitions
    entry_events = min(ENTRY_EVENTS, 1 + rate * load.linger)
    entries = load.events / entry_events
    plain = [name for name in load.metrics if not load.bears_actors(name)]
    in_entry = sum(load.distinct(entry_events * partitions * load.shares[name]) / partitions for name in plain)
    batch_events = _batch(load, partitions, max_keys, MAX_READ * entry_events)
    batches = load.events / batch_events
    counters = {name: batches * subjects for name, subjects in _subjects(load, partitions, batch_events).items()}
    singles = sum(load.of(name) for name in load.metrics if load.bears_actors(name))
    return Packing(
        entry_events, entries, entries * in_entry, singles, batch_events, batches, counters, _fresh(load, partitions)
    )


def _fresh(load: ExpectedLoad, partitions: int) -> float:
    """Return the subjects, by the second, that are looked at anew: of each partition so many are remembered.

    The memory begins anew when it is full: after as many events as are of so many different subjects.
    """
    if load.subjects <= REMEMBERED * partitions:
        return 0.0
    low = high = float(REMEMBERED)
    while load.distinct(high * partitions) < REMEMBERED * partitions:
        low, high = high, high * 2
        if high > _NEVER:
            return 0.0
    while high / low > 1.001:  # noqa: PLR2004  # far within what a plan is good for
        middle = (low * high) ** 0.5
        low, high = (middle, high) if load.distinct(middle * partitions) < REMEMBERED * partitions else (low, middle)
    return load.events * REMEMBERED / high


def _subjects(load: ExpectedLoad, partitions: int, events: float) -> dict[str, float]:
    """Return, by metric, the subjects among so many events of one partition."""
    return {name: load.distinct(events * partitions * share) / partitions for name, share in load.shares.items()}


def _batch(load: ExpectedLoad, partitions: int, max_keys: int, most: float) -> float:
    """Return the events at which a batch is closed: by bisection, as its weight grows with them."""
    low, high = 1.0, most
    if _weight(load, partitions, high) <= max_keys:
        return high
    while high / low > 1.001:  # noqa: PLR2004  # far within what a plan is good for
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _weight(load, partitions, middle) <= max_keys else (low, middle)
    return low


def _weight(load: ExpectedLoad, partitions: int, events: float) -> float:
    """Return what so many events are worth towards `max_keys`; see `Batch.counters`."""
    weight = 0.0
    for name, subjects in _subjects(load, partitions, events).items():
        rule = load.metrics[name]
        if load.bears_actors(name):
            weight += 4 * events * load.shares[name]
        else:
            weight += subjects * ((12 if rule.limit is not None else 4) + len(rule.windows)) / 4
    return weight
