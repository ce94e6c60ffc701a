"""Finds the subject with the most events of each partition, from a sample: one entry of each batch."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from tallystream.client.connect import connect
from tallystream.client.replies import is_unreachable
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
"""Milliseconds after which a published hot subject expires."""

LARGE_SHARE: Final = 0.5
"""The share of a partition's events (0 to 1) from which a subject can be hot."""

BUSY: Final = 10_000.0
"""The events per second of a partition from which a subject can be hot. Below this, any server keeps up."""


@dataclass(frozen=True)
class HotSubject:
    """The most frequent subject of a partition of late, by a sample in which newer events weigh more.

    Attributes:
        metric: The metric of the subject's events.
        subject: The subject.
        share: About the share of the partition's sampled events that have this metric and subject, 0 to 1.
        events_per_second: The events of all subjects of the partition that one worker applied per second.
    """

    metric: str
    subject: str
    share: float
    events_per_second: float

    @property
    def is_hot(self) -> bool:
        """Whether `share` is 0.5 or more, and `events_per_second` is 10,000 or more."""
        return self.share >= LARGE_SHARE and self.events_per_second >= BUSY


def advice(hot: HotSubject, rules: Rules | None) -> str:
    """Return a text on what to do about a hot subject: spread its metric, or, if it cannot be spread, add processor.

    If the metric is spread already, or the published rules do not have it, the text states this instead.

    Args:
        hot: The subject.
        rules: The published rules; `None` if none are published.
    """
    if rules is None or (rule := rules.metric.get(hot.metric)) is None:
        return "the rules of its metric are not published yet"
    if rule.spread:
        return "its metric is spread already, except for events with an id"
    if (reason := rule.unspreadable_reason or ("an alert" if hot.metric in rules.alerts else None)) is not None:
        return f"its metric has {reason}, so it cannot be spread: give the partition's server more processor"
    return f"spread = true in [metric.{hot.metric}] would send its events to all partitions"


class HotSubjectTracker:
    """Tracks the most frequent subject of each partition, by a sample; any thread calls it with each applied batch.

    `of` returns the subject of a partition; `tick` ends the period over which its events per second are measured.

    Args:
        partitions: How many partitions are counted.
        topic: The number of the topic of these partitions.

    Attributes:
        topic: The number of the topic of these partitions.
    """

    def __init__(self, partitions: int, topic: int = FIRST_TOPIC) -> None:
        self.topic = topic
        self._lock = threading.Lock()
        self._summaries = [FrequentSubjects() for _ in range(partitions)]
        self._events = [0] * partitions
        self._rates = [0.0] * partitions
        self._looked_at = time.monotonic()

    def __call__(self, outcome: BatchResult) -> None:
        """Add the number of events of one applied batch to its partition; count the subjects of its sample, if any."""
        with self._lock:
            self._events[outcome.partition] += outcome.events
            if outcome.sample is not None:
                self._summaries[outcome.partition].take(outcome.sample)

    def tick(self) -> None:
        """Store, for `of`, the events per second of each partition since the last call; then count from zero again.

        The first call takes them since this object was made. The counts of subjects stay.
        """
        with self._lock:
            now = time.monotonic()
            seconds = max(0.001, now - self._looked_at)
            self._rates = [events / seconds for events in self._events]
            self._events = [0] * len(self._events)
            self._looked_at = now

    def of(self, partition: int) -> HotSubject | None:
        """Return the subject with the most events of a partition, hot or not; `None` if the sample shows none.

        See `FrequentSubjects.largest`. The events per second are those that the last `tick` stored; 0 before the first.
        """
        with self._lock:
            largest = self._summaries[partition].largest
            return None if largest is None else HotSubject(*largest, self._rates[partition])


def show(client: redis.Redis, keys: PartitionKeys, hot: HotSubject) -> None:
    """Store the given subject `hot`, as JSON, in the key of its partition for 60 seconds; it need not be hot."""
    client.set(keys.hot_subject, json.dumps(asdict(hot)), px=_SHOWN)


def query_hot_subjects(layout: Layout) -> Query[dict[str, HotSubject]]:
    """Return a query for the published subjects, by stream name; a partition that published none for 60 s is absent.

    So is one whose node of a cluster does not answer. They need not be hot: see `HotSubject.is_hot`.
    """

    def parse(replies: list[Any]) -> dict[str, HotSubject]:
        found = [(keys, reply) for keys, reply in zip(layout.keys, replies, strict=True) if not is_unreachable(reply)]
        return {keys.stream: HotSubject(**json.loads(text)) for keys, text in found if raise_on_error(text)}

    return Query([("GET", keys.hot_subject) for keys in layout.keys], parse)


class HotSubjects:
    """Publishes the subject with the most events of each partition that this worker counts, and logs a hot one.

    `run_once` makes one pass; the service calls it about every 2 seconds. A published subject expires after 60 seconds.

    Args:
        client: The connection to the partitions.
        deployment: The deployment that the worker started with.
        tracker: Returns the tracker of the applied batches, which is a new one after the worker has changed its topic.
        log: The logger of `partition.hot_subject`, with advice: a hot subject is logged unless it is the one that was
            logged last for its partition.
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
        """Publish the most frequent subject of each partition in which this worker applied events since the last pass.

        Publish nothing for a partition whose sample shows no such subject (see `HotSubjectTracker.of`), or if the
        worker does not count the live topic yet, or if the data was deleted or replaced, or a restore has not finished.
        Log the subject if it is hot and is not the one that was logged last for the partition.

        Raises:
            redis.RedisError: the server does not reply, or rejects a command; see `for_each_partition`.
            ConfigurationError: this release cannot read the stored layout version or rules.
            KeyLost, DamagedValue: the description of the deployment is lost in part, or damaged.
        """
        tracker = self._tracker()
        tracker.tick()

        def show_one(partition: int, keys: PartitionKeys, found: Deployment) -> None:
            # After a repartition the topic differs from the tracker's until the worker counts in the new topic.
            hot = tracker.of(partition) if found.layout.topic == tracker.topic else None
            if hot is not None and hot.events_per_second:  # if not, the last published subject expires
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
    """Return a service, not started, that publishes each partition's most frequent subject about every 2 seconds.

    Partitions in which this worker applies no events are left out. The subject need not be hot: see `HotSubjects`.

    Raises:
        ConfigurationError: the URL of the server cannot be used.
    """
    client = connect(settings.redis.url)
    job = HotSubjects(client, deployment, tracker, log)
    return maintenance_service("hot-subjects", INTERVAL, job.run_once, client, log)
