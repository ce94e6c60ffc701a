"""Checks the snapshot: it is of this data, young enough, within the streams, and restores to the live values."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

from tallystream.client.server_time import server_time
from tallystream.errors import ConfigurationError
from tallystream.storage.deployment_hash import SNAPSHOT_AT, SNAPSHOT_EVERY
from tallystream.storage.keys import FIRST, FIRST_TOPIC
from tallystream.wire.stream_id import parse_id
from tallystream_worker.snapshot.point_in_time import ViewLost
from tallystream_worker.verify.counters import UNCERTAIN
from tallystream_worker.verify.lost_fields import LOST_PART
from tallystream_worker.verify.scene import Scene, utc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.snapshot.database import Database
    from tallystream_worker.snapshot.drill import Verdict
    from tallystream_worker.snapshot.point_in_time import SnapshotPosition

_BY_HAND: Final = 26 * 3600.0
"""Seconds that a snapshot may be old if no worker takes them: they are then taken daily, for example by cron."""

_SLACK: Final = 300.0
"""Seconds that a snapshot may take to be complete."""

_TRIES: Final = 5
_PAUSE: Final = 0.5

_THERE: Final = "there"
_SENT_AGAIN: Final = "sent again"
_LOST: Final = "lost"
"""The results of `_state_of`."""


def check(scene: Scene) -> None:
    """Report a snapshot that is missing, too old, of other data, or not equal to the live values after a restore.

    The snapshot is restored to a temporary server. If the values are equal, and no row was changed, this is a proof.

    Also report ends of removed periods and marks of changed rules that the snapshot has and the server lacks; a
    snapshot that is ahead of the stream; one whose entries a restore of another snapshot has passed over; one whose
    later entries are gone while there is no archive; and one in which another program has changed rows. A snapshot with
    one of these faults is not restored, unless it is only too old or changed, or the server lacks such ends or marks.

    Add a limit in place of a fault if no snapshot is configured. Add one too, and do not restore the snapshot, if it is
    young enough, but of another generation of the topic or of an earlier topic, and the server has lost none of its
    events; or if the server has lost data of it that producers have sent again. In both cases the next snapshot can be
    restored. Add one too, in place of a missing snapshot, if the first one is still due (`_is_first_due`). Add a limit
    too if restored values differ, and live counters were found to be wrong, which may be the reason. Values that differ
    and may be right, because it is not known which rules counted their events, are stated as not checked (`failed`).

    Raises:
        SnapshotError: the snapshot has another format or layout, or the database cannot be used.
        ConfigurationError: the SQLite file of the snapshot does not exist, and the first snapshot is not due any more.

    Any other error of `drill` is raised too; `ViewLost` only after six attempts.
    """
    from tallystream_worker.snapshot.restore import ensure_readable  # noqa: PLC0415  # SQLAlchemy takes its time
    from tallystream_worker.snapshot.schema import FORMAT  # noqa: PLC0415  # as above

    report, database = scene.report, scene.sources.snapshot
    if database is None:
        report.limit("snapshot", "no snapshot is configured (--snapshot URL), so nothing was restored on trial")
        return
    facts = _facts(scene, database)
    if not facts:
        if facts is not None:
            report.find("snapshot.missing", database.place)
        return
    damaged = _check_rows(scene, database) if facts.get("format", FORMAT) == FORMAT else 0
    ensure_readable(database, facts)
    layout = scene.deployment.layout
    expected = {"epoch": scene.deployment.epoch, "namespace": layout.namespace, "log": str(layout.topic)}
    if differing := [name for name, value in expected.items() if facts.get(name, str(FIRST_TOPIC)) != value]:
        if differing != ["log"] or not _is_of_another_topic(scene, database, facts):
            report.find("snapshot.other", f"{database.place}: another {', '.join(differing)}")
        return
    oldest, is_sound = float("inf"), True
    superseded: dict[int, int] = {}
    for number, keys in scene.streams():
        found = database.position(number)
        if found is None:
            report.find("snapshot.missing", f"{database.place}: {keys.stream}")
            is_sound = False
            continue
        oldest = min(oldest, found[0].taken)
        if found[1] == keys.generation:
            is_sound = _is_within(scene, number, database, found[0]) and is_sound
            _check_forgotten(scene, keys, database.forgotten(number))
        elif _state_of(scene, keys, number, database, found[0]) == _LOST:
            is_sound = False
        elif _was_live(scene, found[1]) and not _is_old(scene, found[0].taken):
            superseded[found[1]] = min(found[0].taken, superseded.get(found[1], found[0].taken))
        else:
            name = "snapshot.outdated" if _was_live(scene, found[1]) else "snapshot.other"
            report.find(name, f"{database.place}: generation {found[1]} of {keys.stream}")
            is_sound = False
    for generation, taken in sorted(superseded.items()):
        report.limit(
            "snapshot",
            f"{database.place} has partitions of generation {generation} (of {utc(taken)}), which is not live: the "
            f"next snapshot will be of generation {scene.deployment.generation}",
        )
    is_sound = is_sound and not superseded
    _check_age(scene, database, oldest)
    if is_sound:
        _check_restore(scene, database, oldest, damaged)


def _facts(scene: Scene, database: Database) -> dict[str, str] | None:
    """Return the facts of a snapshot, empty if there is none; `None` if the first snapshot is due, which is a limit.

    Raises:
        ConfigurationError: the SQLite file of the snapshot does not exist, and the first snapshot is not due any more.
        SnapshotError: the database cannot be used.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    is_due = _is_first_due(scene)  # before the facts: the first snapshot may be completed now
    try:
        facts = database.facts()
    except ConfigurationError:
        if not is_due:
            raise
        facts = {}
    if facts or not is_due:
        return facts
    scene.report.limit("snapshot", f"{database.place} has no complete snapshot yet: the first one is due")
    return None


