"""The composition root of the worker: the list of its services, and their start and stop."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tallystream.client.connect import connect
from tallystream.client.durability import DurabilityCheck
from tallystream.client.error_text import text_of
from tallystream.deployment import Deployment
from tallystream.errors import ConsumerGroupMissing, KeyLost
from tallystream_worker.alerts.service import alert_services
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.maintenance.clocks import clock_service
from tallystream_worker.maintenance.eviction import eviction_service, refuse_eviction
from tallystream_worker.maintenance.hot_subjects import hot_subjects_service
from tallystream_worker.maintenance.losses import losses_service
from tallystream_worker.maintenance.reaper import reaper_service
from tallystream_worker.maintenance.rules import rules_service
from tallystream_worker.maintenance.trim import trim_service
from tallystream_worker.process.description import note_durability
from tallystream_worker.process.failover_watch import FailedOver, FailoverWatch
from tallystream_worker.process.services import quiet_all, start_all, stop_all
from tallystream_worker.repartition.stragglers import straggler_service
from tallystream_worker.runtime.lost_data import refuse_lost_data
from tallystream_worker.runtime.metrics import WorkerMetrics
from tallystream_worker.runtime.partition_follower import PartitionFollower
from tallystream_worker.runtime.publication import publish_rules, warn_of_lost_rules
from tallystream_worker.runtime.supervisor import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.rules.metrics import Metric, Rules
    from tallystream.storage.keys import Layout
    from tallystream_worker.counting.outcome import BatchSubscriber
    from tallystream_worker.process.periodic import PeriodicService, ServiceHealth
    from tallystream_worker.runtime.partition_worker import PartitionHealth
    from tallystream_worker.runtime.publication import Published
    from tallystream_worker.settings.settings import Settings


def open_deployment(
    settings: Settings,
    log: FilteringBoundLogger | None = None,
    *,
    removing: Collection[str] = (),
    publishing: bool = True,
) -> Deployment:
    """Check the settings against the stored deployment, publish their rules to producers and readers, and return it.

    If the settings state no rules, the stored rules stay; stored metrics that the settings lack stay too, except those
    in `removing`. Creates the deployment if nothing is stored, and the consumer groups of partitions in which nothing
    was counted. Stores the configured durability. A partition that has lost a key or its group raises nothing here: its
    thread reports it. Stored retractions are kept. Totals that were counted by other rules stay unchanged: the metrics
    with changed rules are logged as a warning.

    Args:
        settings: The configuration.
        log: Logger for that warning, for what was published and kept, for lost rules, and if the publication is not
            confirmed; `None` to log nothing.
        removing: The stored metrics to remove, if the settings lack them.
        publishing: Whether to publish the rules of the settings. If not, others must have published rules: a process
            that another one restarts must not bring back rules that were replaced meanwhile.

    Returns:
        The deployment, with the rules that were published before this call; `declared` is `None` if none were.

    Raises:
        NothingDeclared: the server has no rules, and may have lost them: see `refuse_lost_data`; nothing was changed.
        ConfigurationError: the stored data disagrees with the settings, or is of another release, or the server does
            not support the configured durability, or may evict keys and `[redis] eviction` is `refuse`.
        DeploymentChanged: a restore has not finished, or the data was replaced meanwhile.
        KeyLost: the stored deployment is lost or not complete; the rules are not published.
        DamagedValue: the deployment has a stored value that tallystream never writes.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    client = connect(settings.redis.url)
    try:
        refuse_lost_data(client, settings, creating=publishing)
        deployment = Deployment.create_or_load(client, settings.redis.expected, settings.redis.namespace)
        deployment.refuse_gathering(settings.rules_over(deployment.declared, removing))
        DurabilityCheck(settings.worker.durability).check(client)
        note_durability(client, deployment, settings.worker.durability)
        if settings.redis.eviction == "refuse":
            refuse_eviction(client, deployment.layout)
        # Create the groups before the rules are published: a producer that reads the rules may decide an event at once,
        # and a decision without a group that acknowledges it would look like the work of a lost group.
        for keys in deployment.layout.keys:
            with suppress(ConsumerGroupMissing, KeyLost):  # the thread of that partition reports it; the others count
                Fetch(client, keys, settings.worker.consumer).ensure_group()
        if publishing:
            failovers = FailoverWatch(client, deployment.layout)
            published = publish_rules(client, settings, deployment, removing)
            if log is not None:
                _report(published, deployment, settings, log)
                if published.has_changed:
                    _report_unconfirmed(client, deployment, failovers, settings, log)
    finally:
        client.close()
    return deployment


