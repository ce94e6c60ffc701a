"""Carries what alerts remember from one log to the next: nothing fires again because its counter lies elsewhere by now.

Notifications that nobody has taken yet stay where they are: workers deliver from the log before until it is removed.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from tallystream.storage.keys import partition_of
from tallystream_worker.snapshot.alerts import commands, read

if TYPE_CHECKING:
    import redis

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout


def carry(client: redis.Redis, rules: Rules, old: Layout, new: Layout) -> None:
    """Write what the alerts of a closed log remember into another; writing it again changes nothing."""
    for keys in old.keys:
        found = read(client, keys, rules, since=0, now=int(time.time() * 1000))
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
    """Return states by subject, or subjects with the moment of their last count, in parts by partition."""
    if isinstance(value, dict):
        states: dict[int, dict[str, str]] = defaultdict(dict)
        for subject, state in value.items():
            states[partition_of(subject, layout.partitions)][subject] = state
        return dict(states)
    watched: dict[int, list[Any]] = defaultdict(list)
    for subject, at in value:
        watched[partition_of(subject, layout.partitions)].append([subject, at])
    return dict(watched)
