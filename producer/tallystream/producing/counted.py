"""Waits until what was appended is counted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tallystream.deployment import Deployment
from tallystream.errors import FlushTimeout
from tallystream.wire.position import parse_position, position_commands
from tallystream.wire.stream_id import parse_id

if TYPE_CHECKING:
    import redis

    from tallystream.producing.appender import Appender

_META_INTERVAL: Final = 0.5
"""Seconds after which the live generation of counters is read again."""

_POLL: Final = 0.003
"""Seconds between two reads of the counting position."""


def wait_until_counted(client: redis.Redis, namespace: str, appender: Appender, deadline: float | None) -> None:
    """Wait until every entry that an appender has confirmed so far is in the totals.

    Raises:
        FlushTimeout: the monotonic second `deadline` has passed.
    """
    layout, last_ids, reload_at = appender.layout, list(appender.last_ids), 0.0
    while layout is not appender.layout:  # the sender has just moved on
        layout, last_ids = appender.layout, list(appender.last_ids)
    topic = layout.topic
    for partition, last_id in enumerate(last_ids):
        while last_id is not None:
            if time.monotonic() >= reload_at:  # another generation of counters may be the one that counts by now
                layout = Deployment.create_or_load(client, None, namespace).layout
                reload_at = time.monotonic() + _META_INTERVAL
            if layout.topic != topic:
                return  # what the log before held was counted in this one before it began to hold
            keys = layout.keys[partition]
            with client.pipeline(transaction=False) as pipeline:
                for command in position_commands(keys):
                    pipeline.execute_command(*command)
                position = parse_position(pipeline.execute(raise_on_error=False), keys.group)
            if parse_id(position.as_of) >= parse_id(last_id):
                break
            remaining = _POLL if deadline is None else deadline - time.monotonic()
            if remaining <= 0:
                raise FlushTimeout(f"not everything was counted in time: {position.lag or 0:,} entries are left")
            time.sleep(min(_POLL, remaining))
