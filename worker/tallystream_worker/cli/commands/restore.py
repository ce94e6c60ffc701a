"""The command `restore`: writes the counters of a snapshot to a server."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from msgspec import to_builtins
from msgspec.structs import replace

from tallystream.client.connect import connect
from tallystream.errors import ConfigurationError, TallyError
from tallystream.rules.metrics import publish
from tallystream_worker.cli.backup import (
    archive_of,
    archived_topics,
    open_archive,
    open_later_topics,
    open_snapshot,
)
from tallystream_worker.cli.options import AsJson, FromArchive, SnapshotUrl, Where, flag
from tallystream_worker.cli.output import console, error_console, print_json, print_table
from tallystream_worker.cli.regained import regained_text
from tallystream_worker.cli.unfinished import stating_unfinished_restore
from tallystream_worker.process.moments import format_moment
from tallystream_worker.runtime.backups import read_snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tallystream_worker.runtime.backups import BackedUp
    from tallystream_worker.settings.settings import Settings
    from tallystream_worker.snapshot.partition_restore import RestoredPart
    from tallystream_worker.snapshot.point_in_time import SnapshotPosition
    from tallystream_worker.snapshot.restore import Restored


def restore(
    url: SnapshotUrl = None,
    /,
    *,
    archive: FromArchive = None,
    force: Annotated[bool, flag("replace the counters on a server that is not empty")] = False,
    accept_loss: Annotated[bool, flag("restore without events that only another topic has")] = False,
    json: AsJson = False,
    where: Where = Where(),
) -> int:
    """Restore the counters of a snapshot to an empty server, and count the entries appended after it.

    With --force, the counters of a server that is not empty are replaced. Until the command ends, workers do not count,
    and readers get an error. If it is interrupted, run it again.

    The exit status is 1 if events were retracted after the snapshot. The counters then have these events until you run
    `tallystream rebuild`. It is also 1 if another program has changed rows of the snapshot after it was taken. Events
    that neither the stream nor the archive has are printed as missing, and do not change it.
    """
    from tallystream_worker.snapshot.restore import restore as bring_back  # noqa: PLC0415

    settings = where.settings()

    def tell(part: RestoredPart) -> None:
        if not json:
            error_console.print(f"{part.stream}: {part.rows:,} rows, {part.replayed:,} later entries")

    def wait(process: str) -> None:
        if not json:
            error_console.print(f"waiting for the lock of another restore ({process})", soft_wrap=True)

    configured = _configured(settings)
    began = time.monotonic()
    with (
        closing(connect(settings.redis.url)) as client,
        open_snapshot(settings, url, is_there=True) as database,
        stating_unfinished_restore(client, settings.redis.namespace),
    ):
        store = archive_of(settings, archive, database)
        result = bring_back(
            client,
            database,
            open_archive(store),
            force=force,
            accept_loss=accept_loss,
            later=open_later_topics(settings, archive),
            topics=archived_topics(settings, archive),
            retracted=[] if store is None else store.retracted(),
            files={} if store is None else store.files_ingested(),
            changes={} if store is None else store.rules(),
            durability=settings.worker.durability,
            progress=tell,
            waiting=wait,
        )
    seconds, parts = time.monotonic() - began, result.parts
    damaged = sorted({*result.damaged, *(table for part in parts for table in part.damaged)})
    status = 1 if result.lacking or damaged else 0
    if json:
        listed = {"partitions": [asdict(part) for part in parts], "damaged": result.damaged}
        print_json(
            {
                **listed,
                "seconds": round(seconds, 3),
                "lacking": to_builtins(result.lacking),
                "rules_differ": _rules_differ(settings, result),
                "rules_regained": result.regained,
                "regained_live": result.is_regained_live,
            }
        )
        return status
    print_table(
        f"restored in {seconds:.1f} s",
        ["stream", "snapshot of", "rows", "entries since", "complete up to", "events missing"],
        [
            [part.stream, _taken(part), f"{part.rows:,}", f"{part.replayed:,}", _end(part), f"{part.missing:,}"]
            for part in parts
        ],
    )
    if lost := sum(part.missing for part in parts):
        console.print(
            f"{lost:,} events were appended but not counted before the snapshot, and are in neither the stream nor the "
            "archive: the ledger has them as trimmed"
        )
    if not all(part.survived for part in parts):
        console.print(
            "If entries were appended after the times in the table, they are lost unless a producer still has them: "
            "neither the stream nor the archive has such entries",
            soft_wrap=True,
        )
    if result.lacking:
        console.print(
            f"The snapshot is older than {len(result.lacking):,} retractions: the counters have these events again. To "
            "take them out, run: tallystream rebuild. If the streams lack entries, add the archive (--archive URL)",
            soft_wrap=True,
        )
    if result.regained:
        console.print(
            f"{regained_text(result.regained, is_live=result.is_regained_live)}. Events that were counted after the "
            "loss stay counted by the rules of that time. To count all events by the present rules, run: tallystream "
            "rebuild",
            soft_wrap=True,
        )
    elif _rules_differ(settings, result) and result.kept:
        console.print(
            "The present rules stay live, and differ from those of the snapshot: the events up to the snapshot are "
            "counted by its rules. To count all events by the present rules, run: tallystream rebuild",
            soft_wrap=True,
        )
    elif _rules_differ(settings, result):
        console.print(
            "The rules are those of the snapshot again, and differ from the present ones: until a worker starts with "
            "the present configuration, events of new metrics become dead letters. Then run: tallystream rebuild",
            soft_wrap=True,
        )
    _print_passed_over(configured, database.place, parts)
    if damaged:
        console.print(
            f"Another program has changed, removed or added rows of the snapshot after it was taken, in the tables "
            f"{', '.join(damaged)}: the restored values may be wrong. To count them again from the entries, run: "
            "tallystream rebuild. If the streams lack entries, add the archive (--archive URL)",
            soft_wrap=True,
        )
    return status


def _rules_differ(settings: Settings, result: Restored) -> bool:
    """Return whether other rules than those of the snapshot are live, or will be as soon as a worker starts.

    If the rules before the restore stay live, these are compared. Otherwise, those of the configuration are, or else
    those that the server had before. A configuration that contradicts the live rules differs too. Retractions are not
    compared.
    """
    present = result.former or result.rules
    if result.kept:
        present = result.rules
    elif settings.states_rules:
        try:
            present = settings.rules_over(result.rules)
        except ConfigurationError:  # a worker states the reason when it starts
            return True
    return publish(replace(present, retracted=())) != publish(replace(result.of_snapshot, retracted=()))


def _configured(settings: Settings) -> BackedUp[SnapshotPosition] | None:
    """Return the configured snapshot; `None` if it lacks a partition, or cannot be read.

    Call it before the restore: when partitions are open again, workers may take the next snapshot.
    """
    try:
        found = read_snapshot(settings)
    except TallyError:
        return None
    return None if found is None or not found.last or None in found.last else found


def _print_passed_over(found: BackedUp[SnapshotPosition] | None, place: str, parts: Sequence[RestoredPart]) -> None:
    """Print which command replaces the configured snapshot, if it is of another moment than the restored one.

    Args:
        found: The configured snapshot before the restore; `None` for none.
        place: The place of the restored snapshot.
        parts: The restored partitions.
    """
    if found is None or found.place == place:
        return
    if [each.taken for each in found.last if each is not None] != [part.taken for part in parts]:
        console.print(
            f"The snapshot {found.place}, which the configuration names, was not restored. If it has entries that the "
            "server lacks, it is not replaced. To keep the restored counters, and replace it, run: tallystream "
            "snapshot --once --accept-loss",
            soft_wrap=True,
        )


def _moment(milliseconds: int) -> str:
    return format_moment(milliseconds / 1000)


def _taken(part: RestoredPart) -> str:
    """Return the time of the snapshot to the millisecond: see the page on the archive, "Count lost entries"."""
    return format_moment(part.taken / 1000, has_milliseconds=True)


def _end(part: RestoredPart) -> str:
    return "now" if part.survived else _moment(int(part.until.partition("-")[0]))
