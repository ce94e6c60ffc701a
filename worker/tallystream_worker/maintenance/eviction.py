"""Watches for servers that evict keys: a counter that was evicted would be wrong, and nothing else would show it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from redis.exceptions import NoPermissionError, ResponseError

from tallystream.client.cluster.client import node_of
from tallystream.client.connect import connect
from tallystream.errors import ConfigurationError
from tallystream.storage.scripts import Script
from tallystream_worker.maintenance.partitions import for_each_partition, maintenance_service
from tallystream_worker.process.state_log import StreamStates

if TYPE_CHECKING:
    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import Layout, PartitionKeys
    from tallystream_worker.process.periodic import PeriodicService
    from tallystream_worker.settings.settings import Settings

EVERY: Final = 10.0
"""Seconds between two checks of a running worker."""

MAY_EVICT: Final = "the server may evict keys (maxmemory-policy {}): an evicted counter is wrong"

_UNREADABLE: Final = ("ACL failure", "no permissions", "not allowed from script")
"""Parts of the error replies of servers whose `INFO` this user or a script may not call."""

_EVICTION: Final = Script("tallystream_worker.maintenance", "eviction")


def refuse_eviction(client: redis.Redis, layout: Layout) -> None:
    """Raise a `ConfigurationError` if a partition's server may evict keys; do nothing if the user may not read this.

    A server without a memory limit evicts none, whatever its policy.

    Raises:
        ConfigurationError: a server may evict keys; the message names the setting of the server.
        redis.RedisError: a server does not reply, or rejects the command for another reason.
    """
    looked = _Looked(client)
    for keys in layout.keys:
        policy, _ = looked(keys)
        if policy:
            raise ConfigurationError(
                f"{keys.stream}: the server may evict keys when its memory is full (maxmemory-policy {policy}), and an "
                "evicted counter is wrong: set maxmemory-policy noeviction on the server, or, to count nevertheless, "
                '[redis] eviction = "allow"'
            )


class EvictionWatch:
    """Logs, for each partition, whether its server may evict keys, and that its server has evicted some.

    `run_once` makes one check; the service calls it about every 10 seconds.

    Args:
        client: The connection to the partitions.
        deployment: The deployment that the worker started with.
        log: The logger of `server.may_evict`, `server.keeps_keys` and `keys.evicted`.
        evicting: By stream, the policy of each server that may evict keys. Each check adds such streams of the live
            topic, and removes its other streams. The partition workers read it, and pause.
    """

    def __init__(
        self, client: redis.Redis, deployment: Deployment, log: FilteringBoundLogger, evicting: dict[str, str]
    ) -> None:
        self.evicting = evicting
        self._client = client
        self._deployment = deployment
        self._log = log
        self._states = StreamStates(log, "server.may_evict", "server.keeps_keys")
        self._evicted: dict[str, int] = {}

    def run_once(self) -> None:
        """Check the server of each partition: note in `evicting` whether it may evict keys, and log new evictions.

        An eviction is logged once for each partition of the server, if the server's number of evicted keys is larger
        than at the last check of this partition; the first check logs none. Also log when the server of a partition is
        found to be able to evict keys, and when it is not any more. A server whose figures this user may not read
        counts as one that evicts none. Do nothing if the data was deleted or replaced, or a restore has not finished.

        Raises:
            redis.RedisError: a server does not reply, or rejects the command; see `for_each_partition`.
            ConfigurationError: this release cannot read the stored layout version or rules.
            KeyLost, DamagedValue: the description of the deployment is lost in part, or damaged.
        """
        looked = _Looked(self._client)

        def note(_number: int, keys: PartitionKeys, _found: Deployment) -> None:
            self._note(keys, *looked(keys))

        for_each_partition(self._client, self._deployment, note)

    def _note(self, keys: PartitionKeys, policy: str, evicted: int) -> None:
        state = self._states[keys.stream]
        if policy:
            self.evicting[keys.stream] = policy
            state.failed(MAY_EVICT.format(policy))
        else:
            self.evicting.pop(keys.stream, None)
            state.works()
        before = self._evicted.get(keys.stream, evicted)
        self._evicted[keys.stream] = evicted
        if evicted > before:
            self._log.error(
                "keys.evicted", stream=keys.stream, keys=evicted - before,
                problem="the server has evicted keys, so counters may be too small or missing",
                action=(
                    "set maxmemory-policy noeviction on the server, then run: tallystream restore --force; without a "
                    "snapshot: tallystream rebuild"
                ),
            )  # fmt: skip


def eviction_service(
    settings: Settings, deployment: Deployment, log: FilteringBoundLogger, evicting: dict[str, str]
) -> PeriodicService:
    """Return the service that watches for evicted keys about every 10 seconds, not started.

    It changes `evicting` (see `EvictionWatch`) only if `[redis] eviction` is `refuse`; otherwise it only logs.

    Raises:
        ConfigurationError: the URL of the server cannot be used.
    """
    client = connect(settings.redis.url)
    watch = EvictionWatch(client, deployment, log, evicting if settings.redis.eviction == "refuse" else {})
    return maintenance_service("eviction", EVERY, watch.run_once, client, log)


class _Looked:
    """Looks at the server of each partition, at each server once; call it with the keys of a partition.

    It returns what `_look` returns for the first partition of the same server.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._found: dict[str, tuple[str, int]] = {}  # by server

    def __call__(self, keys: PartitionKeys) -> tuple[str, int]:
        node = node_of(self._client, keys.stream)
        if node not in self._found:
            self._found[node] = _look(self._client, keys)
        return self._found[node]


def _look(client: redis.Redis, keys: PartitionKeys) -> tuple[str, int]:
    """Return the policy by which a partition's server may evict keys, and the number of keys that it has evicted.

    The number is that since the server started. The policy is `""` if the server evicts none, has no memory limit, or
    does not let this user read it; in the last case, the number is 0.
    """
    try:
        _, policy, limit, evicted = _EVICTION(client, [keys.stream], [])
    except NoPermissionError:
        return "", 0
    except ResponseError as error:
        if any(reason in str(error) for reason in _UNREADABLE):
            return "", 0
        raise
    may_evict = policy not in (b"", b"noeviction") and int(limit) > 0
    return policy.decode() if may_evict else "", int(evicted)
