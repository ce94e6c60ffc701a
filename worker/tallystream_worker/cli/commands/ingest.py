"""The command `ingest`: emits the events of files, each once."""

from __future__ import annotations

import os
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from tallystream.errors import EventError
from tallystream.reading.query import Query
from tallystream.reading.totals import Totals
from tallystream.wire.position import parse_position, position_commands
from tallystream.wire.stream_id import parse_id
from tallystream_worker.cli.options import MAX_PROCESSES, AsJson, Where, flag, whole
from tallystream_worker.cli.output import error_console, print_json
from tallystream_worker.cli.progress import IngestBar
from tallystream_worker.ingest import Field, Format, Mapping, open_source
from tallystream_worker.ingest.formats.registry import format_of
from tallystream_worker.ingest.job import jobs_of, size_of
from tallystream_worker.ingest.pipe import emit_piped
from tallystream_worker.ingest.pool import IngestRun
from tallystream_worker.ingest.progress import IngestProgress
from tallystream_worker.process.signals import stop_on_signals

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

    from tallystream_worker.settings.settings import RedisSettings

_COUNTED_POLL: Final = 0.02

_LOST_POLL: Final = 1.0
"""Seconds between two checks that the server still has the events that are waited for."""


def ingest(
    *files: Annotated[Path, Parameter(allow_leading_hyphen=True)],  # "-" is standard input
    format: Annotated[
        Format | None, Parameter(help="combined (access log), ndjson, csv or parquet; default: by the name of the file")
    ] = None,
    metric: Annotated[str, Parameter(help="metric of the lines that do not name one")] = "view",
    subject: Annotated[Field, Parameter(help="field of an access-log line to use as the subject")] = "path",
    actor: Annotated[Field | None, Parameter(help="field of an access-log line to use as the actor")] = "host",
    source: Annotated[
        str,
        Parameter(
            help="another name for the origin of the files: files that were counted before are counted again under it"
        ),
    ] = "",
    processes: Annotated[
        int | None, whole("processes that read files; default: one less than the cores", 1, MAX_PROCESSES)
    ] = None,
    wait: Annotated[bool, flag("return only when all events are counted")] = False,
    json: AsJson = False,
    where: Where = Where(),
) -> int:
    """Emit the events of files, each row once.

    If the command is run again, after a kill or after rows were appended, it emits only the missing rows. A file is
    recognized by its content: its name and its compression do not matter. Lines that are not events are skipped, and do
    not change the exit status; the first 10 and the number of all are reported. Piped input cannot be recognized, so it
    is counted each time. The exit status is 130 if the command was stopped.

    Parameters
    ----------
    files
        the files to read; - is standard input
    """
    settings = where.settings()
    if not files:
        raise EventError("files", "name at least one file, or - for standard input")
    mapping = Mapping(metric=metric, subject=subject, actor=actor)
    names = [os.fspath(file) for file in files]
    formats = [format or format_of(name) for name in names]
    if ("-", "parquet") in zip(names, formats, strict=True):
        raise EventError("files", "Parquet cannot be read from standard input: write it to a file, and name the file")
    # Open every file before anything is emitted: a misspelt name must not leave half of the files counted.
    jobs = [
        job
        for name, of in zip(names, formats, strict=True)
        if name != "-"
        for job in jobs_of(name, of, mapping, source)
    ]
    with closing(Totals(settings.redis.url, namespace=settings.redis.namespace)) as totals:
        rules, durability = totals.deployment.declared, totals.deployment.durability
    if rules is not None and "combined" in formats:
        rules.refuse_undeclared(metric)
    emitted = IngestProgress()
    with stop_on_signals() as stop, IngestBar(size_of(jobs)) as bar:
        run = IngestRun(jobs, settings.redis, processes or max(1, (os.cpu_count() or 2) - 1), stop, bar)
        if jobs:
            run.run()
        if "-" in names and not stop.is_set():
            with open_source("-") as piped:
                emitted = emit_piped(
                    piped, format or "combined", mapping, settings.redis, bar, wait=wait, durability=durability
                )
        while not (stopped := stop.is_set()):
            if wait:
                _wait_until_counted(settings.redis, run.total.last_ids, stop, run.lost)
            if not run.run_lost():
                break
    total = run.total
    total.add(emitted)
    if json:
        found = {"events": total.events, "known": total.known, "bad_lines": total.bad, "examples": total.examples}
        print_json(found | {"complete": not stopped})
    else:
        _report(total, counted=wait, stopped=stopped)
    return 130 if stopped else 0


def _report(total: IngestProgress, *, counted: bool, stopped: bool) -> None:
    for row in total.examples:
        error_console.print(f"{row['file']}:{row['line'] or '?'}: {row['reason']}", markup=False, highlight=False)
    if total.bad > len(total.examples):
        error_console.print(f"... and {total.bad - len(total.examples):,} more lines that are not events")
    known = f", {total.known:,} already appended before" if total.known else ""
    verb = "counted" if counted and not stopped else "appended"
    error_console.print(f"{total.events:,} events {verb}{known}, {total.bad:,} bad lines", highlight=False)
    if stopped:
        error_console.print("stopped; run the same command again to continue from here")


def _wait_until_counted(
    store: RedisSettings,
    last_ids: dict[tuple[int, int], str],
    stop: Event,
    lost: Callable[[], object] = lambda: False,
) -> None:
    """Wait, without a limit, until entries are counted; return early if `stop` is set, or if `lost` returns true.

    Entries of a topic that is not the live one are not waited for: they were counted before the next became live.

    Args:
        store: The server and namespace.
        last_ids: By topic and partition, the stream ID of the last of the entries.
        stop: Ends the wait.
        lost: Called about once a second while entries are not counted; returns something true if entries are lost.

    Raises:
        Exception: the errors of `lost` and of reads, such as `redis.RedisError`.
    """
    checked_at = time.monotonic()
    with closing(Totals(store.url, namespace=store.namespace)) as totals:
        for (topic, partition), last_id in last_ids.items():
            while not stop.is_set():
                layout = totals.deployment.layout  # read each time: a rebuild may switch generations
                if layout.topic != topic:
                    break  # a topic counts the entries of the earlier one before it becomes live
                keys = layout.keys[partition]
                query = Query(position_commands(keys), partial(parse_position, group_name=keys.group))
                if parse_id(totals.run(query).as_of) >= parse_id(last_id):
                    break
                if time.monotonic() - checked_at > _LOST_POLL:
                    if lost():
                        return  # the workers may never count past an ID that the server has lost
                    checked_at = time.monotonic()
                stop.wait(_COUNTED_POLL)
