"""The services that look after the declared alerts: one evaluates conditions, one delivers what was noticed."""

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
DELIVER_EVERY: Final = 0.5
"""Seconds between two passes."""


class AlertDelivery:
    """Delivers what waits in the log that is live, and in the one before it for as long as that is kept.

    Args:
        client: Where the logs are.
        deployment: The data that the worker began with.
        notifier: Makes what delivers from one log.
    """

    def __init__(self, client: redis.Redis, deployment: Deployment, notifier: Callable[[Layout], Notifier]) -> None:
        self._client = client
        self._deployment = deployment
        self._notifier = notifier
        self._notifiers: dict[int, Notifier] = {}  # by log

    def run_once(self) -> None:
        """Deliver what is due.

        Raises:
            redis.RedisError: the server does not answer, or refuses.
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
    """Return the services that look after the declared alerts; none if no alert is declared.

    Args:
        settings: What was configured.
        deployment: The data that the worker began with.
        log: Where notifications and changes of state are logged.
        consumer: The name under which notifications are claimed.
        delivered: Told of each attempt to deliver; see `Notifier`.
    """
    if not settings.rules.alert:
        return []

    def service(name: str, interval: float, run_once: Callable[[], object], client: redis.Redis) -> PeriodicService:
        def quietly() -> None:
            run_once()  # each notification has a line of its own in the log

        return PeriodicService(name, interval, quietly, log, clients=[client])

    evaluating, delivering = connect(settings.redis.url), connect(settings.redis.url)

    def live() -> Layout | None:
        try:
            return deployment.reload(evaluating).layout
        except DeploymentChanged:
            return None

    evaluator = AlertEvaluator(evaluating, live, settings.rules)
    delivery = AlertDelivery(
        delivering, deployment, lambda layout: Notifier(delivering, layout, consumer, settings.hooks, log, delivered)
    )
    return [
        service("alerts-evaluate", EVALUATE_EVERY, evaluator.run_once, evaluating),
        service("alerts-deliver", DELIVER_EVERY, delivery.run_once, delivering),
    ]
