"""Compares the counters with the entries: every kind by the audit, and sketches also by their sum."""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING, Final

from tallystream.errors import ConfigurationError
from tallystream.rules.batch import SKETCH_ROWS, SKETCH_WIDTH
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.verify.scene import utc

if TYPE_CHECKING:
    from tallystream_worker.rebuild.report import Report as Audited
    from tallystream_worker.verify.scene import Scene

_KINDS: Final = {
    "total": "counters", "up": "counters", "minute": "buckets", "hour": "buckets", "day": "buckets",
    "month": "buckets", "limit": "limits", "once": "votes", "seen": "ids", "unique": "uniques",
    "top": "leaderboards", "sketch": "sketches", "ledger": "ledger",
}  # fmt: skip
"""By the first part of a counter's name, the first part of the name of the finding."""


def check(scene: Scene) -> None:
    """Report each counter whose value is not what the entries give, counted again in a scratch server.

    Each is also added to `differing` of the report, so that later checks leave it out. The report's limits get the
    counters that could not be compared, and why; if none could, this is no error, but a limit as well.

    Raises:
        StreamError, ArchiveError, SnapshotError, EmbeddedServerError: see `audit`. These are errors, not limits.
        redis.RedisError: a server does not reply, or rejects a command.
    """
    try:
        found = audit(
            scene.client,
            scene.deployment,
            scene.rules,
            sources=scene.sources,
            sample=scene.sample,
            show=lambda stream, entries, counters: scene.show(
                f"{stream}: {entries:,} entries counted again, {counters:,} counters compared"
            ),
        )
    except ConfigurationError as error:
        scene.report.limit("counters", f"no counter was compared: {error}")
        return
    for each in found.differences:
        kind = _KINDS.get(each.counter.partition(":")[0].partition(" ")[0], "counters")
        name = "ledger.differs" if kind == "ledger" else f"{kind}.differ"
        scene.report.differing.add((each.stream, each.counter))
        scene.report.find(name, f"{each.stream}: {each.counter} is {each.found}, expected {each.expected}")
    scene.report.proves_counters = scene.sample >= 1 and not found.unproved
    scene.report.prove(
        "counters",
        f"{found.counters - found.wrong:,} counters are what {found.entries:,} entries give",
        faults_before=scene.report.faults,  # the counters that differ are not among them
        counters=found.counters - found.wrong,
        entries=found.entries,
    )
    _limit(scene, found)


def _limit(scene: Scene, found: Audited) -> None:
    """Add to the limits of `scene.report` which counters the audit left out, and why; nothing if it left out none.

    Call it once for an audit: another call adds the same statements again.

    Args:
        scene: The verification.
        found: The report of its audit.
    """
    report = scene.report
    for scope in found.scopes:
        if scope.base == "snapshot":
            report.limit(
                "counters",
                f"{scope.stream}: counts before the snapshot of {utc(scope.moment * 1000)}, which is taken as correct",
            )
        elif scope.moment:
            report.limit(
                "counters",
                f"{scope.stream}: totals, and buckets that begin before {utc(scope.since * 1000)} ({scope.unproved:,} "
                f"keys), because entries up to {utc(scope.moment * 1000)} are gone",
            )
    if found.expired:
        report.limit(
            "counters",
            f"{found.expired:,} parts of buckets that are past their retention, were removed, or are left over from a "
            "change of the rules",
        )
    if scene.sample < 1:
        report.limit("counters", f"all but a sample of {scene.sample:.2%} of the keys, which was asked for")
    for metric, rule in sorted(scene.rules.metric.items()):
        if rule.max_subjects is not None or rule.seen == "bloom":
            cause = "max_subjects" if rule.max_subjects is not None else 'seen = "bloom"'
            report.limit("counters", f"{metric}: its counters depend on the order of events, because of {cause}")


def check_sketches(scene: Scene) -> None:
    """Report each sketch with a row that does not add up to the amounts in the sketch, which the ledger states.

    If all rows do, an estimate is too high by at most the other amounts in its cells: the bound that a read states. A
    sketch that does not exist counts as one of zeros. Only faults are added to the report, and no proof.
    """
    metrics = [name for name, rule in scene.rules.metric.items() if rule.max_subjects is not None or not rule.exact]
    for _, keys in scene.streams():
        for metric in metrics:
            with scene.client.pipeline(transaction=True) as pipeline:
                pipeline.get(keys.sketch(metric))
                pipeline.hget(keys.ledger, f"sketched@{metric}")
                cells, sketched = pipeline.execute()
            sums, expected = row_sums(cells or b""), int(sketched or 0)
            if any(each != expected for each in sums):
                scene.report.find(
                    "sketches.differ", f"{keys.sketch(metric)}: rows add up to {sums}, but {expected:,} was added"
                )


def row_sums(cells: bytes) -> list[int]:
    """Return the sum of each row of a sketch, given the bytes of its key; missing bytes at the end count as 0.

    The bytes are signed numbers of 8 bytes each, the highest byte first, row by row.
    """
    numbers = array("q", cells.ljust(8 * SKETCH_ROWS * SKETCH_WIDTH, b"\0"))
    if sys.byteorder == "little":
        numbers.byteswap()
    return [sum(numbers[row * SKETCH_WIDTH : (row + 1) * SKETCH_WIDTH]) for row in range(SKETCH_ROWS)]
