"""Losses: entries that vanished before they were counted, because somebody trimmed the stream or deleted from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tallystream.client.connect import connect
from tallystream.storage.scripts import Script
from tallystream_worker.maintenance.partitions import INTERVAL, for_each_partition, maintenance_service
from tallystream_worker.process.state_log import StreamStates

if TYPE_CHECKING:
    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.process.periodic import PeriodicService
    from tallystream_worker.settings.settings import Settings

_LOSSES: Final = Script("tallystream_worker.maintenance", "losses")


@dataclass(frozen=True)
class Loss:
    """What is missing at rest.

    Attributes:
        entries: Stream entries that vanished.
        events: What they held.
        proved: The events are in the ledger as trimmed now; else nothing shows that entries vanished, and they
            stay unaccounted.
    """

    entries: int
    events: int
    proved: bool


def settle_losses(client: redis.Redis, keys: PartitionKeys) -> Loss | None:
    """Put what vanished uncounted into the books of one partition; `None` where nothing did, or entries wait.

    Raises:
        redis.ResponseError: `NOGROUP`, or there is no stream.
    """
    answer, *figures = _LOSSES(client, [keys.stream, keys.ledger, keys.topic_ledger], [keys.group])
    if answer == b"waiting":
        return None
    entries, events = figures
    return Loss(entries, events, answer == b"settled") if events else None


class LossFinder:
    """Settles the losses of all partitions.

    Args:
        client: Where the streams are.
        deployment: The data that the worker began with.
        log: Where losses are logged.
    """

    def __init__(self, client: redis.Redis, deployment: Deployment, log: FilteringBoundLogger) -> None:
        self._client = client
        self._deployment = deployment
        self._log = log
        self._unaccounted = StreamStates(log, "events.unaccounted", "events.accounted")

    def run_once(self) -> None:
        """Put what has vanished uncounted into the ledger of each partition.

        Raises:
            redis.RedisError: the server does not answer, or refuses.
        """
        for_each_partition(self._client, self._deployment, self._partition)

    def _partition(self, _number: int, keys: PartitionKeys, _found: Deployment) -> None:
        loss = settle_losses(self._client, keys)
        if loss is not None and loss.proved:
            self._log.error(
                "events.lost", stream=keys.stream, entries=loss.entries, events=loss.events,
                problem="their entries vanished from the stream before they were counted",
            )  # fmt: skip
        state = self._unaccounted[keys.stream]
        if loss is not None and not loss.proved:
            state.failed("nothing shows that their entries vanished", events=loss.events)
        else:
            state.works()


def losses_service(settings: Settings, deployment: Deployment, log: FilteringBoundLogger) -> PeriodicService:
    """Return the service that settles losses."""
    client = connect(settings.redis.url)
    return maintenance_service("losses", INTERVAL, LossFinder(client, deployment, log).run_once, client, log)
