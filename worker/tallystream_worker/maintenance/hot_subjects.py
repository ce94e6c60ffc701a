"""Which subject gets the most of a partition's events: from a sample of the entries, in bounded memory.

One entry of each batch is looked at. Misra and Gries, "Finding repeated elements" (1982), with the batched reduction of
Agarwal et al., "Mergeable summaries" (2012): of N events that were looked at, a subject's count is too low by
N / (`_KEPT` + 1) at most, and never too high.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from tallystream.reading.query import Query, raise_on_error

if TYPE_CHECKING:
    import redis

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout, PartitionKeys
    from tallystream.wire.codec import Payload
    from tallystream_worker.counting.outcome import BatchResult

_KEPT: Final = 256
"""Subjects that are kept apart behind a reduction."""

_ROOM: Final = 4096
"""Subjects that lead to one."""

_SPAN: Final = 200_000
"""Events after which what was seen before counts half."""

_FEW: Final = 100
"""Events of which a share says nothing yet."""

_SHOWN: Final = 60_000
"""Milliseconds for which others see what was found here."""

LARGE_SHARE: Final = 0.5
BUSY: Final = 10_000.0
"""From this share of a partition's events a subject is said to be hot, where they are so many a second: below that, any
server takes them."""


@dataclass(frozen=True)
class HotSubject:
    """The subject with the most events of a partition lately.

    Attributes:
        metric: Of which its events are.
        subject: Its name.
        share: Its part of the partition's events, 0 to 1.
        events_per_second: Of the partition, all subjects.
    """

    metric: str
    subject: str
    share: float
    events_per_second: float

    @property
    def is_hot(self) -> bool:
        """Whether it is worth a thought."""
        return self.share >= LARGE_SHARE and self.events_per_second >= BUSY


def advice(hot: HotSubject, rules: Rules | None) -> str:
    """Return what would help."""
    rule = rules.metric.get(hot.metric) if rules is not None else None
    if rule is None or rule.spread:
        return "its metric is spread, as far as its events have neither id nor actor"
    if rule.unspreadable_reason is not None:
        return (
            f"its metric has {rule.unspreadable_reason}, so it cannot be spread: "
            "give the partition's server more processor"
        )
    return f"spread = true in [metric.{hot.metric}] would send its events to all partitions"


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
        if sum(map(len, self._counts.values())) > _ROOM:
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
        cut = sorted((count for counts in self._counts.values() for count in counts.values()), reverse=True)[_KEPT]
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


class HotSubjectTracker:
    """Subscribes to outcomes, and knows the hottest subject of each partition; safe across threads."""

    def __init__(self, partitions: int) -> None:
        self._lock = threading.Lock()
        self._summaries = [FrequentSubjects() for _ in range(partitions)]
        self._events = [0] * partitions
        self._rates = [0.0] * partitions
        self._looked_at = time.monotonic()

    def __call__(self, outcome: BatchResult) -> None:
        """Take note of one applied batch."""
        with self._lock:
            self._events[outcome.partition] += outcome.events
            if outcome.sample is not None:
                self._summaries[outcome.partition].take(outcome.sample)

    def tick(self) -> None:
        """Take the rates of the time since the last call."""
        with self._lock:
            now = time.monotonic()
            seconds = max(0.001, now - self._looked_at)
            self._rates = [events / seconds for events in self._events]
            self._events = [0] * len(self._events)
            self._looked_at = now

    def of(self, partition: int) -> HotSubject | None:
        """Return the hottest subject of a partition; `None` where too little was seen."""
        with self._lock:
            largest = self._summaries[partition].largest
            return None if largest is None else HotSubject(*largest, self._rates[partition])


def show(client: redis.Redis, keys: PartitionKeys, hot: HotSubject) -> None:
    """Let others see it for a while."""
    client.set(keys.hot_subject, json.dumps(asdict(hot)), px=_SHOWN)


def query_hot_subjects(layout: Layout) -> Query[dict[str, HotSubject]]:
    """Ask for the hottest subject of each partition that has been busy within the last minute, by stream."""

    def parse(replies: list[Any]) -> dict[str, HotSubject]:
        found = zip(layout.keys, map(raise_on_error, replies), strict=True)
        return {keys.stream: HotSubject(**json.loads(text)) for keys, text in found if text}

    return Query([("GET", keys.hot_subject) for keys in layout.keys], parse)