def _report(published: Published, deployment: Deployment, settings: Settings, log: FilteringBoundLogger) -> None:
    """Log the result of a publication of rules; nothing is read or written.

    If the server has lost later rules, a warning names them. The other lines are logged only if rules were stored
    before: what changed, and which stored metrics were kept because the settings lack them.
    """
    before, rules = published.before, published.rules
    if published.lost:
        warn_of_lost_rules(log, deployment, published.lost)
    if before is None:
        return
    if not settings.states_rules:
        log.info(
            "rules.stored",
            metrics=", ".join(sorted(rules.metric)),
            reason="no configuration file states rules, so the stored rules are used",
        )
    if published.kept:
        log.warning(
            "rules.kept",
            metrics=", ".join(published.kept),
            reason="the server has these metrics and the configuration lacks them, so they are still counted",
            action="add them to the configuration, or remove them: tallystream worker --replace-rules",
        )
    if published.differences:
        log.info("rules.published", changes="; ".join(published.differences))
    if changes := without_history(before, rules):
        log.warning(
            "rules.changed",
            metrics=", ".join(changes),
            problem="figures of these metrics are not exact: events from before the change do not follow the new rules",
            action="run: tallystream rebuild",
        )


def _report_unconfirmed(
    client: redis.Redis,
    deployment: Deployment,
    failovers: FailoverWatch,
    settings: Settings,
    log: FilteringBoundLogger,
) -> None:
    """Log a warning if the publication of the rules is not confirmed within a second, or a node failed over meanwhile.

    Also log it if a server does not state whether it failed over. The worker starts nevertheless.
    """
    reason = DurabilityCheck(settings.worker.durability).confirm(client, deployment.layout.confirmed)
    if not reason:
        try:
            failovers.ensure_none("the rules are published", "restart this worker")
        except (FailedOver, RedisError) as error:
            reason = text_of(error)
    if reason:
        log.warning(
            "rules.unconfirmed",
            problem=f"the published rules may be lost in a failover: {reason}",
            action="if a worker then logs rules.lost, restart a worker that has the latest configuration",
        )


def without_history(before: Rules, now: Rules) -> list[str]:
    """Return, sorted, the names of the metrics with figures that are not exact, by the rules `now`, until a rebuild.

    A metric that only one of the two declares is left out. If the zones differ, all metrics that both declare are
    returned.

    Args:
        before: The published rules.
        now: The configured rules.
    """
    moved = before.zone != now.zone
    return [
        name
        for name, metric in sorted(now.metric.items())
        if name in before.metric and (moved or _needs_earlier_events(before.metric[name], metric))
    ]


def _needs_earlier_events(before: Metric, now: Metric) -> bool:
    """Return whether figures of a metric are not exact until its earlier events are counted by the rules `now`.

    docs/changing-rules.md lists these changes: a rule begins that has state of earlier events, or it needs more of it
    than was kept. All other changes apply to later events, or leave out something that was counted before.
    """
    if now.unique not in (None, before.unique) or now.top > before.top or not {*now.windows} <= {*before.windows}:
        return True
    if now.limit is not None and (before.limit is None or now.per != before.per):
        return True
    if (now.once is not None and before.once is None) or now.exact != before.exact:
        return True
    if before.max_subjects is not None and (now.max_subjects is None or now.max_subjects > before.max_subjects):
        return True
    windows = [*now.windows, *([now.unique] if now.unique else [])]
    kept = [[rule.retention_seconds(window) or float("inf") for window in windows] for rule in (before, now)]
    return any(new > old for old, new in zip(*kept, strict=True))


