"""Calculates how many events producers pack into an entry, and how many events a worker folds into a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tallystream_worker.counting.fetch import MAX_READ
from tallystream_worker.counting.validation import REMEMBERED

if TYPE_CHECKING:
    from tallystream_plan.load import ExpectedLoad

ENTRY_EVENTS: Final = 1000
"""Number of events at which a producer seals an entry before its linger is over."""

_NEVER: Final = 1e15
"""If so many events do not fill a worker's cache of subjects, the cache counts as never full."""


@dataclass(frozen=True)
class Packing:
    """The packing of a load, for all partitions together.

    Attributes:
        entry_events: Events in one entry, on average.
        entries: Entries per second.
        subjects: Subjects in the entries per second; a subject with several events of a metric in an entry is sent
            once, with events of two metrics twice. Events that are packed one by one are not included.
        singles: Events per second that are packed one by one, because their actor is needed.
        batch_events: Events in one batch of a busy worker: a full batch, or the largest read if that is smaller.
        batches: Batches per second.
        counters: Subjects in the batches per second, by metric; each is one update of a total.
        fresh: Subjects per second that are not in the cache of a worker and are validated again.
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
    """Return how the events of a load are packed into entries, and folded into batches.

    A producer seals the entry of a partition `linger` seconds after its first event. The entry then has
    1 + rate * linger events, at most `ENTRY_EVENTS`; the rate is that of one producer for one partition.

    Args:
        load: The expected load.
        partitions: Number of partitions.
        max_keys: The cost of a batch, in totals (see `_weight`), at which it is full.
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
    """Return the subjects per second that workers validate because they are not cached; 0 if all subjects fit.

    A worker caches `REMEMBERED` subjects of each partition, and empties the cache when it is full. The number of events
    after which it is full is found by bisection; if that is more than `_NEVER`, the result is 0.
    """
    if load.subjects <= REMEMBERED * partitions:
        return 0.0
    low = high = float(REMEMBERED)
    while load.distinct(high * partitions) < REMEMBERED * partitions:
        low, high = high, high * 2
        if high > _NEVER:
            return 0.0
    while high / low > 1.001:  # noqa: PLR2004  # much more exact than a plan needs
        middle = (low * high) ** 0.5
        low, high = (middle, high) if load.distinct(middle * partitions) < REMEMBERED * partitions else (low, middle)
    return load.events * REMEMBERED / high


def _subjects(load: ExpectedLoad, partitions: int, events: float) -> dict[str, float]:
    """Return, by metric, the expected number of different subjects in one partition among `events` of its events.

    The events are those of all metrics together, in the shares of the load.
    """
    return {name: load.distinct(events * partitions * share) / partitions for name, share in load.shares.items()}


def _batch(load: ExpectedLoad, partitions: int, max_keys: int, most: float) -> float:
    """Return the number of events of one partition at which a batch is full, within 0.1 %; from 1 to `most`."""
    low, high = 1.0, most
    if _weight(load, partitions, high) <= max_keys:
        return high
    while high / low > 1.001:  # noqa: PLR2004  # much more exact than a plan needs
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _weight(load, partitions, middle) <= max_keys else (low, middle)
    return low


def _weight(load: ExpectedLoad, partitions: int, events: float) -> float:
    """Return the cost of applying a batch with a number of events of one partition; a batch is full at `max_keys`.

    The unit is the cost of one total; see `Batch.counters`.
    """
    weight = 0.0
    for name, subjects in _subjects(load, partitions, events).items():
        rule = load.metrics[name]
        if load.bears_actors(name):
            weight += 4 * events * load.shares[name]
        else:
            weight += subjects * ((12 if rule.limit is not None else 4) + len(rule.windows)) / 4
    return weight
