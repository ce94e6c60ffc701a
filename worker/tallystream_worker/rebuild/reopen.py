"""Opens partitions that have lost all their keys: counting begins again there, without the lost events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.errors import ConfigurationError
from tallystream.storage.deployment_hash import live_mark
from tallystream.storage.keys import FIRST
from tallystream.storage.scripts import Script
from tallystream.storage.sentinels import is_new, open_partition, refuse_lost

if TYPE_CHECKING:
    import redis

    from tallystream.deployment import Deployment

_BEGIN: Final = Script("tallystream_worker.rebuild", "begin")


def reopen(client: redis.Redis, deployment: Deployment) -> list[str]:
    """Open each partition of the live topic that has lost all its keys; return the names of their streams.

    The live generation is empty there, and counts what is appended from now on. Producers send again the entries that
    they still keep. Partitions that have their keys do not change.

    Raises:
        KeyLost: a partition has lost a sentinel, but not all keys; nothing was opened.
        ConfigurationError: a rebuild or a repartition is not finished; nothing was opened.
        redis.RedisError: the server does not reply, or rejects a command; call again to continue.
    """
    if deployment.building is not None or deployment.moving is not None:
        raise ConfigurationError(
            "cannot open partitions while a rebuild or a repartition is not finished: give it up with tallystream "
            "rebuild --drop"
        )
    layout = deployment.layout.of(deployment.generation)
    empty = [keys for keys in layout.keys if is_new(client, keys)]
    for keys in layout.keys:
        if keys not in empty:
            refuse_lost(client, keys)
    for keys in empty:
        open_partition(client, keys, live_mark(FIRST, deployment.revision))
        if deployment.generation != FIRST:
            names = [keys.stream, keys.begun, keys.ledger, keys.topic_ledger, keys.gone]
            _BEGIN(client, names, [keys.group])
            client.set(keys.live, live_mark(deployment.generation, deployment.revision))
    return [keys.stream for keys in empty]
