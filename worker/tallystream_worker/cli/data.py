"""Commands that write events or read counts."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from tallystream.errors import EventError
from tallystream.ledger import query_ledger
from tallystream.producer import Producer
from tallystream.series import query_rolling, query_series
from tallystream.standing import ratios
from tallystream.totals import Totals, declared
from tallystream_worker.cli.options import AsJson, Where
from tallystream_worker.cli.output import error_console, print_json, print_table
from tallystream_worker.ingest import PARSERS, BadLine, Field, Format, Mapping, Source, open_source

_SHOWN_BAD_LINES = 10


def emit(
    metric: str,
    subject: str,
    *,
    amount: int = 1,
    actor: str | None = None,
    at: float | None = None,
    id: str | None = None,  # the event's own word
    wait: Annotated[bool, Parameter(negative="", help="return only when it is counted")] = False,
    timeout: Annotated[float, Parameter(help="seconds to wait at most")] = 10.0,
    where: Where = Where(),  # noqa: B008  # frozen
) -> None:
    """Emit one event.

    Example: `tallystream emit view article:1 --wait`

    Parameters
    ----------
    metric
        what is counted, such as view
    subject
        what it is counted for, such as article:1
    amount
        how much to add, a whole number
    actor
        who did it
    at
        when it happened, in seconds since 1970
    id
        the event's own name, for metrics that count each once
    """
    settings = where.settings()
    with closing(Totals(settings.redis.url, namespace=settings.redis.namespace)) as totals:
        rules = totals.meta.rules  # also: an unreachable server is an error now, not after the time limit
    if rules is not None:
        rules.refuse_undeclared(metric)
    with Producer(settings.redis.url, namespace=settings.redis.namespace) as producer:
        producer.emit(metric, subject, amount, actor=actor, at=at, id=id)
        producer.flush(timeout, wait="counted" if wait else "appended")


def ingest(
    *files: Path,
    format: Annotated[Format, Parameter(help="combined (access log), ndjson or csv; gzip is recognised")] = "combined",
    metric: Annotated[str, Parameter(help="metric of events whose line names none")] = "view",
    subject: Annotated[Field, Parameter(help="part of an access-log line that is counted for")] = "path",
    actor: Annotated[Field | None, Parameter(help="part of an access-log line that says who")] = "host",
    wait: Annotated[bool, Parameter(negative="", help="return only when everything is counted")] = False,
    json: AsJson = False,
    where: Where = Where(),  # noqa: B008
) -> int:
    """Emit the events of files; lines that are no events are reported and skipped.

    Example: `tallystream ingest access.log.gz --format combined --wait`

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


def get(
    subject: str,
    metric: str | None = None,
    /,
    *,
    window: Annotated[str | None, Parameter(help="the series of this window (needs METRIC): hour, day, ...")] = None,
    last: Annotated[int, Parameter(help="buckets of the series")] = 24,
    over: Annotated[str | None, Parameter(help="the sum over a range that ends now (needs METRIC), such as 7d")] = None,
    after: Annotated[str | None, Parameter(help="wait until this stream ID is counted")] = None,
    json: AsJson = False,
    where: Where = Where(),  # noqa: B008
) -> None:
    """Print the counters of a subject, or of one metric its series or its sum over a range.

    Example: `tallystream get article:1`, or `tallystream get article:1 view --window hour --last 24`

    Parameters
    ----------
    subject
        what was counted for, such as article:1
    metric
        one metric; else all
    """
    settings = where.settings()
    with closing(Totals(settings.redis.url, namespace=settings.redis.namespace)) as totals:
        if window is not None or over is not None:
            _get_windows(totals, subject, metric, window, last, over, as_json=json)
            return
        metrics = [metric] if metric is not None else declared(totals.meta)
        if metric is not None and totals.meta.rules is not None:
            totals.meta.rules.refuse_undeclared(metric)
        reading = totals.read(((subject, name) for name in metrics), after=after)
        counters = {name: value for (_, name), value in reading.values.items()}
        derived = ratios(totals.meta.rules, counters) if metric is None and totals.meta.rules is not None else {}
    if json:
        print_json(
            {
                "subject": subject,
                "counters": counters,
                "ratios": derived,
                "as_of": reading.as_of,
                "lag": reading.lag,
                "error": reading.error(),
            }
        )
        return
    rows = [[name, f"{value:,}"] for name, value in counters.items()]
    rows += [[name, f"{value:.2%}"] for name, value in derived.items()]
    print_table(subject, ["metric", "total"], rows)
    if reading.lag != 0:
        error_console.print(
            f"{reading.lag if reading.lag is not None else 'an unknown number of'} entries are not counted yet"
        )


def status(
    *,
    json: AsJson = False,
    where: Where = Where(),  # noqa: B008
) -> None:
    """Print partitions, lag, pending and dead entries, and whether the books balance.

    Example: `tallystream status --json`
    """
    settings = where.settings()
    with closing(Totals(settings.redis.url, namespace=settings.redis.namespace)) as totals:
        books = totals.run(query_ledger(totals.meta.layout))
    if json:
        print_json(books.summary())
        return
    summary = books.summary()
    print_table(
        "partitions",
        ["stream", "lag", "pending", "oldest pending", "dead entries"],
        [
            [
                row["stream"],
                _count(row["lag"]),
                _count(row["pending"]),
                _seconds(row["oldest_pending_seconds"]),
                _count(row["dead"]),
            ]
            for row in summary["partitions"]
        ],
    )
    print_table("events", list(summary["ledger"]), [[f"{value:,}" for value in summary["ledger"].values()]])
    unaccounted = summary["unaccounted"]
    if unaccounted is None:
        error_console.print(f"books: open, {_count(summary['lag'])} entries wait to be counted")
    elif unaccounted == 0:
        error_console.print("books: balance, every appended event is accounted for", style="green")
    else:
        error_console.print(f"books: {unaccounted:,} events are UNACCOUNTED for", style="bold red")


def _get_windows(
    totals: Totals, subject: str, metric: str | None, window: str | None, last: int, over: str | None, *, as_json: bool
) -> None:
    meta = totals.meta
    document: dict[str, Any]
    if metric is None or meta.rules is None:
        raise EventError("metric", "name one: --window and --over read a single metric")
    if window is not None:
        series = totals.run(query_series(meta.layout, meta.rules, subject, metric, window, last, time.time()))
        if as_json:
            points = [{"bucket": point.label, "start": point.start, "value": point.value} for point in series.points]
            document = {"subject": subject, "metric": metric, "window": window, "series": points}
            print_json(document | {"as_of": series.position.as_of, "lag": series.position.lag})
            return
        print_table(f"{subject} {metric}", [window, metric], [[p.label, f"{p.value:,}"] for p in series.points])
        return
    rolling = totals.run(query_rolling(meta.layout, meta.rules, subject, metric, over or "", time.time()))
    if as_json:
        document = {"subject": subject, "metric": metric, "over": over, "value": rolling.value}
        document |= {"start": rolling.start, "end": rolling.end, "buckets": rolling.buckets}
        print_json(document | {"as_of": rolling.position.as_of, "lag": rolling.position.lag})
        return
    print_table(f"{subject} {metric}", ["last", metric], [[over or "", f"{rolling.value:,}"]])


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} s"


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
