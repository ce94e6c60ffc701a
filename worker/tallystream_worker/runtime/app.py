"""The composition root: puts the parts together, in start order; stop is the same list backwards."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace as changed

from tallystream.client.connect import connect
from tallystream.client.durability import DurabilityCheck
from tallystream.deployment import create_or_load, spread_fields
from tallystream.errors import ConsumerGroupMissing
from tallystream.rules.metrics import publish
from tallystream_worker.alerts.service import alerting
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.runtime.metrics import WorkerMetrics
from tallystream_worker.runtime.partition_follower import PartitionFollower
from tallystream_worker.runtime.supervisor import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules
    from tallystream_worker.counting.outcome import BatchSubscriber
    from tallystream_worker.settings.settings import Settings


def open_books(settings: Settings, log: FilteringBoundLogger | None = None) -> Deployment:
    """Agree with what is stored, and publish the declared metrics for producers and readers.

    What was counted by other rules stays as it is: the metrics concerned are said in the log.

    Raises:
        ConfigurationError: what is stored disagrees with the settings.
    """
    client = connect(settings.redis.url)
    try:
        meta = create_or_load(client, settings.redis.expected, settings.redis.namespace)
        meta.refuse_gathering(settings.rules)
        DurabilityCheck(settings.worker.durability).check(client)
        # Groups first: who reads the metrics may decide at once, and what is decided before there is a group to
        # acknowledge it would look like the work of a group that is gone.
        for keys in meta.layout.keys:
            with suppress(ConsumerGroupMissing):  # that partition's alarm, when its thread comes to it
                Fetch(client, keys, settings.worker.consumer).ensure_group()
        if log is not None and meta.rules is not None and (changes := without_history(meta.rules, settings.rules)):
            log.warning(
                "rules have changed: what was counted before does not follow them, until: tallystream rebuild",
                metrics=", ".join(changes),
            )
        # What was retracted is no setting: a worker that starts leaves it as it is.
        rules = changed(settings.rules, retracted=meta.rules.retracted) if meta.rules else settings.rules
        # One write: whoever reads that a metric is spread, or was, also reads the rules that say so, or later ones.
        client.hset(meta.layout.meta, mapping={"rules": publish(rules), **spread_fields(rules.spread)})
    finally:
        client.close()
    return meta


def without_history(before: Rules, now: Rules) -> list[str]:
    """Return the metrics of which older events were counted by rules that counted otherwise."""
    # What matters where a number is shown, or where an event is counted, and not to what it comes to.
    shown = {"description": "", "floor": None, "spread": False}
    moved = before.zone != now.zone
    return [
        name
        for name, metric in sorted(now.metric.items())
        if name in before.metric and (moved or changed(before.metric[name], **shown) != changed(metric, **shown))
    ]


@contextmanager
def counting(
    settings: Settings,
    log: FilteringBoundLogger,
    subscribers: Sequence[BatchSubscriber] = (),
    *,
    consumer: str | None = None,
) -> Iterator[PartitionFollower]:
    """Count in the background for as long as the context lasts; then finish the batches in hand.

    Archives and takes snapshots beside it, where the settings name a place, and audits where they say how often.
    """
    meta = open_books(settings, log)
    delivered = next((each.delivered for each in subscribers if isinstance(each, WorkerMetrics)), None)

    def pool(meta: Deployment) -> WorkerPool:
        return WorkerPool(settings, meta, log, subscribers, consumer=consumer)

    @contextmanager
    def beside(meta: Deployment) -> Iterator[None]:
        with ExitStack() as stack:
            name = consumer or settings.worker.consumer
            kept = None if meta.kept is None else meta.layout_of(meta.kept)
            stack.enter_context(alerting(settings, meta.layout, log, name, delivered, kept))
            if settings.archive.url:
                from tallystream_worker.archive.service import archiving  # noqa: PLC0415  # pyarrow is an extra

                stack.enter_context(archiving(settings, meta, log))
            if settings.snapshot.url:
                from tallystream_worker.snapshot.snapshotter import snapshotting  # noqa: PLC0415  # SQLAlchemy takes its time

                stack.enter_context(snapshotting(settings, meta, log))
            if settings.audit.every:
                from tallystream_worker.rebuild.schedule import auditing  # noqa: PLC0415  # seldom asked for

                stack.enter_context(auditing(settings, log))
            yield

    follower = PartitionFollower(settings, meta, log, pool, beside)
    try:
        follower.begin()
        yield follower
    finally:
        follower.stop()
