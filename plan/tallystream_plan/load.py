"""The expected load, and the number of different subjects among a number of its events."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from tallystream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tallystream.rules.metrics import Metric

_EXACT: Final = 64
"""Number of ranks that are calculated one by one; higher ranks are calculated in blocks of a 32nd of their rank."""


@dataclass(frozen=True)
class ExpectedLoad:
    """The load that the user expects. `of`, `bears_actors` and `distinct` calculate with it.

    Attributes:
        events: Events per second at the peak.
        subjects: Different subjects in a year.
        metrics: By name of each metric of the events, its rules.
        shares: By name of each metric, its share in the events, more than 0; the caller makes the sum 1.
        actors: Different actors of a subject in a year; 0 if events have no actor.
        producers: Number of processes that emit events.
        linger: Seconds for which an event waits for others in its entry.
        skew: Exponent of Zipf's law for the subjects; 0 if all are equally frequent.

    Raises:
        ConfigurationError: a value is out of range, or there is no metric.
    """

    events: float
    subjects: int
    metrics: Mapping[str, Metric]
    shares: Mapping[str, float]
    actors: int = 0
    producers: int = 10
    linger: float = 0.005
    skew: float = 1.0

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ConfigurationError("plan: name at least one metric")
        for name, value, least in (
            ("events a second", self.events, 1e-9),
            ("subjects", self.subjects, 1),
            ("actors", self.actors, 0),
            ("producers", self.producers, 1),
            ("linger", self.linger, 0),
        ):
            if not least <= value <= 1e15:  # noqa: PLR2004  # larger than any real load
                raise ConfigurationError(f"plan: {name} must be at least {least:g}, not {value:g}")
        if not 0 <= self.skew <= 3:  # noqa: PLR2004  # real loads are between 0.7 and 1.3
            raise ConfigurationError(f"plan: skew must be 0 (all subjects equally frequent) to 3, not {self.skew:g}")
        if min(self.shares.values()) <= 0:
            raise ConfigurationError("plan: the share of a metric must be more than 0")

    def of(self, metric: str) -> float:
        """Return the events per second of one metric at the peak."""
        return self.events * self.shares[metric]

    def bears_actors(self, metric: str) -> bool:
        """Return whether the events of a metric are packed one by one, because its rules need the actor of each event.

        The rule `once` needs it always, `unique` only if the load has actors, and no other rule needs it.
        """
        rule = self.metrics[metric]
        return rule.once is not None or (rule.unique is not None and self.actors > 0)

    def distinct(self, events: float) -> float:
        """Return the expected number of different subjects among `events` events of this load; 0 without events."""
        return distinct(events, self.subjects, self.skew)


def distinct(events: float, subjects: int, skew: float) -> float:
    """Return the expected number of different subjects among independent events, approximately; 0 without events.

    A subject with probability p is among n events with probability 1 - (1 - p)^n, about 1 - exp(-np).

    Args:
        events: Number of events.
        subjects: Number of subjects.
        skew: Exponent s of Zipf's law: the probability of the k-th most frequent subject is proportional to k^-s.
    """
    if events <= 0:
        return 0.0
    blocks = _blocks(subjects, skew)
    weight = sum(count * each for count, each in blocks)
    return sum(count * -math.expm1(-events * each / weight) for count, each in blocks)


@lru_cache(maxsize=64)
def _blocks(subjects: int, skew: float) -> list[tuple[int, float]]:
    return [(count, rank**-skew) for rank, count in _ranks(subjects)]


def _ranks(subjects: int) -> Iterator[tuple[float, int]]:
    """Divide the subjects into blocks of ranks; yield the middle rank and the number of subjects of each block.

    Rank 1 is the most frequent subject. See `_EXACT` for the lengths of the blocks.
    """
    first = 1
    while first <= subjects:
        count = 1 if first <= _EXACT else min(first // 32, subjects - first + 1)
        yield first + (count - 1) / 2, count
        first += count
