"""The command that reads the counters of a subject."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Annotated, Any

from cyclopts import Parameter

from tallystream.errors import EventError
from tallystream.reading.actor_rules import ratios
from tallystream.reading.series import query_rolling, query_series
from tallystream.reading.totals import Totals, declared
from tallystream_worker.cli.options import AsJson, Where
from tallystream_worker.cli.output import error_console, print_json, print_table


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
        metrics = [metric] if metric is not None else declared(totals.deployment)
        if metric is not None and totals.deployment.declared is not None:
            totals.deployment.declared.refuse_undeclared(metric)
        reading = totals.read(((subject, name) for name in metrics), after=after)
        counters = {name: value for (_, name), value in reading.values.items()}
        derived = ratios(totals.deployment.rules, counters) if metric is None else {}
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


def _get_windows(
    totals: Totals, subject: str, metric: str | None, window: str | None, last: int, over: str | None, *, as_json: bool
) -> None:
    deployment = totals.deployment
    document: dict[str, Any]
    if metric is None or deployment.declared is None:
        raise EventError("metric", "name one: --window and --over read a single metric")
    if window is not None:
        series = totals.run(
            query_series(deployment.layout, deployment.rules, subject, metric, window, last, time.time())
        )
        if as_json:
            points = [{"bucket": point.label, "start": point.start, "value": point.value} for point in series.points]
            document = {"subject": subject, "metric": metric, "window": window, "series": points}
            print_json(document | {"as_of": series.position.as_of, "lag": series.position.lag})
            return
        print_table(f"{subject} {metric}", [window, metric], [[p.label, f"{p.value:,}"] for p in series.points])
        return
    rolling = totals.run(query_rolling(deployment.layout, deployment.rules, subject, metric, over or "", time.time()))
    if as_json:
        document = {"subject": subject, "metric": metric, "over": over, "value": rolling.value}
        document |= {"start": rolling.start, "end": rolling.end, "buckets": rolling.buckets}
        print_json(document | {"as_of": rolling.position.as_of, "lag": rolling.position.lag})
        return
    print_table(f"{subject} {metric}", ["last", metric], [[over or "", f"{rolling.value:,}"]])
