"""Records in every partition since when the published rules count, also if no event of a changed metric arrives.

The scripts that count record it with the next event (`storage/lua/rules/parts.lua`). Until then, readers would have to
state everything up to the present as missing in a partition without such an event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.client.connect import connect
from tallystream_worker.counting.adopt import adopt
from tallystream_worker.maintenance.partitions import INTERVAL, for_each_partition, maintenance_service

if TYPE_CHECKING:
    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.process.periodic import PeriodicService
    from tallystream_worker.settings.settings import Settings


class RulesAdopter:
    """Records in every partition that its metrics are counted by the published rules from now on: see `adopt`.

    `run_once` makes one pass; the service calls it about every 2 seconds.

    Args:
        client: The connection to the partitions.
        deployment: The deployment that the worker started with.
    """

    def __init__(self, client: redis.Redis, deployment: Deployment) -> None:
        self._client = client
        self._deployment = deployment

    def run_once(self) -> None:
        """Record in each partition that its metrics are counted by the published rules of its live generation.

        A metric that the partition has never counted, or counts by these rules already, is left alone: see `adopt`. The
        rules may be newer than those that this worker counts by. Do nothing if the data was deleted or replaced, if a
        restore has not finished, or if no rules are published.

        Raises:
            redis.RedisError: the server does not reply, or rejects a command; see `for_each_partition`.
            ConfigurationError: this release cannot read the stored layout version or rules.
            KeyLost, DamagedValue: the description of the deployment is lost in part, or damaged.
            KeyLost: a partition that has to be changed has lost a key.
        """

        def adopt_one(_number: int, keys: PartitionKeys, found: Deployment) -> None:
            if found.declared is not None:
                adopt(self._client, keys, found.rules_of(keys.generation))

        for_each_partition(self._client, self._deployment, adopt_one)


def rules_service(settings: Settings, deployment: Deployment, log: FilteringBoundLogger) -> PeriodicService:
    """Return the service, not started, that runs a `RulesAdopter` about every 2 seconds.

    Raises:
        ConfigurationError: the URL of the server cannot be used.
    """
    client = connect(settings.redis.url)
    return maintenance_service("rules", INTERVAL, RulesAdopter(client, deployment).run_once, client, log)