def _is_first_due(scene: Scene) -> bool:
    """Return whether no snapshot of these data was ever complete, and none had to be: all data are young.

    Data are young if the first change of the rules and the first entry of each stream are at most as old as a snapshot
    may be (`_most`); if no worker has stated yet that it takes snapshots, at most 5 minutes. If the record of these
    changes is lost, the age of the data is not known: return `False`.

    Raises:
        redis.RedisError: the server does not reply, or rejects a command.
    """
    client, layout = scene.client, scene.deployment.layout
    if any(client.hexists(meta, SNAPSHOT_AT) for meta in {layout.root, layout.meta}):
        return False  # a snapshot was complete, so it is gone
    changes, *entries = (client.xrange(key, count=1) for key in (layout.rule_changes, *(k.stream for k in layout.keys)))
    if not changes:
        return False
    oldest = min(parse_id(id_.decode())[0] for found in (changes, *entries) for id_, _ in found)
    most = _most(scene) if client.hexists(layout.meta, SNAPSHOT_EVERY) else _SLACK
    return (server_time(client) - oldest) / 1000 <= most


def _is_of_another_topic(scene: Scene, database: Database, facts: Mapping[str, str]) -> bool:
    """Return whether a snapshot is of an earlier topic, or has events that the server has lost; if so, report this.

    The loss is reported as a fault, also if the server does not state the topic: older data may have been put back. An
    earlier topic is reported as a limit, or as a fault if the snapshot is too old. Return `False`, and report nothing,
    if the topic or the number of partitions in the facts is no number, and if the snapshot has no partition.
    """
    from tallystream_worker.snapshot.snapshotter import layout_of  # noqa: PLC0415  # SQLAlchemy takes its time

    topic = facts.get("log", str(FIRST_TOPIC))
    if not (topic.isdigit() and facts.get("partitions", "").isdigit()):
        return False
    taken, is_lost = [], False
    for number, keys in enumerate(layout_of(facts).keys):
        if (found := database.position(number)) is not None:
            taken.append(found[0].taken)
            is_lost = _state_of(scene, keys, number, database, found[0]) == _LOST or is_lost
    if is_lost:
        return True
    if not taken or int(topic) not in scene.deployment.earlier:
        return False
    if _is_old(scene, min(taken)):
        scene.report.find("snapshot.outdated", f"{database.place}: topic {topic}, of {utc(min(taken))}")
        return True
    scene.report.limit(
        "snapshot",
        f"{database.place} is of topic {topic} (of {utc(min(taken))}), which is not live: the next snapshot will be of "
        f"topic {scene.deployment.layout.topic}",
    )
    return True


