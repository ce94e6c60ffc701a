"""Notes which commands mend wrong counters and lost keys, and whether the snapshot can be restored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tallystream.client.replies import BROKEN
from tallystream.errors import TallyError
from tallystream.storage.keys import FIRST_TOPIC
from tallystream.wire.stream_id import parse_id
from tallystream_worker.rebuild.recount import recount_command
from tallystream_worker.rebuild.reopen import unusable_without
from tallystream_worker.verify.findings import KINDS

if TYPE_CHECKING:
    from tallystream_worker.snapshot.database import Database
    from tallystream_worker.verify.report import Verification
    from tallystream_worker.verify.scene import Scene


def note(scene: Scene) -> None:
    """Note in the report which command mends counters and lost keys, and whether a snapshot can be restored.

    Also note whether a restore of it counts the archived entries that the server has lost. If it cannot be found out
    which command is right, its general text stays. Call it after all checks.

    Raises:
        redis.ConnectionError, redis.TimeoutError: the server does not reply.
    """
    sources, deployment, report = scene.sources, scene.deployment, scene.report
    note_snapshot(report, sources.snapshot, deployment.layout.namespace, deployment.epoch)
    report.recount = recount_command(scene.client, deployment, sources)
    try:
        report.is_ahead_of_snapshot = _is_before_the_loss(scene)
        report.lost_keys_remedy = _of_lost_keys(scene)
    except BROKEN:
        raise
    except (TallyError, RedisError, ValueError):
        return  # a check has reported it


def note_snapshot(report: Verification, database: Database | None, namespace: str, epoch: str | None = None) -> None:
    """Set `report.has_snapshot`: whether there is a snapshot of this data that can be restored.

    Set it to `None` if the snapshot cannot be read. Its generation or topic need not be live.

    Args:
        report: The report.
        database: The snapshot; `None` for none.
        namespace: The namespace of the data.
        epoch: The epoch of the data; `None` if the server has lost it.
    """
    if database is None:
        report.has_snapshot = False
        return
    report.has_snapshot = None
    try:
        facts = database.facts()
        partitions = range(int(facts.get("partitions", 0)))
        is_whole = all(database.position(number) is not None for number in partitions)
    except (TallyError, ValueError):
        return  # it cannot be read now, but it may be right: the remedies state both cases
    is_own = facts.get("namespace") == namespace and epoch in (None, facts.get("epoch"))
    report.has_snapshot = is_own and is_whole and len(partitions) > 0


def _is_before_the_loss(scene: Scene) -> bool:
    """Return whether a restore of the snapshot counts the archived entries that the server has lost.

    The snapshot must be of the live topic, undamaged, and, in each partition that has lost entries, of the live
    generation and of before the loss. `True` if there is such a snapshot, but no lost entry.

    Raises:
        SnapshotError, ConfigurationError, ValueError: the snapshot cannot be read: see `Database.position`.
    """
    database, deployment, report = scene.sources.snapshot, scene.deployment, scene.report
    if database is None or not report.has_snapshot or "snapshot.damaged" in report.findings:
        return False
    if database.facts().get("log", str(FIRST_TOPIC)) != str(deployment.layout.topic):
        return False
    for number, lost in report.ahead.items():
        found = database.position(number)
        if found is None or found[1] != deployment.generation:
            return False
        if parse_id(found[0].generated) > parse_id(lost.after):
            return False
    return True


def _of_lost_keys(scene: Scene) -> str:
    """Return the commands that bring back the lost keys of the report, in their order, or that none is needed.

    Return the general text if a snapshot is needed, and it is not known whether there is one. The report must have its
    `has_snapshot` and `recount`.

    Raises:
        redis.RedisError: the server does not reply, or rejects a command.
    """
    lost, layout, deployment = scene.report.lost, scene.deployment.layout, scene.deployment
    every = layout.keys
    needed = {key for keys in every for key in (keys.sequences, keys.topic_ledger, keys.live, keys.dropped)}
    if lost & {*needed, layout.files}:
        if scene.report.has_snapshot is None:
            return KINDS["keys.lost"].remedy
        if scene.report.has_snapshot:
            return "tallystream restore --force"
    copied, outboxes = {keys.copied for keys in every}, {keys.outbox for keys in every}
    reopens, drops = bool(lost & {*needed, layout.rule_changes}), bool(lost & copied)
    is_unfinished = deployment.building is not None or deployment.moving is not None
    steps = ["tallystream rebuild --drop"] * (drops or (reopens and is_unfinished))
    if reopens:
        is_forced = any(unusable_without(scene.client, keys) for keys in every)
        steps.append("tallystream reopen --force" if is_forced else "tallystream reopen")
    if lost - {*needed, *copied, *outboxes, layout.rule_changes, layout.files}:
        steps.append(scene.report.recount)
    if steps:
        return "; then: ".join(steps)
    created = "ingest" if layout.files in lost else "notification"
    return f"nothing, because the next {created} creates it"
