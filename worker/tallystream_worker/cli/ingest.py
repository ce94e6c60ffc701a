"""The command that emits the events of files."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from tallystream.errors import EventError
from tallystream.producer import Producer
from tallystream.totals import Totals
from tallystream_worker.cli.options import AsJson, Where
from tallystream_worker.cli.output import error_console, print_json
from tallystream_worker.ingest import PARSERS, BadLine, Field, Format, Mapping, Source, open_source

_SHOWN_BAD_LINES = 10


def ingest(
    *files: Annotated[Path, Parameter(allow_leading_hyphen=True)],  # "-" is one
    format: Annotated[Format, Parameter(help="combined (access log), ndjson or csv; gzip is recognised")] = "combined",
    metric: Annotated[str, Parameter(help="metric of events whose line names none")] = "view",
    subject: Annotated[Field, Parameter(help="part of an access-log line that is counted for")] = "path",
    actor: Annotated[Field | None, Parameter(help="part of an access-log line that says who")] = "host",
    wait: Annotated[
        bool, Parameter(negative="", show_default=False, help="return only when everything is counted")
    ] = False,
    json: AsJson = False,
    where: Where = Where(),  # noqa: B008
) -> int:
    """Emit the events of files; lines that are no events are reported and skipped.

    Parameters
    ----------
    files
        what to read; - is standard input
    """
    settings = where.settings()
    if not files:
        raise EventError("files", "name at least one file, or - for standard input")
    mapping = Mapping(metric=metric, subject=subject, actor=actor)
    emitted, bad = 0, 0
    reasons: list[dict[str, Any]] = []
    # Opened before anything is sent: a misspelt name must not leave half the files counted.
    sources = [open_source(file) for file in files]
    with closing(Totals(settings.redis.url, namespace=settings.redis.namespace)) as totals:
        rules = totals.meta.rules
    if rules is not None and format == "combined":
        rules.refuse_undeclared(metric)
    with (
        Producer(settings.redis.url, namespace=settings.redis.namespace) as producer,
        _progress() as progress,
    ):
        for source in sources:
            task = progress.add_task(source.name, total=source.total, events=0)
            with source:
                for outcome in PARSERS[format](source, mapping):
                    problem = None
                    if isinstance(outcome, BadLine):
                        problem = outcome.reason
                    else:
                        kind, of, amount, who, at, id_ = outcome.event
                        try:
                            producer.emit(kind, of, amount, actor=who, at=at, id=id_)
                            emitted += 1
                        except EventError as error:
                            problem = str(error)
                    if problem is not None:
                        bad += 1
                        if len(reasons) < _SHOWN_BAD_LINES:
                            reasons.append({"file": source.name, "line": outcome.number, "reason": problem})
                    if outcome.number % 1000 == 0:
                        _advance(progress, task, source, emitted)
                _advance(progress, task, source, emitted)
        producer.flush(wait="counted" if wait else "appended")
    if json:
        print_json({"events": emitted, "bad_lines": bad, "examples": reasons})
        return 0
    for row in reasons:
        error_console.print(f"{row['file']}:{row['line']}: {row['reason']}", markup=False, highlight=False)
    if bad > len(reasons):
        error_console.print(f"... and {bad - len(reasons):,} more lines that are no events")
    error_console.print(f"{emitted:,} events {'counted' if wait else 'appended'}, {bad:,} bad lines", highlight=False)
    return 0


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[events]:,} events"),
        TimeRemainingColumn(),
        console=error_console,
        disable=not error_console.is_terminal,
    )


def _advance(progress: Progress, task: Any, source: Source, emitted: int) -> None:
    progress.update(task, completed=source.bytes_read, events=emitted)
