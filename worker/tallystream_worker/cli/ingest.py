"""The command that emits the events of files."""

from __future__ import annotations

import os
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from tallystream.errors import EventError
from tallystream.reading.query import Query
from tallystream.reading.totals import Totals
from tallystream.wire.position import parse_position, position_commands
from tallystream.wire.stream_id import parse_id
from tallystream_worker.cli.options import AsJson, Where
from tallystream_worker.cli.output import error_console, print_json
from tallystream_worker.ingest import Field, Format, Mapping, open_source
from tallystream_worker.ingest.formats.parquet_rows import SEGMENT_ROWS, rows_of
from tallystream_worker.ingest.formats.registry import format_of
from tallystream_worker.ingest.job import SEGMENT, Job, jobs_of
from tallystream_worker.ingest.piped import run_piped
from tallystream_worker.ingest.pool import run_all
from tallystream_worker.ingest.progress import IngestProgress
from tallystream_worker.process.signals import stop_on_signals

if TYPE_CHECKING:
    from threading import Event
    from typing import Self

    from tallystream_worker.settings.settings import RedisSettings

_COUNTED_POLL: Final = 0.02


def ingest(  # each is an option of the command
    *files: Annotated[Path, Parameter(allow_leading_hyphen=True)],  # "-" is one
    format: Annotated[
        Format | None, Parameter(help="combined (access log), ndjson, csv or parquet; default by the file's name")
    ] = None,
    metric: Annotated[str, Parameter(help="metric of events whose line names none")] = "view",
    subject: Annotated[Field, Parameter(help="part of an access-log line that is counted for")] = "path",
    actor: Annotated[Field | None, Parameter(help="part of an access-log line that says who")] = "host",
    source: Annotated[str, Parameter(help="count files again that were counted before, as of another source")] = "",
    processes: Annotated[
        int | None, Parameter(help="processes that read; default one less than there are cores")
    ] = None,
    wait: Annotated[
        bool, Parameter(negative="", show_default=False, help="return only when everything is counted")
    ] = False,
    json: AsJson = False,
    where: Where = Where(),  # noqa: B008
) -> int:
    """Emit the events of files, each row once: run again, killed or appended to, only what is missing is counted.

    A file is known by its content, whatever its name, compressed or not. Lines that are no events are reported and
    skipped. What is piped in cannot be known again, and counts each time.

    Parameters
    ----------
    files
        what to read; - is standard input
    """
    settings = where.settings()
    if not files:
        raise EventError("files", "name at least one file, or - for standard input")
    mapping = Mapping(metric=metric, subject=subject, actor=actor)
    names = [os.fspath(file) for file in files]
    formats = [format or format_of(name) for name in names]
    # Looked at before anything is sent: a misspelt name must not leave half the files counted.
    jobs = [
        job
        for name, of in zip(names, formats, strict=True)
        if name != "-"
        for job in jobs_of(name, of, mapping, source)
    ]
    with closing(Totals(settings.redis.url, namespace=settings.redis.namespace)) as totals:
        rules = totals.deployment.declared
    if rules is not None and "combined" in formats:
        rules.refuse_undeclared(metric)
    total = IngestProgress()
    with stop_on_signals() as stop, _Display(_size(jobs)) as display:
        if jobs:
            crew = processes or max(1, (os.cpu_count() or 2) - 1)
            total = run_all(jobs, settings.redis, crew, stop, display)
        if "-" in names and not stop.is_set():
            with open_source("-") as piped:
                total.add(run_piped(piped, format or "combined", mapping, settings.redis, display, wait=wait))
        stopped = stop.is_set()
        if wait and not stopped:
            _wait_until_counted(settings.redis, total.last_ids, stop)
    if json:
        found = {"events": total.events, "known": total.known, "bad_lines": total.bad, "examples": total.examples}
        print_json(found | {"complete": not stopped})
    else:
        _say(total, counted=wait, stopped=stopped)
    return 130 if stopped else 0


def _say(total: IngestProgress, *, counted: bool, stopped: bool) -> None:
    for row in total.examples:
        error_console.print(f"{row['file']}:{row['line']}: {row['reason']}", markup=False, highlight=False)
    if total.bad > len(total.examples):
        error_console.print(f"... and {total.bad - len(total.examples):,} more lines that are no events")
    known = f", {total.known:,} known from before" if total.known else ""
    verb = "counted" if counted and not stopped else "appended"
    error_console.print(f"{total.events:,} events {verb}{known}, {total.bad:,} bad lines", highlight=False)
    if stopped:
        error_console.print("stopped; the same command goes on from here")


def _size(jobs: list[Job]) -> int | None:
    """Return what there is to read: bytes, and rows of Parquet; `None` where that cannot be known."""
    if not jobs:
        return None
    size = 0
    for job in jobs:
        if job.format == "parquet":
            size += min(SEGMENT_ROWS, rows_of(job.path) - job.first * SEGMENT_ROWS)
        else:
            left = Path(job.path).stat().st_size - job.first * SEGMENT
            size += left if job.segments is None else min(SEGMENT, left)
    return size


class _Display:
    """A bar with events, rate and remaining time, on a terminal; nothing elsewhere."""

    def __init__(self, size: int | None) -> None:
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[events]:,} events, {task.fields[rate]:,.0f}/s"),
            TimeRemainingColumn(),
            console=error_console,
            disable=not error_console.is_terminal,
        )
        self._size = size
        self._task = TaskID(0)
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        self._task = self._bar.add_task("reading", total=self._size, events=0, rate=0.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, progress: IngestProgress) -> bool:
        """Show how far it is; the run goes on."""
        seconds = max(time.monotonic() - self._began, 0.001)
        self._bar.update(
            self._task,
            completed=progress.read,
            events=progress.events,
            rate=progress.events / seconds,
            description=f"waiting: {progress.waiting_for}" if progress.waiting_for else "reading",
        )
        return True


def _wait_until_counted(store: RedisSettings, last_ids: dict[int, str], stop: Event) -> None:
    with closing(Totals(store.url, namespace=store.namespace)) as totals:
        for partition, last_id in last_ids.items():
            while not stop.is_set():
                keys = totals.deployment.layout.keys[partition]  # anew: a rebuild may switch to another generation
                query = Query(position_commands(keys), partial(parse_position, group_name=keys.group))
                if parse_id(totals.run(query).as_of) >= parse_id(last_id):
                    break
                stop.wait(_COUNTED_POLL)
