"""Finds the most frequent subject among the events of some entries, in bounded memory.

The algorithm is that of Misra and Gries, "Finding repeated elements" (1982), with the batched reduction of Agarwal et
al., "Mergeable summaries" (2012): after N events, the count of a subject is at most N / (`KEPT` + 1) too low, and never
too high.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tallystream.wire.codec import Payload

KEPT: Final = 256
"""The largest number of subjects that keep a count after a reduction."""

ROOM: Final = 4096
"""The number of counted subjects above which the counts are reduced."""

_SPAN: Final = 200_000
"""The number of events above which all counts are halved, so that newer events weigh more."""

_FEW: Final = 100
"""The smallest number of events from which a share is computed; a halving counts as half of the events."""


class FrequentSubjects:
    """Approximate counts of the most frequent pairs of metric and subject among the events that were added.

    `take` adds the events of an entry; `largest` is the most frequent pair. Not thread-safe. Newer events weigh more:
    all counts are halved after about 200,000 events, and then about every 100,000.
    """

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)
        self._events = 0

    def take(self, payload: Payload) -> None:
        """Add the events of one entry to the counts; if the counts grow too many or too large, reduce or halve them."""
        for group in payload.groups:
            counts = self._counts[group.metric]
            counts.update(group.ones)
            counts.update(group.counts)
            for subject, (_, events) in group.sums.items():
                counts[subject] += events
        for visits in payload.visits:
            self._counts[visits.metric].update(visits.subjects)
        for single in payload.singles:
            self._counts[single.metric][single.subject] += 1
        self._events += payload.events
        if sum(map(len, self._counts.values())) > ROOM:
            self._reduce()
        if self._events > _SPAN:
            self._events //= 2
            self._keep(lambda count: count // 2)

    @property
    def largest(self) -> tuple[str, str, float] | None:
        """The most frequent pair: its metric, its subject, and its approximate share of the events (0 to 1).

        `None` if fewer than 100 events were added, or if no pair has a count, because they were equally frequent when
        the counts were last reduced or halved.
        """
        if self._events < _FEW:
            return None
        counted = ((n, metric, subject) for metric, counts in self._counts.items() for subject, n in counts.items())
        largest = max(counted, default=None)  # a reduction removes all subjects if they are equally frequent
        if largest is None:
            return None
        count, metric, subject = largest
        return metric, subject, count / self._events

    def _reduce(self) -> None:
        cut = sorted((count for counts in self._counts.values() for count in counts.values()), reverse=True)[KEPT]
        self._keep(lambda count: count - cut)

    def _keep(self, less: Any) -> None:
        self._counts = defaultdict(
            Counter,
            {
                metric: left
                for metric, counts in self._counts.items()
                if (left := Counter({s: rest for s, count in counts.items() if (rest := less(count)) > 0}))
            },
        )