def _was_live(scene: Scene, generation: int) -> bool:
    """Return whether a number was given to a generation of the live topic, which need not have been live.

    This is so for each number from the first to the highest that was given.

    Raises:
        redis.RedisError: the server does not reply, or rejects the command.
    """
    newest = scene.client.hget(scene.deployment.layout.meta, "newest")
    return FIRST <= generation <= max(int(newest or 0), scene.deployment.generation)


def _check_rows(scene: Scene, database: Database) -> int:
    """Report, for each partition, the tables of which another program has changed, removed or added rows.

    The table of the facts, which are of no partition, is checked too. Return the number of faults: a table with such
    rows of two partitions is two.
    """
    before = scene.report.faults
    for number in (None, *range(scene.deployment.layout.partitions)):
        scene.show(f"reading {database.place}")
        of = "" if number is None else f" of partition {number}"
        for table in database.damaged(number):
            scene.report.find("snapshot.damaged", f"{database.place}: table {table}{of}")
    return scene.report.faults - before


def _is_within(scene: Scene, number: int, database: Database, position: SnapshotPosition) -> bool:
    """Return whether a partition of a snapshot of the live generation can be restored on trial; if not, report why.

    It can if the server has everything that the snapshot has (see `_state_of`), and the stream has all entries after
    the snapshot, or there is an archive. The reason is a limit if producers have sent all lost entries again, else a
    fault.

    Args:
        scene: The verification, whose report gets the reason.
        number: The number of the partition.
        database: The database of the snapshot.
        position: The position of the partition in the snapshot.
    """
    report, keys = scene.report, scene.deployment.layout.keys[number]
    state = _state_of(scene, keys, number, database, position)
    if state == _SENT_AGAIN:
        report.limit(
            "snapshot",
            f"{database.place}: {keys.stream} lost data of the snapshot, and producers have sent all its entries "
            "again: the next snapshot can be restored on trial",
        )
    if state != _THERE:
        return False
    if not position.is_reached(scene.client, keys) and scene.sources.archive is None:
        report.find("snapshot.behind", f"{database.place}: {keys.stream} begins after {position.floor}")
        return False
    return True


def _state_of(scene: Scene, keys: PartitionKeys, number: int, database: Database, position: SnapshotPosition) -> str:
    """Return whether the server has what a partition of the snapshot has; if entries are lost, report this.

    The result is `_THERE`, `_SENT_AGAIN` (the mark is missing, but no entry is lost, or all were sent again) or
    `_LOST`. Only `_LOST` is reported, as a fault. Entries are lost, or a restore of another snapshot has passed them
    over, if the snapshot ends after the stream; a restore of an earlier topic has passed over those of a later one.
    They may also be lost if the server lacks the mark of the snapshot: the IDs do not show whether a server has lost
    entries and got later ones since. If the key that has the mark (the sequences) is lost, the mark is not looked for,
    and the result is `_THERE`.

    Args:
        scene: The verification, whose report gets the loss.
        keys: The keys of the partition in the topic of the snapshot. If this topic is not live, its stream may have
            been removed.
        number: The number of the partition.
        database: The database of the snapshot.
        position: The position of the partition in the snapshot.
    """
    from tallystream_worker.snapshot.lost_log import (  # noqa: PLC0415  # as above
        LogLost,
        PassedOver,
        has_everything,
        passed_over,
    )

    report, client, live = scene.report, scene.client, scene.deployment.layout
    try:
        if keys.topic == live.topic:
            end, newest = position.generated, client.xinfo_stream(keys.stream)["last-generated-id"].decode()
            if parse_id(end) > parse_id(newest):
                raise passed_over(client, keys, position, live) or LogLost(f"{end}, but {keys.stream} ends at {newest}")
        if keys.sequences in report.lost or has_everything(client, keys, position, database, number, live):
            return _THERE
    except LogLost as error:
        name = "snapshot.passed_over" if isinstance(error, PassedOver) else "snapshot.ahead"
        report.find(name, f"{database.place}: {error.problem}")
        report.explain(name)
        return _LOST
    return _SENT_AGAIN


