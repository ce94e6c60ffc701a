"""Resets totals by compensating events: counted events stay in the streams, and a rebuild gives the same totals.

A correction is an amount that bypasses the rules of its metric; it changes the bucket of one window that contains its
time, and those of longer windows. So each bucket gets a separate correction. If votes of the metric last forever
(`once = "forever"`), each voter gets a vote of 0 instead.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from tallystream.client.server_time import server_time
from tallystream.errors import EventError, StreamError, StreamFull
from tallystream.producing.appender import Appender
from tallystream.producing.partition_queue import SealedEntry
from tallystream.rules.windows import Bucket, bucket
from tallystream.wire.codec import Correction, Payload, Single, encode
from tallystream.wire.window import MINUTE, WINDOWS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Metric
    from tallystream.storage.keys import PartitionKeys

_ENTRY_EVENTS: Final = 1000
_MOST_BUCKETS: Final = 1000
"""Number of the latest buckets of a window that are read: as many as a series can show. Buckets past their retention
are read too, because their keys may still exist."""


def reset(client: redis.Redis, deployment: Deployment, subject: str, metrics: list[str]) -> dict[str, int]:
    """Append events that bring the totals of a subject to 0; return the totals before, by metric.

    Return when the events are in the streams; workers count them later. Events that are counted while this runs stay
    counted.

    Args:
        client: Client of the server.
        deployment: The deployment of the subject.
        subject: The subject, in its normal form.
        metrics: Declared metrics.

    Raises:
        EventError: a metric is counted in a sketch, from which nothing can be taken back.
        StreamError: the server refused the events, or a repartition has closed the streams.
        StreamFull: the stream has reached its limit; try again later.
        redis.RedisError: the connection broke.

    After any of these errors except `EventError`, some of the events may have been appended.
    """
    rules, taken = deployment.rules, dict.fromkeys(metrics, 0)
    payloads: dict[int, list[Payload]] = defaultdict(list)
    for metric in metrics:
        rule = rules.metric[metric]
        if not rule.exact:
            raise EventError("metric", f"{metric} is counted in a sketch (exact = false), which cannot be reset")
        for partition in deployment.layout.holding(subject, spread=rule.spread):
            keys = deployment.layout.keys[partition]
            total = int(client.get(keys.total(metric, subject)) or 0)
            taken[metric] += total
            if rule.once == "forever":
                payloads[partition] += _chunks(Payload([], list(_no_votes(client, keys, metric, subject))))
            elif total:
                corrections = _compensation(client, keys, metric, rule, subject, total, rules.zone)
                payloads[partition] += _chunks(Payload([], [], corrections))
    for partition, of_partition in payloads.items():
        _append(client, deployment, partition, of_partition)
    return taken


def _no_votes(client: redis.Redis, keys: PartitionKeys, metric: str, subject: str) -> Iterator[Single]:
    """Yield a vote of 0 for each actor whose vote for the subject is not 0, with a time after that vote."""
    now = server_time(client)
    for actor, record in client.hscan_iter(keys.once(metric, "forever", subject), count=1000):
        stored, amount = record.split()[:2]
        if int(amount):
            at = int(stored.partition(b"@")[0])  # before the vote's place in the log, see records.lua
            yield Single(metric, subject, 0, max(now, at + 1), actor.decode(), None)


def _compensation(
    client: redis.Redis, keys: PartitionKeys, metric: str, rule: Metric, subject: str, total: int, zone: str
) -> list[Correction]:
    """Return corrections that bring a subject's total in one partition, and each window's latest 1,000 buckets, to 0.

    A correction changes the buckets of its window and of longer windows: a correction of a day changes no hour.
    """
    now = server_time(client) // 1000
    corrections: list[Correction] = []
    for window in (each for each in WINDOWS if each in rule.windows):
        buckets = list(_latest(window, now, zone))
        with client.pipeline(transaction=False) as pipeline:
            for each in buckets:
                pipeline.hget(keys.window(window, metric, each.label), subject)
            values: list[Any] = pipeline.execute()
        for each, value in zip(buckets, values, strict=True):
            # Corrections of finer buckets inside this bucket change this bucket as well.
            begun = max(0, each.start * 1000)
            inside = sum(c.amount for c in corrections if begun <= c.at < each.end * 1000)
            if left := int(value or 0) + inside:
                corrections.append(Correction(metric, subject, -left, begun, window))
    if left := total + sum(correction.amount for correction in corrections):
        corrections.append(Correction(metric, subject, -left, 0, "total"))  # the part of the total in expired buckets
    return corrections


def _latest(window: str, now: int, zone: str) -> Iterator[Bucket]:
    at = now
    for _ in range(_MOST_BUCKETS):
        each = bucket(window, at // MINUTE, zone)
        yield each
        at = each.start - 1
        if at < 0:
            return


def _chunks(payload: Payload) -> Iterator[Payload]:
    for first in range(0, len(payload.singles), _ENTRY_EVENTS):
        yield Payload([], payload.singles[first : first + _ENTRY_EVENTS])
    for first in range(0, len(payload.corrections), _ENTRY_EVENTS):
        yield Payload([], [], payload.corrections[first : first + _ENTRY_EVENTS])


def _append(client: redis.Redis, deployment: Deployment, partition: int, payloads: list[Payload]) -> None:
    appender = Appender(client, deployment.layout)
    for payload in payloads:
        body = encode(payload)
        appender.push(partition, SealedEntry(1, payload.events, len(body), body))
    while appender.oldest_cycle is not None:
        confirmed, error = appender.send()
        if error is not None and not confirmed:
            raise StreamError(f"{deployment.layout.keys[partition].stream}: the server refused the events: {error}")
        if appender.is_closed:
            raise StreamError("a repartition has just closed the streams: try again in a moment")
        if appender.backlogged and not confirmed:
            raise StreamFull(
                f"{deployment.layout.keys[partition].stream} is at its limit: try again when the workers have caught up"
            )
