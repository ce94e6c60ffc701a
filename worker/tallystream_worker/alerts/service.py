"""Watches and delivers in two threads beside the counting, where alerts are declared."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from tallystream.client.connect import connect
from tallystream.deployment import create_or_load
from tallystream_worker.alerts.evaluator import AlertEvaluator
from tallystream_worker.alerts.notifier import Notifier
from tallystream_worker.process.periodic import PeriodicTask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.storage.keys import Layout
    from tallystream_worker.settings.settings import Settings

WATCH_EVERY: Final = 5.0
DELIVER_EVERY: Final = 0.5
"""Seconds between two rounds."""

_STOP_TIMEOUT: Final = 12.0
"""Seconds that a delivery in hand may take to end."""


@contextmanager
def alerting(
    settings: Settings,
    layout: Layout,
    log: FilteringBoundLogger,
    consumer: str,
    delivered: Callable[[str, str], None] | None = None,
    before: Layout | None = None,
) -> Iterator[None]:
    """Look after the declared alerts for as long as the context lasts.

    Also delivers what was still waiting in the log before, where that is kept.
    """
    if not settings.rules.alert:
        yield
        return
    with ExitStack() as stack:

        def client() -> redis.Redis:
            made = connect(settings.redis.url)
            stack.callback(made.close)
            return made

        watching = client()
        namespace = settings.redis.namespace
        watcher = AlertEvaluator(watching, lambda: create_or_load(watching, None, namespace).layout, settings.rules)
        duties: list[tuple[str, float, Callable[[], int]]] = [("watch", WATCH_EVERY, watcher.round)]
        for each in [layout] if before is None else [layout, before]:
            notifier = Notifier(client(), each, consumer, settings.hooks, log, delivered)
            duties.append(("deliver", DELIVER_EVERY, notifier.round))
        for name, every, work in duties:
            duty = PeriodicTask(f"alerts-{name}", every, partial(_quietly, work), log)
            stack.callback(duty.stop, _STOP_TIMEOUT)
            duty.start()
        yield


def _quietly(work: Callable[[], int]) -> None:
    """Do one round; each notification has a line in the log of its own."""
    work()
