"""The command `get`: prints the counters of one subject."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tallystream.errors import EventError
from tallystream.reading.freshness import RangeFigure
from tallystream.reading.series import MAX_POINTS
from tallystream.reading.totals import Totals
from tallystream_worker.cli.bounds import bounds_note, reach_notes
from tallystream_worker.cli.options import AsJson, Where, whole
from tallystream_worker.cli.output import error_console, print_json, print_table

if TYPE_CHECKING:
    from tallystream.reading.counters import MissingCounter, SubjectTotals
    from tallystream.reading.series import RollingSum, Series


def get(
    subject: str,
    metric: str | None = None,
    /,
    *,
    window: Annotated[
        str | None, Parameter(help="print the series of this window (needs METRIC): hour, day, ...")
    ] = None,
    last: Annotated[int, whole("number of buckets in the series", 1, MAX_POINTS)] = 24,
    over: Annotated[
        str | None, Parameter(help="print the sum over a range that ends now (needs METRIC), such as 7d")
    ] = None,
    after: Annotated[str | None, Parameter(help="wait until this stream ID is counted")] = None,
    json: AsJson = False,
    where: Where = Where(),
) -> None:
    """Print the counters of a subject, or for one metric its series of buckets, or its sum over a range.

    If --window and --over are given, --over is ignored.

    Parameters
    ----------
    subject
        the subject, such as article:1
    metric
        the metric; default all metrics
    """
    settings = where.settings()
    if metric is None and (window is not None or over is not None):
        raise EventError("metric", "must be named: --window and --over read a single metric")
    found: SubjectTotals | Series | RollingSum
    durability = settings.worker.read_durability
    with closing(Totals(settings.redis.url, namespace=settings.redis.namespace, durability=durability)) as totals:
        if metric is not None and window is not None:
            found = totals.series(subject, metric, window, last, after=after)
            title, columns = f"{subject} {metric}", [window, metric]
            rows = [[point.bucket, "missing" if point.value is None else f"{point.value:,}"] for point in found.series]
        elif metric is not None and over is not None:
            found = totals.sum(subject, metric, over, after=after)
            title, columns, rows = f"{subject} {metric}", ["last", metric], [[over, f"{found.value:,}"]]
        else:
            found = totals.of(subject, None if metric is None else [metric], after=after)
            title, columns = subject, ["metric", "total"]
            rows = [[name, f"{value:,}"] for name, value in found.counters.items()]
            rows += [[each.metric, _at_least(each)] for each in found.missing]
            rows += [[name, f"{value:.2%}"] for name, value in found.ratios.items()]
    if json:
        print_json(found)
        return
    print_table(title, columns, rows)
    if isinstance(found, RangeFigure) and (note := bounds_note(found)):
        error_console.print(note)
    for note in reach_notes(found.unreachable):
        error_console.print(note, soft_wrap=True)
    if found.lag != 0 and not found.unreachable:
        error_console.print(
            f"{found.lag if found.lag is not None else 'an unknown number of'} entries are not counted yet"
        )


def _at_least(missing: MissingCounter) -> str:
    return "unknown" if missing.at_least is None else f"at least {missing.at_least:,}"
