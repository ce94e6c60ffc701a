"""Which subject gets the most of a partition's events: from a sample of the entries, one of each batch."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from tallystream.client.connect import connect
from tallystream.reading.query import Query, raise_on_error
from tallystream.storage.keys import FIRST_TOPIC
from tallystream_worker.maintenance.frequent_subjects import FrequentSubjects
from tallystream_worker.maintenance.partitions import INTERVAL, for_each_partition, maintenance_service

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout, PartitionKeys
    from tallystream_worker.counting.outcome import BatchResult
    from tallystream_worker.process.periodic import PeriodicService
    from tallystream_worker.settings.settings import Settings

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


class HotSubjectTracker:
    """Subscribes to outcomes, and knows the hottest subject of each partition; safe across threads.

    Args:
        partitions: How many partitions are counted.
        log: The number of the log that has them.
    """

    def __init__(self, partitions: int, log: int = FIRST_TOPIC) -> None:
        self.log = log
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


class HotSubjects:
    """Lets others see the hottest subject of each partition, and logs one that becomes hot.

    Args:
        client: Where the partitions are.
        deployment: The data that the worker began with.
        tracker: Returns what has noted the batches; another one once counting has gone on in another topic.
        log: Where a subject is logged that has become hot.
    """

    def __init__(
        self,
        client: redis.Redis,
        deployment: Deployment,
        tracker: Callable[[], HotSubjectTracker],
        log: FilteringBoundLogger,
    ) -> None:
        self._client = client
        self._deployment = deployment
        self._tracker = tracker
        self._log = log
        self._logged: dict[str, tuple[str, str]] = {}  # by stream, the last one: metric and subject

    def run_once(self) -> None:
        """Show what was found since the last pass.

        Raises:
            redis.RedisError: the server does not answer, or refuses.
        """
        tracker = self._tracker()
        tracker.tick()

        def show_one(partition: int, keys: PartitionKeys, found: Deployment) -> None:
            # Other than the tracker's where the events were just moved, and counting is about to follow.
            hot = tracker.of(partition) if found.layout.topic == tracker.log else None
            if hot is not None and hot.events_per_second:  # what was shown before fades by itself
                self._show(keys, hot, found.declared)

        for_each_partition(self._client, self._deployment, show_one)

    def _show(self, keys: PartitionKeys, hot: HotSubject, rules: Rules | None) -> None:
        show(self._client, keys, hot)
        name = (hot.metric, hot.subject)
        if hot.is_hot and self._logged.get(keys.stream) != name:
            self._logged[keys.stream] = name
            self._log.info(
                "partition.hot_subject", stream=keys.stream, metric=hot.metric,
                subject=hot.subject, share=round(hot.share, 2), action=advice(hot, rules),
            )  # fmt: skip


def hot_subjects_service(
    settings: Settings, deployment: Deployment, tracker: Callable[[], HotSubjectTracker], log: FilteringBoundLogger
) -> PeriodicService:
    """Return the service that shows hot subjects."""
    client = connect(settings.redis.url)
    job = HotSubjects(client, deployment, tracker, log)
    return maintenance_service("hot-subjects", INTERVAL, job.run_once, client, log)
