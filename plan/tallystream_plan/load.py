"""What is to be counted, and how many different subjects so many events are of."""

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
"""Ranks that are looked at one by one; those behind them in blocks of a 32nd of their rank."""


@dataclass(frozen=True)
class ExpectedLoad:
    """What the user expects.

    Attributes:
        events: Events a second, at the peak.
        subjects: Different subjects that are counted in a year.
        metrics: The rules of each metric that they are of.
        shares: The share of the events that each metric has; together 1.
        actors: Different actors that a subject has in a year; 0 where events name none.
        producers: Processes that emit.
        linger: Seconds for which an event waits for others to share its entry.
        skew: The exponent of Zipf's law that the subjects follow; 0: all are equally frequent.
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
            if not least <= value <= 1e15:  # noqa: PLR2004  # beyond any plan
                raise ConfigurationError(f"plan: {name} must be at least {least:g}, not {value:g}")
        if not 0 <= self.skew <= 3:  # noqa: PLR2004  # real loads are between 0.7 and 1.3
            raise ConfigurationError(f"plan: skew must be 0 (all subjects alike) to 3, not {self.skew:g}")
        if min(self.shares.values()) <= 0:
            raise ConfigurationError("plan: a metric's share must be more than 0")

    def of(self, metric: str) -> float:
        """Return the events a second of one metric."""
        return self.events * self.shares[metric]

    def bears_actors(self, metric: str) -> bool:
        """Tell whether the events of a metric have an actor that its rules look at: then each travels by itself."""
        rule = self.metrics[metric]
        return rule.once is not None or (rule.unique is not None and self.actors > 0)

    def distinct(self, events: float) -> float:
        """Return how many different subjects so many events are of, on average."""
        return distinct(events, self.subjects, self.skew)


def distinct(events: float, subjects: int, skew: float) -> float:
    """Return the expected number of different subjects among independent events.

    A subject of probability p is among n events with probability 1 - (1 - p)^n, about 1 - exp(-np).

    Args:
        events: How many are drawn.
        subjects: How many there are.
        skew: The exponent s of Zipf's law: the k-th most frequent is drawn in proportion to k^-s.
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
    """Yield ranks with the number of subjects that each stands for."""
    first = 1
    while first <= subjects:
        count = 1 if first <= _EXACT else min(first // 32, subjects - first + 1)
        yield first + (count - 1) / 2, count
        first += count
