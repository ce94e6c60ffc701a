"""Records in a partition since when rules count, without an event that is counted by them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from tallystream.rules.batch import rule_table
from tallystream.rules.parts import PARTS, parts
from tallystream.storage.scripts import Script

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import PartitionKeys

_ADOPT: Final = Script("tallystream.storage", "adopt_rules")


def adopt(client: redis.Redis, keys: PartitionKeys, rules: Rules) -> list[str]:
    """Record in one partition that its metrics are counted by these rules from now on.

    Reads then state as missing what the earlier rules did not count. The leaderboard of all time of a changed metric
    may be removed. Metrics without a record of earlier rules, and those that these rules do not change, are left alone.

    Returns:
        The metrics that were counted by other rules before; empty if there are none, and then nothing is changed.

    Raises:
        KeyLost: the partition has lost a key; nothing was changed. Not noticed if there are no such metrics.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    return _adopt(client, keys, rules, is_copy=False)


def _adopt(client: redis.Redis, keys: PartitionKeys, rules: Rules, *, is_copy: bool) -> list[str]:
    names = list(rules.metric)
    if not names:
        return []
    stored = client.execute_command("HMGET", keys.forgotten, *(PARTS + name for name in names))
    changed = [
        name
        for name, text in zip(names, stored, strict=True)
        if text is not None and text.decode() != parts(rules.metric[name], rules.zone)
    ]
    if not changed:
        return []
    tables = [rule_table(keys, name, rules.metric[name], rules.zone) for name in changed]
    _, *adopted = _ADOPT(client, [keys.ledger, keys.forgotten], [msgspec.msgpack.encode(tables), int(is_copy)])
    return [name.decode() for name in adopted]


def adopt_as(client: redis.Redis, keys: PartitionKeys, rules: Rules, forgotten: Mapping[str, str]) -> None:
    """Record in a copy of a partition that metrics are counted by these rules from now on, as `adopt` does.

    Metrics that are counted by other rules, or by none, according to `forgotten`, are left alone. So are metrics for
    which the copy has no record of earlier rules.

    Args:
        client: The server of the copy.
        keys: The keys of the copy.
        rules: The rules.
        forgotten: The fields of `PartitionKeys.forgotten` of the partition itself.

    Raises:
        redis.RedisError: the server does not reply, or rejects a command.
    """
    recorded = {
        name: rule for name, rule in rules.metric.items() if forgotten.get(PARTS + name) == parts(rule, rules.zone)
    }
    _adopt(client, keys, replace(rules, metric=recorded, ratio={}, alert=()), is_copy=True)
