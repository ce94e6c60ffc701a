"""The command `audit`: folds the events again and prints the live counters that differ from the result."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter
from prometheus_client import CollectorRegistry

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError
from tallystream.rules.changes import changes_of, changes_within
from tallystream.storage.rule_changes import changes_of_topic, counted_numbers, read_changes
from tallystream_worker.cli.differences import print_differences
from tallystream_worker.cli.moments import parse_moment
from tallystream_worker.cli.options import (
    DAY,
    AsJson,
    FromArchive,
    MetricsHost,
    MetricsPort,
    Where,
    flag,
    number,
    positive,
)
from tallystream_worker.cli.output import console, error_console, print_json
from tallystream_worker.process import logs
from tallystream_worker.process.listen_address import LOOPBACK
from tallystream_worker.process.moments import format_moment
from tallystream_worker.process.periodic import PeriodicService
from tallystream_worker.process.services import running
from tallystream_worker.process.signals import stop_on_signals, wait_for
from tallystream_worker.rebuild.audit import audit as run
from tallystream_worker.rebuild.baseline import opened
from tallystream_worker.rebuild.recount import recount_command
from tallystream_worker.rebuild.scope import Span
from tallystream_worker.runtime.metrics import AuditMetrics, serve_metrics
from tallystream_worker.snapshot.live_rules import followed_rules

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tallystream.rules.changes import RuleChange
    from tallystream_worker.rebuild.report import Report
    from tallystream_worker.settings.settings import Settings

_CHANGES: Final = 5
"""The most changes of the rules that are printed."""


def audit(  # noqa: PLR0913  # the options of the command
    *,
    archive: FromArchive = None,
    snapshot: Annotated[
        str | None,
        Parameter(help="begin with this snapshot; else [snapshot] url is used if older entries are nowhere else"),
    ] = None,
    from_: Annotated[
        str | None,
        Parameter(name="--from", help="only buckets that begin then or later: 2026-11-01, 2026-11-01T12:00Z, seconds"),
    ] = None,
    to: Annotated[str | None, Parameter(help="only buckets that end then or earlier")] = None,
    sample: Annotated[float, positive("share of the counters to compare, such as 0.01", 1)] = 1.0,
    present_rules: Annotated[
        bool, flag("count all events by the stored rules: the differences, without the ledger, are those of a rebuild")
    ] = False,
    every: Annotated[float | None, number("seconds; audit again and again, until Ctrl-C", 0.1, 366 * DAY)] = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = LOOPBACK,
    json: AsJson = False,
    where: Where = Where(),
) -> int:
    """Fold all events again, compare the result with every live counter, and print the differences.

    Each event is counted by the rules that counted it, so a change of the rules makes no difference. Counting continues
    meanwhile. If the streams were trimmed, the audit reads the older entries from the archive, or begins with a
    snapshot, or compares only the buckets that lie wholly within the entries that are left. Without --every, the exit
    status is 1 if a counter differs. If a counter differs, but it is not known by which rules its events were counted,
    it may be right: it is reported, and does not change the exit status. With --every, each audit is logged instead,
    until SIGTERM or Ctrl-C; --json has no effect then, and the exit status is 0.

    Examples:
        tallystream audit
        tallystream audit --snapshot tally.sqlite
        tallystream audit --from 2026-11-23 --to 2026-11-24
        tallystream audit --present-rules
    """
    if every is None and metrics_port is not None:
        raise ConfigurationError("give --metrics-port only with --every: a single audit ends before it could be read")
    wanted = _Wanted(
        where.settings(),
        archive,
        snapshot,
        Span(parse_moment("--from", from_), parse_moment("--to", to, float("inf"))),
        sample,
        present_rules=present_rules,
    )
    return _once(wanted, json=json) if every is None else _repeat(wanted, every, metrics_port, metrics_host)


@dataclass(frozen=True)
class _Wanted:
    settings: Settings
    archive: str | None
    snapshot: str | None
    span: Span
    sample: float
    present_rules: bool


def _repeat(wanted: _Wanted, every: float, metrics_port: int | None, metrics_host: str) -> int:
    registry = CollectorRegistry()
    metrics = AuditMetrics(registry)
    with stop_on_signals() as stop:
        if metrics_port is not None:
            serve_metrics(registry, metrics_host, metrics_port)

        def work() -> dict[str, object]:
            report, *_ = _run(wanted)
            metrics.note(len(report.differences), report.counters)
            return report.said()

        with running(PeriodicService("audit", every, work, logs.configure()), wanted.settings.worker.stop_timeout):
            wait_for(stop)
    return 0


def _once(wanted: _Wanted, *, json: bool) -> int:
    report, changes, remedy = _run(wanted)
    if json:
        print_json(_summary(report, changes, remedy))
    else:
        if report.differences and changes and wanted.present_rules:
            console.print(_warning(changes), soft_wrap=True)
        print_differences(report.differences)
        console.print(f"{len(report.differences):,} of {report.counters:,} counters differ")
        for line in _remarks(report):
            error_console.print(line, soft_wrap=True)
    return 1 if report.differences else 0


def _run(wanted: _Wanted) -> tuple[Report, list[RuleChange], str | None]:
    """Return the report of an audit, the recorded changes of the rules within the live generation, and the remedy.

    The remedy is the command that mends the differences, or what to do; `None` if `differences` of the report is empty.

    Errors of the audit, and of reading the deployment and its backups, are raised.
    """
    settings = wanted.settings
    with closing(connect(settings.redis.url)) as client:
        deployment = Deployment.load(client, settings.redis.namespace)
        with (
            opened(settings, wanted.archive, wanted.snapshot, log=deployment.layout.topic) as sources,
            error_console.status("folding") as status,
        ):
            report = run(
                client,
                deployment,
                deployment.rules,
                sources=sources,
                span=wanted.span,
                sample=wanted.sample,
                followed=(None if wanted.present_rules else followed_rules(client, deployment.layout, sources.changes)),
                show=lambda stream, entries, counters: status.update(
                    f"{stream}: {entries:,} entries folded, {counters:,} counters compared"
                ),
            )
            remedy = recount_command(client, deployment, sources) if report.differences else None
        recorded = changes_of(changes_of_topic(read_changes(client, deployment.layout)))
        changes = changes_within(recorded, counted_numbers(client, deployment.layout, deployment.revision))
    return report, changes, remedy


def _warning(changes: Sequence[RuleChange]) -> str:
    """Return a text: the differences of an audit by the present rules need not be faults, because rules have changed.

    It states the latest five changes, and names `tallystream rebuild`, which counts all events by the present rules.
    """
    said = "; ".join(
        f"{format_moment(change.at / 1000)}: {', '.join(change.differences)}" for change in changes[-_CHANGES:]
    )
    return (
        f"The rules have changed since these counters began ({said}). Events before a change were counted by the rules "
        "before it, and this audit counts all events by the present rules. So the differences of these metrics need "
        "not be faults. To count all events by the present rules, run: tallystream rebuild (with --archive URL if "
        "entries are gone from the streams)"
    )


def _remarks(report: Report) -> Iterator[str]:
    """Yield a line for each kind of thing that an audit did not prove; of gone entries, one for each stream.

    The kinds are: what is before a snapshot, what needs gone entries, what has expired, and counters that differ but
    whose rules are not known.
    """
    if taken := [scope.moment for scope in report.scopes if scope.base == "snapshot"]:
        yield (
            f"{len(taken):,} partition{'s were' if len(taken) > 1 else ' was'} audited from the snapshot of "
            f"{format_moment(min(taken))} on; the snapshot itself is taken as correct"
        )
    for scope in report.scopes:
        if scope.unproved:
            yield (
                f"{scope.stream}: the entries before {format_moment(scope.moment)} are gone; buckets that begin after "
                f"{format_moment(scope.since)} were compared, and {scope.unproved:,} keys were not "
                "(totals, permanent votes, older buckets, the ledger)"
            )
    if report.expired:
        yield (
            f"not compared: {report.expired:,} parts of buckets that are past their retention, were removed, or are "
            "left over from a change of the rules"
        )
    if report.uncertain:
        first = report.uncertain[0]
        yield (
            f"not certain: {len(report.uncertain):,} counters differ ({first.counter} is {first.found}, expected "
            f"{first.expected}), but it is not known by which rules their events were counted. To count all events by "
            "the present rules, run: tallystream rebuild"
        )


def _summary(report: Report, changes: Sequence[RuleChange], remedy: str | None) -> dict[str, object]:
    return {
        "counters": report.counters,
        "entries": report.entries,
        "expired": report.expired,
        "unproved": report.unproved,
        "rule_changes": [
            {"number": change.number, "at": format_moment(change.at / 1000), "differences": change.differences}
            for change in changes
        ],
        "remedy": remedy,
        "scopes": [asdict(scope) for scope in report.scopes],
        "uncertain": [asdict(each) | {"difference": each.difference} for each in report.uncertain],
        "differences": [asdict(each) | {"difference": each.difference} for each in report.differences],
    }
