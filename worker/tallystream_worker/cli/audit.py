"""The command that proves the live counters, or names those that are wrong."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter
from prometheus_client import CollectorRegistry

from tallystream.connection import connect
from tallystream.errors import ConfigurationError
from tallystream.meta import stored
from tallystream_worker import logs
from tallystream_worker.cli.options import AsJson, FromArchive, Where
from tallystream_worker.cli.output import console, error_console, print_json, print_table
from tallystream_worker.duty import Duty
from tallystream_worker.generation.audit import Report
from tallystream_worker.generation.audit import audit as run
from tallystream_worker.metrics import AuditMetrics, serve_metrics
from tallystream_worker.signals import stop_on_signals, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tallystream_worker.generation.values import Difference
    from tallystream_worker.settings import Settings

SHOWN: Final = 50


def audit(
    *,
    archive: FromArchive = None,
    sample: Annotated[float, Parameter(help="share of the counters to compare, such as 0.01")] = 1.0,
    every: Annotated[float | None, Parameter(help="seconds; audit again and again, until Ctrl-C")] = None,
    metrics_port: Annotated[int | None, Parameter(help="serve /metrics on this loopback port, with --every")] = None,
    json: AsJson = False,
    where: Where = Where(),  # noqa: B008
) -> int:
    """Fold everything that was ever appended once more, and compare it with every live counter, while events arrive.

    Exit status 1 where a counter differs.
    """
    if not 0 < sample <= 1:
        raise ConfigurationError(f"--sample must be more than 0 and at most 1, not {sample}")
    settings = where.settings()
    source = settings.archive.url if archive is None else archive
    if every is None:
        return _once(settings, source, sample, json=json)
    registry = CollectorRegistry()
    metrics = AuditMetrics(registry)
    log = logs.configure()
    with stop_on_signals() as stop:
        if metrics_port is not None:
            serve_metrics(registry, settings.serve.host, metrics_port)

        def work() -> dict[str, object]:
            report = _run(settings, source, sample)
            metrics.note(len(report.differences), report.counters)
            first = ", ".join(each.counter for each in report.differences[:5])
            return {"counters": report.counters, "differences": len(report.differences), "first": first}

        duty = Duty("audit", every, work, log)
        duty.start()
        wait_for(stop)
        duty.stop(settings.worker.stop_timeout)
    return 0


def _once(settings: Settings, source: str, sample: float, *, json: bool) -> int:
    report = _run(settings, source, sample)
    if json:
        print_json(_summary(report))
    else:
        print_differences(report.differences)
        console.print(f"{len(report.differences):,} of {report.counters:,} counters differ")
        if report.expired:
            error_console.print(f"{report.expired:,} buckets are past their retention and were not compared")
    return 1 if report.differences else 0


def _run(settings: Settings, source: str, sample: float) -> Report:
    with closing(connect(settings.redis.url)) as client:
        meta = stored(client, settings.redis.namespace)
        if meta is None or meta.rules is None:
            raise ConfigurationError("nothing is counted here yet: start a worker (tallystream worker) once")
        with error_console.status("folding") as status:
            return run(
                client,
                meta,
                meta.rules,
                archive=source,
                sample=sample,
                show=lambda stream, entries, counters: status.update(
                    f"{stream}: {entries:,} entries folded, {counters:,} counters compared"
                ),
            )


def print_differences(differences: Iterable[Difference]) -> None:
    """Print a table of the first of them."""
    rows = list(differences)
    if rows:
        print_table(
            "differences" if len(rows) <= SHOWN else f"the first {SHOWN} differences",
            ["counter", "expected", "found", "difference"],
            [[row.counter, _shown(row.expected), _shown(row.found), _shown(row.difference)] for row in rows[:SHOWN]],
        )


def _shown(value: int | str | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else value


def _summary(report: Report) -> dict[str, object]:
    return {
        "counters": report.counters,
        "entries": report.entries,
        "expired": report.expired,
        "differences": [asdict(each) | {"difference": each.difference} for each in report.differences],
    }
