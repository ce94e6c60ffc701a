"""Copies the states of alerts from one topic to the next, so that no alert fires again because of a repartition.

Undelivered notifications are not copied: workers deliver those of the old topic until it is removed.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from tallystream.client.server_time import server_time
from tallystream.storage.keys import partition_of
from tallystream_worker.snapshot.alerts import commands, read

if TYPE_CHECKING:
    import redis

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout


def carry(client: redis.Redis, rules: Rules, old: Layout, new: Layout) -> None:
    """Copy the states of alerts (subjects that fire, have fired or are watched) of a closed topic into a new topic.

    Undelivered notifications are not copied. Of each alert, states in buckets that ended over a day ago are left out,
    except in the latest of these buckets. A second call writes the same states again: make it only before the new topic
    is live.

    Args:
        client: The server of both topics.
        rules: The rules, whose alerts are copied; alerts that only the stored rules have are left out.
        old: The layout of the closed topic.
        new: The layout of the new topic; each state is written to the partition of its subject.

    Raises:
        redis.RedisError: the server does not reply, or rejects a command; some states may be copied.
    """
    now = server_time(client)
    for keys in old.keys:
        found = read(client, keys, rules, since=0, now=now)
        with client.pipeline(transaction=False) as pipeline:
            for name, (value, expires) in found.items():
                if keys.prefix + name == keys.outbox:
                    continue
                for home, part in _by_home(msgspec.json.decode(value), new).items():
                    text = msgspec.json.encode(part).decode()
                    for command in commands(new.keys[home].prefix, name, text, expires):
                        pipeline.execute_command(*command)
            pipeline.execute()


def _by_home(value: Any, layout: Layout) -> dict[int, Any]:
    """Split the state of an alert by subject; return the part of each partition, by partition number.

    A part has the form of `value`. A partition without a subject has none.

    Args:
        value: A mapping, subject -> state, or a list of pairs of a subject and the millisecond of its last count.
        layout: The layout whose partitions are meant.
    """
    if isinstance(value, dict):
        states: dict[int, dict[str, str]] = defaultdict(dict)
        for subject, state in value.items():
            states[partition_of(subject, layout.partitions)][subject] = state
        return dict(states)
    watched: dict[int, list[Any]] = defaultdict(list)
    for subject, at in value:
        watched[partition_of(subject, layout.partitions)].append([subject, at])
    return dict(watched)
