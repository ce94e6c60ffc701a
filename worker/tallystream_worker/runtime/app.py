"""The composition root: the list of services that are a worker."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace as changed

from tallystream.client.connect import connect
from tallystream.client.durability import DurabilityCheck
from tallystream.deployment import Deployment
from tallystream.errors import ConsumerGroupMissing
from tallystream.rules.metrics import publish
from tallystream.storage.deployment_hash import spread_fields
from tallystream_worker.alerts.service import alert_services
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.maintenance.hot_subjects import hot_subjects_service
from tallystream_worker.maintenance.losses import losses_service
from tallystream_worker.maintenance.reaper import reaper_service
from tallystream_worker.maintenance.trim import trim_service
from tallystream_worker.process.services import quiet_all, start_all, stop_all
from tallystream_worker.repartition.stragglers import straggler_service
from tallystream_worker.runtime.metrics import WorkerMetrics
from tallystream_worker.runtime.partition_follower import PartitionFollower
from tallystream_worker.runtime.supervisor import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from structlog.typing import FilteringBoundLogger

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout
    from tallystream_worker.counting.outcome import BatchSubscriber
    from tallystream_worker.process.periodic import PeriodicService, ServiceHealth
    from tallystream_worker.runtime.partition_worker import PartitionHealth
    from tallystream_worker.settings.settings import Settings


def open_deployment(settings: Settings, log: FilteringBoundLogger | None = None) -> Deployment:
    """Agree with what is stored, and publish the declared metrics for producers and readers.

    What was counted by other rules stays as it is: the metrics concerned are said in the log.

    Raises:
        ConfigurationError: what is stored disagrees with the settings.
    """
    client = connect(settings.redis.url)
    try:
        deployment = Deployment.create_or_load(client, settings.redis.expected, settings.redis.namespace)
        deployment.refuse_gathering(settings.rules)
        DurabilityCheck(settings.worker.durability).check(client)
        # Groups first: who reads the metrics may decide at once, and what is decided before there is a group to
        # acknowledge it would look like the work of a group that is gone.
        for keys in deployment.layout.keys:
            with suppress(ConsumerGroupMissing):  # that partition's alarm, when its thread comes to it
                Fetch(client, keys, settings.worker.consumer).ensure_group()
        before, rules = deployment.declared, settings.rules
        if log is not None and before is not None and (changes := without_history(before, rules)):
            log.warning(
                "rules.changed",
                metrics=", ".join(changes),
                problem="counts from before the change do not follow the new rules",
                action="run: tallystream rebuild",
            )
        # What was retracted is no setting: a worker that starts leaves it as it is.
        rules = rules if before is None else changed(rules, retracted=before.retracted)
        # One write: whoever reads that a metric is spread, or was, also reads the rules that say so, or later ones.
        client.hset(deployment.layout.meta, mapping={"rules": publish(rules), **spread_fields(rules.spread)})
    finally:
        client.close()
    return deployment


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


class Worker:
    """A worker of one namespace: its services, which `start` starts in order and `stop` stops backwards.

    Counting comes first, because everything else reads what it writes and can wait. Then comes what keeps the streams
    within bounds, then what delivers alerts, copies and audits. Backwards, so that whatever reads the counters is told
    to end before what writes them. All services are told to end before any is waited for, and have one deadline.

    Each service asks in each pass which log and generation are live, so none is started again when they change; only
    the partition workers belong to one log, and the follower replaces them.

    Args:
        settings: What was configured.
        log: Where changes of state are logged.
        subscribers: Called with the result of each applied batch.
        consumer: The name in the groups, if not the configured one.

    Raises:
        ConfigurationError: what is stored disagrees with the settings.
        ArchiveError: the archive is that of other data.
        SnapshotError: the database of the snapshots cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        log: FilteringBoundLogger,
        subscribers: Sequence[BatchSubscriber] = (),
        *,
        consumer: str | None = None,
    ) -> None:
        deployment = open_deployment(settings, log)
        name = consumer or settings.worker.consumer
        delivered = next((each.delivered for each in subscribers if isinstance(each, WorkerMetrics)), None)

        def pool(deployment: Deployment) -> WorkerPool:
            return WorkerPool(settings, deployment, log, subscribers, consumer=name)

        self._timeout = settings.worker.stop_timeout
        self.follower = follower = PartitionFollower(settings, deployment, log, pool)
        self.services: list[PartitionFollower | PeriodicService] = [
            follower,
            straggler_service(settings, deployment, log),
            trim_service(settings, deployment, log),
            losses_service(settings, deployment, log),
            reaper_service(settings, deployment, name, log),
            hot_subjects_service(settings, deployment, lambda: follower.pool.hot_subjects, log),
            *alert_services(settings, deployment, log, name, delivered),
        ]
        if settings.archive.url:
            from tallystream_worker.archive.service import archive_service  # noqa: PLC0415  # pyarrow is an extra

            self.services.append(archive_service(settings, deployment, log))
        if settings.snapshot.url:
            from tallystream_worker.snapshot.service import snapshot_service  # noqa: PLC0415  # SQLAlchemy takes its time

            self.services.append(snapshot_service(settings, deployment, log))
        if settings.audit.every:
            from tallystream_worker.rebuild.schedule import audit_service  # noqa: PLC0415  # seldom asked for

            self.services.append(audit_service(settings, log))

    def start(self) -> None:
        """Begin to count, and everything beside it."""
        start_all(self.services)

    def quiet(self) -> None:
        """Begin nothing new; what is in hand goes on, and `stop` waits for it."""
        quiet_all(self.services)

    def stop(self) -> bool:
        """Finish what is in hand; return whether all of it ended within `[worker] stop_timeout` seconds."""
        return stop_all(self.services, time.monotonic() + self._timeout)

    @property
    def layout(self) -> Layout:
        """Where it counts."""
        return self.follower.pool.layout

    @property
    def health(self) -> list[PartitionHealth]:
        """The state of each partition."""
        return self.follower.pool.health

    @property
    def service_health(self) -> list[ServiceHealth]:
        """The state of each service beside the partition workers."""
        return [service.health for service in self.services]


@contextmanager
def counting(
    settings: Settings,
    log: FilteringBoundLogger,
    subscribers: Sequence[BatchSubscriber] = (),
    *,
    consumer: str | None = None,
) -> Iterator[Worker]:
    """Run a worker for as long as the context lasts; then finish what is in hand. For the arguments see `Worker`."""
    worker = Worker(settings, log, subscribers, consumer=consumer)
    try:
        worker.start()
        yield worker
    finally:
        worker.stop()
