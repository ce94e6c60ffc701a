"""Reaping: names of consumers and producers that will not come back are forgotten, and nothing with them."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from tallystream.client.connect import connect
from tallystream.storage.scripts import Script
from tallystream_worker.maintenance.partitions import for_each_partition, maintenance_service

if TYPE_CHECKING:
    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.process.periodic import PeriodicService
    from tallystream_worker.settings.settings import Settings

_CONSUMERS: Final = Script("tallystream_worker.maintenance", "reap_consumers")
_PRODUCERS: Final = Script("tallystream_worker.maintenance", "reap_producers")
_STEP: Final = 500

INTERVAL: Final = 60.0
"""Seconds between two passes, about."""

CONSUMER_SILENCE: Final = 86_400.0
"""Seconds without a read after which a consumer is taken for gone. One that comes back all the same is made anew."""

PRODUCER_SILENCE: Final = 30 * 86_400.0
"""Seconds without an append after which a producer's sequence is forgotten. One that was cut off in mid-append for
longer could append that entry a second time."""


def reap_consumers(
    client: redis.Redis, keys: PartitionKeys, heir: str, *, silence: float = CONSUMER_SILENCE, step: int = _STEP
) -> tuple[int, int]:
    """Take over what silent consumers hold and forget those that hold nothing; return how many, and the entries.

    One call takes over at most `step` entries; a consumer that holds more is forgotten by a later one.
    """
    _, forgotten, taken = _CONSUMERS(client, [keys.stream], [keys.group, heir, int(silence * 1000), step])
    return forgotten, taken


def reap_producers(
    client: redis.Redis, keys: PartitionKeys, cursor: str, *, silence: float = PRODUCER_SILENCE, step: int = _STEP
) -> tuple[str, int]:
    """Forget silent producers among about `step` names; return where to go on (`0`: from the start), and how many."""
    _, following, forgotten = _PRODUCERS(client, [keys.sequences], [cursor, int(silence * 1000), step])
    return following.decode(), forgotten


class Reaper:
    """Forgets the silent consumers and producers of all partitions.

    Args:
        client: Where the partitions are.
        deployment: The data that the worker began with.
        heir: The consumer that takes over what silent ones hold.
        log: Where it is logged what was forgotten.
    """

    def __init__(self, client: redis.Redis, deployment: Deployment, heir: str, log: FilteringBoundLogger) -> None:
        self._client = client
        self._deployment = deployment
        self._heir = heir
        self._log = log
        self._cursors: defaultdict[str, str] = defaultdict(lambda: "0")  # by stream, among its producers

    def run_once(self) -> None:
        """Forget what is silent in each partition, some hundred names of each kind at most.

        Raises:
            redis.RedisError: the server does not answer, or refuses.
        """
        for_each_partition(self._client, self._deployment, self._partition)

    def _partition(self, _number: int, keys: PartitionKeys, _found: Deployment) -> None:
        forgotten, taken = reap_consumers(self._client, keys, self._heir)
        if forgotten or taken:
            self._log.info("consumer.removed", stream=keys.stream, consumers=forgotten, entries_claimed=taken)
        self._cursors[keys.stream], producers = reap_producers(self._client, keys, self._cursors[keys.stream])
        if producers:
            self._log.info("producer.expired", stream=keys.stream, producers=producers)


def reaper_service(
    settings: Settings, deployment: Deployment, consumer: str, log: FilteringBoundLogger
) -> PeriodicService:
    """Return the service that forgets silent names."""
    client = connect(settings.redis.url)
    return maintenance_service("reaper", INTERVAL, Reaper(client, deployment, consumer, log).run_once, client, log)
