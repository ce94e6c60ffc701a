"""Reads the states of alerts for a snapshot: subjects that fire, subjects that are watched, undelivered notifications.

It also makes the commands that write the states back. A snapshot reads the states just after its moment, so they may be
newer than the counters, and never older: an alert that has fired does not fire again when the counters are restored and
the entries after them are counted again.
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
"""Seconds before a snapshot's moment: an entry that is uncounted for longer than that counts as this old in `read`."""


def read(client: redis.Redis, keys: PartitionKeys, rules: Rules, since: int, now: int) -> dict[str, tuple[str, int]]:
    """Read and return the states of the alerts of one partition: firing, watched, and undelivered notifications.

    Args:
        client: The server of the counters.
        keys: The keys of the partition.
        rules: The rules, with the alerts.
        since: The millisecond since 1970 of the first entry that is not counted yet. Of each alert, the first bucket
            that is read is the one before that of this time. A time over a day before `now` counts as a day before it.
        now: The millisecond since 1970 of the snapshot's moment.

    Returns:
        By key without the partition's prefix: the state as JSON, and the millisecond since 1970 at which it expires (0
        for never). Keys that do not exist are left out; without alerts in the rules, it is empty.

    Raises:
        redis.RedisError: the server did not answer, or refused a command.
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
    """Yield the Redis commands (tuples of name and arguments) that write one state of `read` back; send nothing.

    `value` may also be any other hash, as a JSON object: a snapshot stores some with the states. If the hash exists on
    the server, its fields that `value` lacks stay. If the state is not a hash, its key must not exist.

    Args:
        prefix: The prefix of the partition to write to.
        name: The key of the state, without a prefix.
        value: The state as JSON.
        expires: The millisecond since 1970 at which the state expires, 0 for never.
    """
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
    """Yield the labels of the buckets of an alert that may still fire or end.

    These are the bucket before the one that contains the second `since`, and all later ones up to the latest time that
    an event may have at the second `now`. An alert without a window has one bucket, with the label `""`.
    """
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
