"""Accounts for losses: entries that were trimmed or deleted from a stream before they were counted."""

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
    """Appended events of a partition that had no outcome in the ledger, although no entry is pending or unread.

    Attributes:
        entries: How many entries vanished from the stream; if `proved` is false, it proves nothing, and may be 0 or
            below.
        events: How many events are missing; negative if the ledger has more outcomes than appended events.
        proved: Whether the server's figures prove that entries vanished; then the events are now in the
            ledger as `trimmed`. If not, the ledger is unchanged.
    """

    entries: int
    events: int
    proved: bool


def settle_losses(client: redis.Redis, keys: PartitionKeys) -> Loss | None:
    """Add the events of entries that vanished before they were counted to the ledger's `trimmed`, in one partition.

    They are added only if the server's figures prove that entries vanished. If no entry is pending or unread, also move
    the last delivered ID of the consumer group to the end of the stream (if the user may do this). If entries are
    pending or unread, change nothing.

    Returns:
        The loss, which is in the ledger only if `proved` is true, and which a later call does not return again then;
        `None` if no events are missing, or if entries are pending or unread.

    Raises:
        KeyLost: the partition has lost a key.
        redis.RedisError: the consumer group (`NOGROUP`) or the stream does not exist, or the server does not reply, or
            rejects the command for another reason.
    """
    answer, *figures = _LOSSES(client, [keys.stream, keys.ledger, keys.topic_ledger], [keys.group])
    if answer == b"waiting":
        return None
    entries, events = figures
    return Loss(entries, events, answer == b"settled") if events else None


class LossFinder:
    """Adds the proved losses of all partitions to their ledgers, and logs them.

    `run_once` makes one pass; the service calls it about every 2 seconds.

    Args:
        client: The connection to the streams.
        deployment: The deployment that the worker started with.
        log: The logger of `events.lost`, `events.unaccounted` and `events.accounted`.
    """

    def __init__(self, client: redis.Redis, deployment: Deployment, log: FilteringBoundLogger) -> None:
        self._client = client
        self._deployment = deployment
        self._log = log
        self._unaccounted = StreamStates(log, "events.unaccounted", "events.accounted")

    def run_once(self) -> None:
        """Add the proved losses of each partition to its ledger, and log them.

        If the ledger of a partition does not balance, without a proof that entries vanished, log an error when this
        begins, and a line at the first pass that does not find it, also if that is because entries are pending or
        unread. Do nothing if the data was deleted or replaced, or a restore has not finished.

        Raises:
            redis.RedisError: the server does not reply, or rejects a command; see `for_each_partition`.
            KeyLost, DamagedValue: the description of the deployment is lost in part, or damaged.
            KeyLost: a partition has lost a key; raised after all partitions were tried.
            ConfigurationError: this release cannot read the stored layout version or rules.
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
    """Return the service, not started, that finds and logs lost entries about every 2 seconds; see `LossFinder`.

    Lost entries vanished before they were counted. The events of proved losses are added to `trimmed` in the ledgers.

    Raises:
        ConfigurationError: the URL of the server cannot be used.
    """
    client = connect(settings.redis.url)
    return maintenance_service("losses", INTERVAL, LossFinder(client, deployment, log).run_once, client, log)
