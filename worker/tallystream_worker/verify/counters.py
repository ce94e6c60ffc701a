"""Compares the counters with the entries: every kind by the audit, and sketches also by their sum."""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING, Final

from tallystream.errors import ConfigurationError
from tallystream.rules.batch import SKETCH_ROWS, SKETCH_WIDTH
from tallystream.rules.changes import changes_of, changes_within
from tallystream.storage.rule_changes import changes_of_topic, read_changes
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.snapshot.live_rules import followed_rules
from tallystream_worker.verify.findings import SHOWN
from tallystream_worker.verify.scene import utc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tallystream_worker.rebuild.report import Report as Audited
    from tallystream_worker.rebuild.values import Difference
    from tallystream_worker.snapshot.live_rules import LiveRules
    from tallystream_worker.verify.scene import Scene

UNCERTAIN: Final = (
    "It is not known whether they are right: when the rules changed, or after it, entries or dead letters were counted "
    "without a record of the rules"
)
"""Why values that differ are no finding."""

_KINDS: Final = {
    "total": "counters", "up": "counters", "minute": "buckets", "hour": "buckets", "day": "buckets",
    "month": "buckets", "limit": "limits", "once": "votes", "seen": "ids", "unique": "uniques",
    "top": "leaderboards", "sketch": "sketches", "ledger": "ledger",
}  # fmt: skip
"""By the first part of a counter's name, the first part of the name of the finding."""


def check(scene: Scene) -> None:
    """Report counters whose values are not what the entries give, counted again in a scratch server.

    Each entry is counted by the rules that counted it, if the server states these, else by the present rules. A counter
    that differs, and of which it is not known which rules counted it, is no fault: it is added to the failed checks of
    the report. Only a sample of the keys is compared if `sample` of the scene is below 1.

    Each counter that is a fault is also added to `differing` of the report, so that later checks leave it out. The
    limits of the report get the counters that could not be compared, and why; if none could, this is no error, but a
    limit as well. They also state before which entry earlier rules counted. Also set `proves_counters` of the report to
    whether every counter was compared, expired ones aside.

    Raises:
        StreamError, ArchiveError, SnapshotError, CodecError, EmbeddedServerError: see `audit`.
        DamagedValue: see `followed_rules`.
        redis.RedisError: a server does not reply, or rejects a command.
        OSError: a temporary file cannot be written.
    """
    followed = followed_rules(scene.client, scene.deployment.layout, scene.sources.changes)
    try:
        found = audit(
            scene.client,
            scene.deployment,
            scene.rules,
            sources=scene.sources,
            sample=scene.sample,
            followed=followed,
            show=lambda stream, entries, counters: scene.show(
                f"{stream}: {entries:,} entries counted again, {counters:,} counters compared"
            ),
        )
    except ConfigurationError as error:
        scene.report.limit("counters", f"no counter was compared: {error}")
        return
    _state_uncertain(scene, found.uncertain)
    for each in found.differences:
        kind = _KINDS.get(each.counter.partition(":")[0].partition(" ")[0], "counters")
        name = "ledger.differs" if kind == "ledger" else f"{kind}.differ"
        scene.report.differing.add((each.stream, each.counter))
        scene.report.find(name, f"{each.stream}: {each.counter} is {each.found}, expected {each.expected}")
    scene.report.proves_counters = scene.sample >= 1 and not found.unproved
    scene.report.prove(
        "counters",
        f"{found.counters - found.wrong:,} counters are what {_sources(found)}",
        faults_before=scene.report.faults,  # the counters that differ are not among them
        counters=found.counters - found.wrong,
        entries=found.entries,
    )
    _limit(scene, found, followed)
    if followed is not None:
        _state_earlier_rules(scene, followed)


def _sources(found: Audited) -> str:
    """Return in words, as `5 entries give`, what an audit compared the counters with: entries, a snapshot, or both."""
    if "snapshot" not in {scope.base for scope in found.scopes}:
        return f"{found.entries:,} entries give"
    return f"the snapshot and {found.entries:,} later entries give" if found.entries else "the snapshot gives"


def _state_uncertain(scene: Scene, uncertain: Sequence[Difference]) -> None:
    """Add to the failed checks, for each stream, how many counters differ and may be right, and the first ones."""
    for stream in dict.fromkeys(each.stream for each in uncertain):
        mine = [each for each in uncertain if each.stream == stream]
        shown = "; ".join(f"{each.counter} is {each.found}, expected {each.expected}" for each in mine[:SHOWN])
        scene.report.fail(
            "counters",
            f"{stream}: {len(mine):,} counters ({shown}). {UNCERTAIN}. To count all events by the present rules: "
            "tallystream rebuild (with --archive URL if entries are gone from the streams)",
        )


def _state_earlier_rules(scene: Scene, followed: LiveRules) -> None:
    """Add to the limits, for each partition that had earlier rules, the ID before which they counted, and the changes.

    Of the changes, only the last `SHOWN` are named.
    """
    layout = scene.deployment.layout
    recorded = changes_of(changes_of_topic(read_changes(scene.client, layout)))
    for number, keys in scene.streams():
        places = followed.places.get(number, {})
        if changes := changes_within(recorded, places.keys(), followed.firsts.get(number)):
            first = places[changes[-1].number].partition(" ")[0]
            said = "; ".join(word for change in changes[-SHOWN:] for word in change.differences)
            scene.report.limit(
                "counters",
                f"{keys.stream}: what the present rules give for the entries before {first}, which were counted by "
                f"earlier rules ({said}). To count all events by the present rules: tallystream rebuild (with "
                "--archive URL if entries are gone from the streams)",
            )


def _limit(scene: Scene, found: Audited, followed: LiveRules | None) -> None:
    """Add to the limits of `scene.report` which counters the audit does not prove, and why.

    These are counts up to a snapshot, which the audit takes as correct, the counters that it left out, and those of
    metrics whose counters depend on the order of events. Call it once for an audit: another call adds the same
    statements again.

    Args:
        scene: The verification.
        found: The report of its audit.
        followed: The rules of the server; `None` if they are not known.
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
    every = [scene.rules, *(followed.recorded().values() if followed is not None else ())]
    causes = {
        metric: "max_subjects" if rule.max_subjects is not None else 'seen = "bloom"'
        for rules in every
        for metric, rule in rules.metric.items()
        if rule.max_subjects is not None or rule.seen == "bloom"
    }
    for metric, cause in sorted(causes.items()):
        report.limit("counters", f"{metric}: its counters depend on the order of events, because of {cause}")


def check_sketches(scene: Scene) -> None:
    """Report each sketch with a row that does not add up to the amounts in the sketch, which the ledger states.

    Only metrics that may use a sketch by the present rules are checked. A sketch that does not exist counts as one of
    zeros. Only faults are added to the report, and no proof.
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
