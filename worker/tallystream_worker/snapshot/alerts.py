"""What alerts remember: which fire, whom they watch, and the notifications that nobody has taken yet.

It is read just behind a snapshot's moment, so it may be a little ahead of the counters, and never behind them: what has
fired does not fire again when the counters come back and the log is counted once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from tallystream.rules.windows import bucket
from tallystream.wire.event import MAX_AHEAD
from tallystream.wire.window import MINUTE

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from tallystream.rules.alerts import Alert
    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import PartitionKeys

_PAGE: Final = 1000
_LONGEST: Final = 86_400
"""Seconds: how far behind a snapshot its oldest uncounted entry is looked after."""


def read(client: redis.Redis, keys: PartitionKeys, rules: Rules, since: int, now: int) -> dict[str, tuple[str, int]]:
    """Return what the alerts of one partition remember: by key behind the prefix, JSON and when it expires (0: never).

    Args:
        client: Where.
        keys: The partition's.
        rules: With the alerts.
        since: Millisecond of the first entry that is not counted yet: buckets that ended before it are of no matter.
        now: Millisecond of the snapshot's moment.
    """
    names = list(_states(keys, rules, since // 1000, now // 1000))
    found: dict[str, tuple[str, int]] = {}
    with client.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.execute_command("HGETALL", name)
            pipeline.execute_command("PEXPIRETIME", name)
        for alert in rules.alert:
            pipeline.execute_command("ZRANGE", keys.watched(alert.name), 0, -1, "WITHSCORES")
        replies: list[Any] = pipeline.execute()
    short = len(keys.prefix)
    for name, states, expires in zip(names, replies[0::2], replies[1::2], strict=False):
        if states:
            found[name[short:]] = (_json({f.decode(): v.decode() for f, v in states.items()}), max(0, expires))
    for alert, watched in zip(rules.alert, replies[2 * len(names) :], strict=True):
        if watched:
            found[keys.watched(alert.name)[short:]] = (_json([[member.decode(), at] for member, at in watched]), 0)
    if rules.alert and (waiting := list(_outbox(client, keys))):
        found[keys.outbox[short:]] = (_json(waiting), 0)
    return found


def commands(prefix: str, name: str, value: str, expires: int) -> Iterator[tuple[Any, ...]]:
    """Yield what brings one of these back under the partition's prefix."""
    key, kept = prefix + name, msgspec.json.decode(value)
    if isinstance(kept, dict):
        yield ("HSET", key, *(part for pair in kept.items() for part in pair))
    elif name.startswith("watched:"):
        yield ("ZADD", key, *(part for member, at in kept for part in (at, member)))
    else:
        for id_, fields in kept:
            yield ("XADD", key, id_, *(part for pair in fields.items() for part in pair))
    if expires:
        yield ("PEXPIREAT", key, expires)


def _states(keys: PartitionKeys, rules: Rules, since: int, now: int) -> Iterator[str]:
    for alert in rules.alert:
        for label in _labels(alert, rules.zone, max(since, now - _LONGEST), now):
            yield keys.alerting(alert.name, label)


def _labels(alert: Alert, zone: str, since: int, now: int) -> Iterator[str]:
    """Yield the buckets that may still fire or end, the one before the first included."""
    if alert.window is None:
        yield ""
        return
    each = bucket(alert.window, since // MINUTE, zone)
    yield bucket(alert.window, each.start // MINUTE - 1, zone).label
    while each.start <= now + MAX_AHEAD:
        yield each.label
        each = bucket(alert.window, each.end // MINUTE, zone)


def _outbox(client: redis.Redis, keys: PartitionKeys) -> Iterator[tuple[str, dict[str, str]]]:
    after = "-"
    while True:
        page: Any = client.xrange(keys.outbox, after, count=_PAGE)
        for id_, fields in page:
            yield id_.decode(), {name.decode(): value.decode() for name, value in fields.items()}
        if len(page) < _PAGE:
            return
        after = f"({page[-1][0].decode()}"


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
