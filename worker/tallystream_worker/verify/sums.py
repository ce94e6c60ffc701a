"""Checks the sum of a metric in the ledger against its counters, if the counters depend on the order of events.

For such a metric, a second count of the entries proves neither. The scripts write both in the same call.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from tallystream.storage.stored_values import stored_number
from tallystream_worker.process.scan import pages_of_keys

if TYPE_CHECKING:
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.verify.scene import Scene

_ATTEMPTS: Final = 3
"""How often the counters of a metric are added up, if events are counted meanwhile."""


def check(scene: Scene) -> None:
    """Report each metric with `max_subjects` or `seen = "bloom"` whose sum in the ledger is not that of its counters.

    Only faults are added to the report, and no proof. If entries of the partition are counted during each attempt, and
    the sum differs, state a limit. Metrics that have one of these rules by the present rules are checked, in each
    partition that has a stream.

    Raises:
        DamagedValue: a total, or a number in the ledger, has another form than tallystream writes.
        ScanBroken: a node failed over or restarted, or a slot moved to another node, while keys were listed.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    metrics = [
        name for name, rule in scene.rules.metric.items() if rule.max_subjects is not None or rule.seen == "bloom"
    ]
    for _, keys in scene.streams():
        for metric in metrics:
            _check(scene, keys, metric)


def _check(scene: Scene, keys: PartitionKeys, metric: str) -> None:
    for attempt in range(_ATTEMPTS):
        stated = _stated(scene, keys, metric)
        before, sketched, _ = stated
        found = _sum_of_totals(scene, keys, metric, exactly=attempt > 0) + sketched
        if found == before:
            return
        if attempt > 0 and _stated(scene, keys, metric) == stated:
            scene.report.find(
                "ledger.differs",
                f"{keys.stream}: ledger -> total@{metric} is {before:,}, but its counters add up to {found:,}",
            )
            return
    scene.report.limit("sums", f"{keys.stream}: {metric}: its counters were not added up, because they changed")


def _stated(scene: Scene, keys: PartitionKeys, metric: str) -> tuple[int, int, int]:
    """Return the sum of a metric's amounts in the ledger, that of those in its sketch, and a number of counted entries.

    The number rises with each batch, also if its amounts add up to 0. A missing field is 0.

    Raises:
        DamagedValue: a field has another form than tallystream writes.
    """
    fields = f"total@{metric}", f"sketched@{metric}", "entries:settled"
    values = scene.client.hmget(keys.ledger, *fields)
    total, sketched, settled = map(partial(_number, keys), values, fields)
    return total, sketched, settled


def _number(keys: PartitionKeys, value: bytes | None, field: str) -> int:
    return stored_number(keys.ledger, value, field=field)


def _sum_of_totals(scene: Scene, keys: PartitionKeys, metric: str, *, exactly: bool) -> int:
    """Return the sum of the exact totals of a metric in a partition; a key of another type counts as 0.

    SCAN can return a key twice. With `exactly`, it is added once, which needs memory for the name of each key. Without
    it, the sum can be wrong.

    Raises:
        DamagedValue: a total has another form than tallystream writes.
        ScanBroken: see `pages_of_keys`.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    found, seen = 0, set[bytes]()
    for page in pages_of_keys(scene.client, keys.ledger, keys.total(metric, "")):
        names = sorted({*page} - seen)
        if exactly:
            seen.update(names)
        if names:
            values = zip(names, scene.client.mget(names), strict=True)
            found += sum(stored_number(name.decode(errors="replace"), value) for name, value in values)
    return found
