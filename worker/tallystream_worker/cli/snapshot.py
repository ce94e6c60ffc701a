"""The commands that copy the counters into a database, bring them back, and try that out."""

from __future__ import annotations

import datetime as dt
import time
from contextlib import closing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError
from tallystream.storage.keys import FIRST_LOG
from tallystream_worker.cli.options import AsJson, FromArchive, Where
from tallystream_worker.cli.output import console, error_console, print_json, print_table
from tallystream_worker.process import logs
from tallystream_worker.process.services import running
from tallystream_worker.process.signals import stop_on_signals, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tallystream_worker.counting.entry import Entry
    from tallystream_worker.settings.settings import Settings
    from tallystream_worker.snapshot.database import Database
    from tallystream_worker.snapshot.restore import RestoredPart

Place = Annotated[str | None, Parameter(help="SQLite file or database URL; default [snapshot] url")]


def snapshot(
    url: Place = None,
    /,
    *,
    once: Annotated[
        bool, Parameter(negative="", show_default=False, help="take one, and end instead of going on")
    ] = False,
    whole: Annotated[
        bool, Parameter(negative="", show_default=False, help="read everything, not only what changed")
    ] = False,
    every: Annotated[float | None, Parameter(help="seconds between snapshots; default 60")] = None,
    json: AsJson = False,
    where: Where = Where(),  # noqa: B008  # frozen
) -> None:
    """Copy the counters into a database, again and again until SIGTERM or Ctrl-C."""
    from tallystream_worker.snapshot.service import snapshot_service  # noqa: PLC0415
    from tallystream_worker.snapshot.snapshotter import Snapshotter  # noqa: PLC0415

    settings = where.settings()
    settings = replace(settings, snapshot=replace(settings.snapshot, url=_place(settings, url)))
    settings = replace(settings, snapshot=replace(settings.snapshot, every=every or settings.snapshot.every))
    with closing(connect(settings.redis.url)) as client:
        deployment = Deployment.create_or_load(client, settings.redis.expected, settings.redis.namespace)
        if once:
            with closing(_database(settings, None)) as database:
                began = time.monotonic()
                done = Snapshotter(client, database, deployment).run_once(whole=whole)
                seconds = time.monotonic() - began
            if json:
                print_json({**asdict(done), "seconds": round(seconds, 3)})
            else:
                console.print(f"wrote {done.rows:,} rows in {seconds:.1f} s")
            return
    with (
        stop_on_signals() as stop,
        running(snapshot_service(settings, deployment, logs.configure()), settings.worker.stop_timeout),
    ):
        wait_for(stop)


def restore(
    url: Place = None,
    /,
    *,
    archive: FromArchive = None,
    force: Annotated[
        bool, Parameter(negative="", show_default=False, help="replace the counters that are there")
    ] = False,
    json: AsJson = False,
    where: Where = Where(),  # noqa: B008
) -> None:
    """Bring the counters of a snapshot back into an empty server, and count what came after it."""
    from tallystream_worker.snapshot.restore import restore as bring_back  # noqa: PLC0415

    settings = where.settings()

    def tell(part: RestoredPart) -> None:
        if not json:
            error_console.print(f"{part.stream}: {part.rows:,} rows, {part.replayed:,} entries behind them")

    began = time.monotonic()
    with closing(connect(settings.redis.url)) as client, closing(_database(settings, url, is_there=True)) as database:
        parts = bring_back(client, database, _archived(settings, archive, database), force=force, progress=tell)
    seconds = time.monotonic() - began
    if json:
        print_json({"partitions": [asdict(part) for part in parts], "seconds": round(seconds, 3)})
        return
    print_table(
        f"restored in {seconds:.1f} s",
        ["stream", "snapshot of", "rows", "entries since", "complete up to", "events missing"],
        [
            [part.stream, _moment(part.taken), f"{part.rows:,}", f"{part.replayed:,}", _end(part), f"{part.missing:,}"]
            for part in parts
        ],
    )
    if lost := sum(part.missing for part in parts):
        console.print(f"{lost:,} events had been appended, were not counted yet, and are in no log: counted as trimmed")
    if not all(part.survived for part in parts):
        console.print(
            "What was appended after the entries named is lost, unless a producer still holds it: "
            "neither the stream nor the archive has it",
            soft_wrap=True,
        )


def drill(
    url: Place = None,
    /,
    *,
    archive: FromArchive = None,
    json: AsJson = False,
    where: Where = Where(),  # noqa: B008
) -> int:
    """Restore into a throwaway server and compare with the live counters; exit status 1 on any difference."""
    from tallystream_worker.snapshot.drill import drill as try_out  # noqa: PLC0415

    settings = where.settings()
    began = time.monotonic()
    with closing(connect(settings.redis.url)) as client, closing(_database(settings, url, is_there=True)) as database:
        deployment = Deployment.create_or_load(client, settings.redis.expected, settings.redis.namespace)
        verdict = try_out(client, database, deployment, _archived(settings, archive, database))
    seconds = time.monotonic() - began
    if json:
        print_json({**asdict(verdict), "seconds": round(seconds, 3)})
    elif verdict.differing:
        print_table(
            f"{verdict.differing:,} of {verdict.compared:,} values DIFFER",
            ["value", "live", "restored"],
            [
                [" ".join((each.table, *each.key)), each.live or "-", each.restored or "-"]
                for each in verdict.differences
            ],
        )
    else:
        console.print(f"0 of {verdict.compared:,} values differ; snapshot and log brought all back in {seconds:.1f} s")
    return 1 if verdict.differing else 0


def _database(settings: Settings, url: str | None, *, is_there: bool = False) -> Database:
    from tallystream_worker.snapshot.database import Database  # noqa: PLC0415  # SQLAlchemy takes its time

    return Database(_place(settings, url), settings.redis.namespace, is_there=is_there)


def _place(settings: Settings, url: str | None) -> str:
    if not (chosen := url or settings.snapshot.url):
        raise ConfigurationError("no place for snapshots: name a file or database URL, or set [snapshot] url")
    return chosen


def _archived(
    settings: Settings, url: str | None, database: Database
) -> Callable[[int, str, str | None], Iterable[Entry]] | None:
    """Return what reads the archive of the log that a snapshot is of, where there is one."""
    if not (chosen := url or settings.archive.url):
        return None
    from tallystream_worker.archive.entries import entries  # noqa: PLC0415  # pyarrow is an extra
    from tallystream_worker.archive.store import Store  # noqa: PLC0415

    log = int(database.facts().get("log", FIRST_LOG))
    store: Any = Store(chosen, settings.redis.namespace, log)
    return lambda partition, after, before: entries(store, partition, after, before)


def _moment(milliseconds: int) -> str:
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC).isoformat(" ", "seconds")


def _end(part: RestoredPart) -> str:
    return "now" if part.survived else _moment(int(part.until.partition("-")[0]))
