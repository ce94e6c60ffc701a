"""Makes the two services of the declared alerts: one evaluates their conditions, one delivers notifications."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.client.connect import connect
from tallystream.errors import DeploymentChanged, NodeUnreachable
from tallystream.reading.totals import Totals
from tallystream_worker.alerts.evaluator import AlertEvaluator
from tallystream_worker.alerts.notifier import Notifier
from tallystream_worker.process.periodic import PeriodicService

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import Layout
    from tallystream_worker.settings.settings import Settings

EVALUATE_EVERY: Final = 5.0
"""Seconds from the beginning of one pass of the evaluation to that of the next."""

DELIVER_EVERY: Final = 0.5
"""Seconds from the beginning of one pass of the delivery to that of the next."""


class AlertDelivery:
    """Delivers the notifications of the live topic, and of the topic before it while that is kept.

    Args:
        live: Returns the live deployment; `None` if the data was deleted or replaced, or a restore has not finished.
        notifier: Makes the notifier of one topic.
    """

    def __init__(self, live: Callable[[], Deployment | None], notifier: Callable[[Layout], Notifier]) -> None:
        self._live = live
        self._notifier = notifier
        self._notifiers: dict[int, Notifier] = {}  # by log

    def run_once(self) -> None:
        """Deliver the notifications that are due, of the live topic and of the kept one; see `Notifier.run_once`.

        Do nothing if the data was deleted or replaced, or a restore has not finished. The call blocks while it posts. A
        delivery that fails raises no error.

        Raises:
            NodeUnreachable: nodes of a cluster do not answer; raised after the notifications of all others.
            redis.RedisError: the server does not reply, or rejects a command.
            ConfigurationError: this release cannot read the stored layout version or rules.
            KeyLost: the hash of the live topic is lost, or a field without which the deployment cannot be read.
            DamagedValue: the stored deployment has a value that tallystream never writes.
        """
        found = self._live()
        if found is None:
            return  # the partition workers report it
        kept = found.kept_layout
        layouts = [found.layout] if kept is None else [found.layout, kept]  # unreachable partitions are tried again
        self._notifiers = {each.topic: self._notifiers.get(each.topic) or self._notifier(each) for each in layouts}
        missing: NodeUnreachable | None = None
        for notifier in self._notifiers.values():
            try:
                notifier.run_once()
            except NodeUnreachable as error:
                missing = missing or error
        if missing is not None:
            raise missing


def alert_services(
    settings: Settings,
    deployment: Deployment,
    log: FilteringBoundLogger,
    consumer: str,
    delivered: Callable[[str, str], None] | None = None,
) -> list[PeriodicService]:
    """Return two services, not started: one evaluates alerts, one delivers notifications; `[]` if no alert is declared.

    Args:
        settings: The configuration. Its alerts are used, not those that are stored with the deployment.
        deployment: The deployment that the worker started with.
        log: Logs notifications, and failures of the services.
        consumer: The name of the worker in the consumer group of the outboxes.
        delivered: Called after each attempt to deliver; see `Notifier`.

    Raises:
        ConfigurationError: an alert is declared, and the URL of the server cannot be used.
    """
    if not settings.rules.alert:
        return []

    def service(
        name: str, interval: float, run_once: Callable[[], object], client: redis.Redis, live: _Live
    ) -> PeriodicService:
        def quietly() -> None:
            run_once()  # the notifier logs each notification itself

        def recover(error: Exception) -> float | None:
            return interval if isinstance(error, NodeUnreachable) else None  # the other partitions are in time

        return PeriodicService(name, interval, quietly, log, recover=recover, close=live.close, clients=[client])

    evaluating, delivering = connect(settings.redis.url), connect(settings.redis.url)
    evaluated, delivered_from = _Live(settings, deployment), _Live(settings, deployment)

    def layout() -> Layout | None:
        found = evaluated()
        return None if found is None else found.in_reach.layout

    evaluator = AlertEvaluator(evaluating, layout, settings.rules, log)
    delivery = AlertDelivery(
        delivered_from, lambda layout: Notifier(delivering, layout, consumer, settings.hooks, log, delivered)
    )
    return [
        service("alerts-evaluate", EVALUATE_EVERY, evaluator.run_once, evaluating, evaluated),
        service("alerts-deliver", DELIVER_EVERY, delivery.run_once, delivering, delivered_from),
    ]


class _Live:
    """A callable object that returns the live deployment; it is read again if the last read is more than a second ago.

    If nodes of a cluster are down, it has `unreachable` partitions. While the node of its description is down, the
    description is the one that was read last.
    """

    def __init__(self, settings: Settings, started: Deployment) -> None:
        self._started = started
        self._totals = Totals(settings.redis.url, namespace=settings.redis.namespace)
        self.close = self._totals.close
        """Close the connections."""

    def __call__(self) -> Deployment | None:
        """Return the deployment; `None` if the data was deleted or replaced, or a restore has not finished.

        Raises:
            ConfigurationError, KeyLost, DamagedValue, redis.RedisError: see `Totals.deployment`.
        """
        try:
            found = self._totals.deployment
        except DeploymentChanged:
            return None
        return found if found.epoch == self._started.epoch else None