class Worker:
    """A worker of one namespace: `start` starts its services in order, and `stop` stops them in reverse order.

    Counting starts first, because all other services read what it writes and can wait. Then start the services that
    keep the streams within bounds, then those that deliver alerts, archive, take snapshots, audit and verify. All
    services get `quiet` before the first `stop`, and they have one deadline.

    The constructor calls `open_deployment`, and makes the services, not started. A switch to another topic or
    generation restarts no service: each reads the deployment again in its passes. Only the partition workers belong to
    one topic, and the partition follower replaces them.

    Args:
        settings: The configuration.
        log: Logger for the changes of state.
        subscribers: Called with the result of each applied batch. The first `WorkerMetrics` among them also records the
            deliveries of notifications.
        consumer: Consumer name in the groups; default: the configured one.
        removing: The stored metrics to remove; see `open_deployment`.
        publishing: Whether to publish the rules of the settings; see `open_deployment`.

    Raises:
        ConfigurationError: the stored data disagrees with the settings (see `open_deployment`); or the URL of the
            archive or of the snapshot database cannot be used.
        DeploymentChanged, KeyLost, DamagedValue: see `open_deployment`.
        ArchiveError: the archive belongs to another deployment, or its manifest cannot be read or written.
        ImportError: `settings.archive.url` is set, and the package pyarrow is not installed.
        redis.RedisError: the server does not reply, or rejects a command.
    """

    def __init__(
        self,
        settings: Settings,
        log: FilteringBoundLogger,
        subscribers: Sequence[BatchSubscriber] = (),
        *,
        consumer: str | None = None,
        removing: Collection[str] = (),
        publishing: bool = True,
    ) -> None:
        deployment = open_deployment(settings, log, removing=removing, publishing=publishing)
        name = consumer or settings.worker.consumer
        delivered = next((each.delivered for each in subscribers if isinstance(each, WorkerMetrics)), None)

        evicting: dict[str, str] = {}

        def pool(deployment: Deployment) -> WorkerPool:
            return WorkerPool(settings, deployment, log, subscribers, consumer=name, evicting=evicting)

        self._timeout = settings.worker.stop_timeout
        self.follower = follower = PartitionFollower(settings, deployment, log, pool)
        """The service that runs the worker pool of the live topic."""
        self.services: list[PartitionFollower | PeriodicService] = [
            follower,
            rules_service(settings, deployment, log),
            straggler_service(settings, deployment, log),
            trim_service(settings, deployment, log),
            losses_service(settings, deployment, log),
            reaper_service(settings, deployment, name, log),
            clock_service(settings, deployment, log),
            eviction_service(settings, deployment, log, evicting),
            hot_subjects_service(settings, deployment, lambda: follower.pool.hot_subjects, log),
            *alert_services(settings, deployment, log, name, delivered),
        ]
        """The services in the order of their start."""
        if settings.archive.url:
            from tallystream_worker.archive.service import archive_service  # noqa: PLC0415  # pyarrow is an extra

            self.services.append(archive_service(settings, deployment, log))
        if settings.snapshot.url:
            from tallystream_worker.snapshot.service import snapshot_service  # noqa: PLC0415  # SQLAlchemy is slow to import

            self.services.append(snapshot_service(settings, deployment, log))
        if settings.audit.every:
            from tallystream_worker.rebuild.schedule import audit_service  # noqa: PLC0415  # seldom needed

            self.services.append(audit_service(settings, log))
        if settings.verify.every:
            from tallystream_worker.verify.schedule import verify_service  # noqa: PLC0415  # seldom needed

            self.services.append(verify_service(settings, log))

    def start(self) -> None:
        """Start all services in the background, counting first, and return."""
        start_all(self.services)

    def quiet(self) -> None:
        """Tell all services to begin no new work, and return; running work continues, and `stop` waits for it."""
        quiet_all(self.services)

    def stop(self) -> bool:
        """Stop all services and wait for their work; return whether it ended within `[worker] stop_timeout` seconds."""
        return stop_all(self.services, time.monotonic() + self._timeout)

    @property
    def layout(self) -> Layout:
        """The layout of the topic that is counted now, with the generations that were live when its pool was made."""
        return self.follower.pool.layout

    @property
    def health(self) -> list[PartitionHealth]:
        """The state of the thread of each partition that this process serves, of the topic that is counted now."""
        return self.follower.pool.health

    @property
    def service_health(self) -> list[ServiceHealth]:
        """The state of each service except the partition workers."""
        return [service.health for service in self.services]


@contextmanager
def counting(
    settings: Settings,
    log: FilteringBoundLogger,
    subscribers: Sequence[BatchSubscriber] = (),
    *,
    consumer: str | None = None,
    removing: Collection[str] = (),
    publishing: bool = True,
) -> Iterator[Worker]:
    """Run a worker within the context, yield it, and stop it at the end.

    The end waits up to `[worker] stop_timeout` seconds for running work; if that takes longer, no error is raised.

    Args:
        settings: The configuration.
        log: Logger for the changes of state.
        subscribers: Called with the result of each applied batch.
        consumer: Consumer name in the groups; default: the configured one.
        removing: The stored metrics to remove; see `open_deployment`.
        publishing: Whether to publish the rules of the settings; see `open_deployment`.

    Raises:
        TallyError, ImportError, redis.RedisError: see `Worker`.
    """
    worker = Worker(settings, log, subscribers, consumer=consumer, removing=removing, publishing=publishing)
    try:
        worker.start()
        yield worker
    finally:
        worker.stop()
