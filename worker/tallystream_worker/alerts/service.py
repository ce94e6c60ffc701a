"""Makes the two services of the declared alerts: one evaluates their conditions, one delivers notifications."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.client.connect import connect
from tallystream.errors import DeploymentChanged
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
"""Seconds between two passes of the evaluation."""

DELIVER_EVERY: Final = 0.5
"""Seconds between two passes of the delivery."""


class AlertDelivery:
    """Delivers the notifications of the live topic, and of the topic before it while that is kept.

    Args:
        client: The connection to the topics.
        deployment: The deployment that the worker started with.
        notifier: Makes the notifier of one topic.
    """

    def __init__(self, client: redis.Redis, deployment: Deployment, notifier: Callable[[Layout], Notifier]) -> None:
        self._client = client
        self._deployment = deployment
        self._notifier = notifier
        self._notifiers: dict[int, Notifier] = {}  # by log

    def run_once(self) -> None:
        """Deliver the notifications that are due, of the live topic and of the kept one; see `Notifier.run_once`.

        Do nothing if the data was deleted or replaced, or a restore has not finished. The call blocks while it posts. A
        delivery that fails raises no error.

        Raises:
            redis.RedisError: the server does not reply, or rejects a command.
            ConfigurationError: this release cannot read the stored layout version or rules.
            KeyLost: the hash of the live topic is lost.
        """
        try:
            found = self._deployment.reload(self._client)
        except DeploymentChanged:
            return  # the partition workers report it
        kept = found.kept_layout
        layouts = [found.layout] if kept is None else [found.layout, kept]
        self._notifiers = {each.topic: self._notifiers.get(each.topic) or self._notifier(each) for each in layouts}
        for notifier in self._notifiers.values():
            notifier.run_once()


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

    def service(name: str, interval: float, run_once: Callable[[], object], client: redis.Redis) -> PeriodicService:
        def quietly() -> None:
            run_once()  # the notifier logs each notification itself

        return PeriodicService(name, interval, quietly, log, clients=[client])

    evaluating, delivering = connect(settings.redis.url), connect(settings.redis.url)

    def live() -> Layout | None:
        try:
            return deployment.reload(evaluating).layout
        except DeploymentChanged:
            return None

    evaluator = AlertEvaluator(evaluating, live, settings.rules, log)
    delivery = AlertDelivery(
        delivering, deployment, lambda layout: Notifier(delivering, layout, consumer, settings.hooks, log, delivered)
    )
    return [
        service("alerts-evaluate", EVALUATE_EVERY, evaluator.run_once, evaluating),
        service("alerts-deliver", DELIVER_EVERY, delivery.run_once, delivering),
    ]
