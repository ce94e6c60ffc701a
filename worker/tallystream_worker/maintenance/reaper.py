"""Removes the names of consumers and producers that have been silent for long, without losing an entry."""

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
"""Approximate seconds between two passes."""

CONSUMER_SILENCE: Final = 86_400.0
"""Seconds without a read or claim after which a consumer is removed; if it reads again, the server creates it again."""

PRODUCER_SILENCE: Final = 30 * 86_400.0
"""Seconds of active time without an append after which the record of a producer with a random name is removed.

Active time passes only while the server runs and workers make their passes: see `reap_producers.lua`. If a producer
appends again later, the gate replies that its record may have been removed; the producer sends no confirmed entry
again.
"""

SPOOL_SILENCE: Final = 365 * 86_400.0
"""As `PRODUCER_SILENCE`, of a producer with a spool: a spool may be delivered long after its last entry."""

_LONGEST_PASS: Final = 600.0
"""Most seconds that one pass adds to the active time, however far the server's clock has moved since the last pass."""


def reap_consumers(
    client: redis.Redis, keys: PartitionKeys, heir: str, *, silence: float = CONSUMER_SILENCE, step: int = _STEP
) -> tuple[int, int]:
    """Give the pending entries of silent consumers to `heir`, and remove the silent consumers that have none left.

    Args:
        client: Runs the script.
        keys: The keys of the partition.
        heir: The name of the consumer that gets the entries, from which any worker can claim them at once; this call
            does not remove it, even if it is silent.
        silence: Seconds without a read or claim after which a consumer is silent.
        step: The largest number of entries that one call claims. A consumer with more is removed by a later call.

    Returns:
        The number of removed consumers, and of claimed entries.

    Raises:
        redis.RedisError: the stream or the consumer group does not exist, or the server does not reply, or rejects the
            command for another reason.
    """
    _, forgotten, taken = _CONSUMERS(client, [keys.stream], [keys.group, heir, int(silence * 1000), step])
    return forgotten, taken


def reap_producers(
    client: redis.Redis,
    keys: PartitionKeys,
    cursor: str,
    *,
    silence: float = PRODUCER_SILENCE,
    spool_silence: float = SPOOL_SILENCE,
    longest: float = _LONGEST_PASS,
    step: int = _STEP,
) -> tuple[str, int]:
    """Add the time since the last call to the active time, and remove the records of some silent producers.

    Only producers with a random name (16 hexadecimal digits), and those with a spool, are removed. The active time is
    the time during which the server ran and workers made this call.

    Args:
        client: Runs the script.
        keys: The keys of the partition.
        cursor: The cursor that the last call returned; `0` to begin.
        silence: About the seconds of active time without an append after which a producer is silent; not less.
        spool_silence: As `silence`, of a producer with a spool.
        longest: Most seconds that this call adds to the active time.
        step: About how many producers one call examines.

    Returns:
        The cursor for the next call (`0` after the last producer), and the number of producers whose record was
        removed.

    Raises:
        KeyLost: the partition has lost a key; nothing was changed.
        redis.RedisError: the server does not reply, or rejects the command.
    """
    milliseconds = [int(seconds * 1000) for seconds in (longest, silence, spool_silence)]
    _, following, removed = _PRODUCERS(client, [keys.sequences, keys.stream], [cursor, step, *milliseconds])
    return following.decode(), removed


class Reaper:
    """Removes the silent consumers of all partitions, and the records of silent producers.

    Records with other names than those of producers with a random name or a spool, such as those of ingested files, are
    never removed. `run_once` makes one pass; the service calls it about every minute.

    Args:
        client: The connection to the partitions.
        deployment: The deployment that the worker started with.
        heir: The name of the consumer that gets the pending entries of silent consumers.
        log: The logger of `consumer.removed` and `producer.expired`, with the numbers.
    """

    def __init__(self, client: redis.Redis, deployment: Deployment, heir: str, log: FilteringBoundLogger) -> None:
        self._client = client
        self._deployment = deployment
        self._heir = heir
        self._log = log
        self._cursors: defaultdict[str, str] = defaultdict(lambda: "0")  # by stream, among its producers

    def run_once(self) -> None:
        """Remove consumers that were silent for a day, and records of producers that were silent for 30 days.

        A producer with a spool is removed after 365 days. Days of producers are of active time: see `reap_producers`.
        The pending entries of the consumers go to the heir first. In each partition, one pass moves at most 500
        entries, and examines about 500 producers; later passes continue. Do nothing if the data was deleted or
        replaced, or a restore has not finished.

        Raises:
            redis.RedisError: the server does not reply, or rejects a command; see `for_each_partition`.
            ConfigurationError: this release cannot read the stored layout version or rules.
            KeyLost, DamagedValue: the description of the deployment is lost in part, or damaged.
            KeyLost: a partition has lost a key.
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
    """Return the service, not started, that runs a `Reaper` about every minute.

    It removes silent consumers, and the records of silent producers. `consumer` is the name of the consumer that gets
    the pending entries of the silent ones.

    Raises:
        ConfigurationError: the URL of the server cannot be used.
    """
    client = connect(settings.redis.url)
    return maintenance_service("reaper", INTERVAL, Reaper(client, deployment, consumer, log).run_once, client, log)
