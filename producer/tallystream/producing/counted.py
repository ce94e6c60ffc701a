"""Waits until appended entries are counted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from redis.exceptions import NoScriptError, RedisError

from tallystream.client.durability import MEMORY, NOT_IN_TIME
from tallystream.deployment import Deployment
from tallystream.errors import FlushTimeout, KeyLost
from tallystream.storage.lost_keys import lost_commands, parse_lost
from tallystream.storage.scripts import Script
from tallystream.wire.position import parse_position, position_commands
from tallystream.wire.stream_id import parse_id

if TYPE_CHECKING:
    import redis

    from tallystream.client.durability import DurabilityCheck
    from tallystream.producing.appender import Appender
    from tallystream.storage.keys import PartitionKeys

_META_INTERVAL: Final = 0.5
"""Seconds after which the deployment is read again, because another generation may be live."""

_POLL: Final = 0.003
"""Seconds between two reads of a partition's `as_of`."""


_TOUCH: Final = Script("tallystream.storage", "touch")


def wait_until_counted(
    client: redis.Redis,
    namespace: str,
    appender: Appender,
    deadline: float | None,
    durability: DurabilityCheck = MEMORY,
) -> None:
    """Wait until every entry that an appender has confirmed so far is counted; given-up entries are not waited for.

    With another durability than that of memory, also wait until the counting has it. For this, a value is written again
    on the node that has counted: what confirms this write confirms all earlier ones.

    Also return if another topic becomes live, because a topic becomes live only after it has counted every entry of the
    earlier topic. With `deadline` `None`, wait without limit. If the server was emptied, store a new deployment:
    the entries are gone then, so the wait ends after later entries were counted; or at once if the appender's topic was
    not the first. If the server went back to other data that has the entries, wait until they are counted there.

    Raises:
        FlushTimeout: the monotonic second `deadline` has passed, and an entry is not counted, or its counting is not
            confirmed. If its partition has lost a key, the message names the key; if only the confirmation is missing,
            the message states that.
        ConfigurationError: this release cannot read the stored deployment.
        KeyLost: the deployment was deleted, although its partitions were counted, or the hash of the live topic or a
            field is lost. With another durability than that of memory, also if a partition that has counted its entries
            has lost a key; otherwise, the lost key of a partition alone does not raise this error.
        DamagedValue: the deployment has a stored value that tallystream never writes.
        DeploymentChanged: a restore has not finished.
        redis.RedisError: the server cannot be read.
    """
    layout, last_ids, reload_at = appender.layout, list(appender.last_ids), 0.0
    while layout is not appender.layout:  # the sender has just moved to another topic
        layout, last_ids = appender.layout, list(appender.last_ids)
    topic = layout.topic
    for partition, confirmed in enumerate(last_ids):
        last_id = confirmed
        while last_id is not None:
            if time.monotonic() >= reload_at:  # another generation may be live
                layout = Deployment.create_or_load(client, None, namespace, unless_stored=layout.partitions).layout
                reload_at = time.monotonic() + _META_INTERVAL
            if layout.topic != topic:
                return  # this topic counted the entries of the earlier one before it became live
            keys = layout.keys[partition]
            with client.pipeline(transaction=False) as pipeline:
                for command in position_commands(keys):
                    pipeline.execute_command(*command)
                position = parse_position(pipeline.execute(raise_on_error=False), keys.group)
            unconfirmed = ""
            if parse_id(position.as_of) >= parse_id(last_id):
                unconfirmed = _unconfirmed(client, keys, last_id, durability, deadline) if durability.is_needed else ""
                if not unconfirmed:
                    break
            present = appender.last_ids[partition : partition + 1]
            if appender.layout.topic == topic and present and present[0] is not None:
                last_id = min(last_id, present[0], key=parse_id)  # lower if the server went back to other data
            remaining = _POLL if deadline is None else deadline - time.monotonic()
            if remaining <= 0 and unconfirmed:
                raise FlushTimeout(f"the flush timed out: the entries are counted, and {unconfirmed}")
            if remaining <= 0:
                late = f"the flush timed out: {position.lag or 0:,} entries are not counted yet"
                raise FlushTimeout(late + _reason(client, keys))
            time.sleep(min(_POLL, remaining))


def _unconfirmed(
    client: redis.Redis, keys: PartitionKeys, last_id: str, durability: DurabilityCheck, deadline: float | None
) -> str:
    """Return the reason why the counting of an entry is not confirmed; `""` if it is.

    The server waits for the confirmation: at most 1 second, and not beyond the monotonic second `deadline`. Positions,
    write and WAIT go to one node, on one connection and in this order. So after a failover, a node that lacks the
    counting cannot confirm it.

    Raises:
        KeyLost: the partition has lost a key.
        redis.RedisError: the server cannot be read, or refuses the write.
    """
    patience = None if deadline is None else deadline - time.monotonic()
    for _ in range(2):
        with client.pipeline(transaction=False) as pipeline:
            for command in position_commands(keys):
                pipeline.execute_command(*command)
            _TOUCH.queue(pipeline, [keys.sequences], [])
            durability.queue(pipeline, patience)
            *position, touched, waited = pipeline.execute(raise_on_error=False)
        if not isinstance(touched, NoScriptError):
            break
        _TOUCH.load(client)
    if isinstance(touched, RedisError):
        raise touched
    _TOUCH.checked(touched)
    if parse_id(parse_position(position, keys.group).as_of) < parse_id(last_id):
        return "the server has lost the counting since"
    if isinstance(waited, RedisError):
        return f"the server could not confirm it: {waited}"
    return "" if durability.is_enough(waited) else NOT_IN_TIME


def _reason(client: redis.Redis, keys: PartitionKeys) -> str:
    """Return the end of an error message, from `. ` on: the lost key because of which a partition is not counted.

    Return `""` if no lost key is found, or the server cannot be read.
    """
    try:
        with client.pipeline(transaction=True) as pipeline:
            for command in lost_commands(keys):
                pipeline.execute_command(*command)
            lost = parse_lost(keys, pipeline.execute())
    except RedisError:
        return ""
    return "" if lost is None else f". {KeyLost(lost)}"
