"""The most frequent subjects among the events of some entries, in bounded memory.

Misra and Gries, "Finding repeated elements" (1982), with the batched reduction of Agarwal et al., "Mergeable summaries"
(2012): of N events that were looked at, a subject's count is too low by N / (`KEPT` + 1) at most, and never too high.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tallystream.wire.codec import Payload

KEPT: Final = 256
"""Subjects that are kept apart behind a reduction."""

ROOM: Final = 4096
"""Subjects that lead to one."""

_SPAN: Final = 200_000
"""Events after which what was seen before counts half."""

_FEW: Final = 100
"""Events of which a share says nothing yet."""


class FrequentSubjects:
    """The most frequent subjects among the events of some entries."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)
        self._events = 0

    def take(self, payload: Payload) -> None:
        """Take the events of one entry."""
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
        """Metric, subject and share of the most frequent one."""
        if self._events < _FEW:
            return None
        count, metric, subject = max(
            (count, metric, subject) for metric, counts in self._counts.items() for subject, count in counts.items()
        )
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