def _check_forgotten(scene: Scene, keys: PartitionKeys, copied: Mapping[str, str]) -> None:
    """Report fields of `PartitionKeys.forgotten` that the snapshot has, and the server lacks: it removes none of them.

    `copied` has those of the snapshot, without the one that a server may remove. Do nothing if the server has no field:
    the check of lost keys reports the key. Without the fields, reads would not state that buckets lack events, and
    events of removed periods would count again.
    """
    present = {name.decode(errors="replace") for name in scene.client.hkeys(keys.forgotten)}
    for name in sorted(copied.keys() - present) if present else ():
        scene.report.lose_field(keys.forgotten, name, f"The snapshot has the value {copied[name]}. {LOST_PART}")


def _check_age(scene: Scene, database: Database, oldest: float) -> None:
    if _is_old(scene, oldest):
        scene.report.find("snapshot.old", f"{database.place}: of {utc(oldest)}, and may be {_most(scene):,.0f} s old")


def _is_old(scene: Scene, taken: float) -> bool:
    """Return whether a snapshot that was taken at a time is older than it may be (`_most`).

    The time is in milliseconds since 1970; infinity, which stands for no snapshot, gives `False`.
    """
    return _most(scene) < (server_time(scene.client) - taken) / 1000


def _most(scene: Scene) -> float:
    """Return how many seconds old a snapshot may be.

    It is twice the interval in which workers take them, and 5 minutes; 26 hours if no worker takes them.
    """
    every = scene.client.hget(scene.deployment.layout.meta, SNAPSHOT_EVERY)
    return 2 * float(every) + _SLACK if every else _BY_HAND


def _check_restore(scene: Scene, database: Database, oldest: float, damaged: int) -> None:
    verdict = _drill(scene, database)
    if verdict.uncertain:
        shown = verdict.unclear[0]
        scene.report.fail(
            "snapshot",
            f"{database.place}: {verdict.uncertain:,} values differ after a restore ({shown.table} "
            f"{' '.join(shown.key)} is {shown.restored}, {shown.live} live). {UNCERTAIN}. Take another snapshot: "
            "tallystream snapshot --once",
        )
    if verdict.differing and scene.report.differing:
        scene.report.limit(
            "snapshot",
            f"{verdict.differing:,} values differ after a restore of {database.place}, but the live counters named "
            "above are wrong: mend these, then verify again",
        )
        return
    if verdict.differing:
        shown = verdict.differences[0]
        scene.report.find(
            "snapshot.differs",
            f"{database.place}: {shown.table} {' '.join(shown.key)} is {shown.restored} after a restore, {shown.live} "
            "live",
            times=verdict.differing,
        )
        return
    since = "" if oldest == float("inf") else f" (of {utc(oldest)})"
    scene.report.prove(
        "snapshot",
        f"{verdict.compared - verdict.uncertain:,} values are equal after a restore of {database.place}{since}",
        faults_before=scene.report.faults - damaged,
        values=verdict.compared - verdict.uncertain,
    )


def _drill(scene: Scene, database: Database) -> Verdict:
    from tallystream_worker.snapshot.drill import drill  # noqa: PLC0415  # SQLAlchemy takes its time

    store, archived = scene.sources.archive, None
    if store is not None:
        from tallystream_worker.archive.entries import entries  # noqa: PLC0415  # pyarrow is an extra

        archived = partial(entries, store)

    for _ in range(_TRIES):
        scene.show(f"restoring {database.place} on trial")
        try:
            return drill(scene.client, database, scene.deployment, archived)
        except ViewLost:
            time.sleep(_PAUSE)  # a worker takes a snapshot of the same partition
    return drill(scene.client, database, scene.deployment, archived)
