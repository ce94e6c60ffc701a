"""Commands that read leaderboards, and that take counts back."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Annotated

from cyclopts import Parameter

from tallystream.connection import connect
from tallystream.errors import ConfigurationError
from tallystream.event import MAX_SUBJECT_BYTES, check_text
from tallystream.query import as_of, lag_of
from tallystream.ranking import query_top
from tallystream.totals import Totals, declared
from tallystream_worker.cli.options import AsJson, Where
from tallystream_worker.cli.output import error_console, print_json, print_table
from tallystream_worker.corrections import reset as take_back


def top(
    metric: str,
    *,
    n: Annotated[int, Parameter(name=["-n", "--n"], help="how many")] = 10,
    window: Annotated[str | None, Parameter(help="a window such as day, or a range such as 7d; else all time")] = None,
    json: AsJson = False,
    where: Where = Where(),  # noqa: B008  # frozen
) -> None:
    """Print the subjects with the most.

    Example: `tallystream top view -n 10 --window 7d`

    Parameters
    ----------
    metric
        one with top declared, such as view
    """
    settings = where.settings()
    with closing(Totals(settings.redis.url, namespace=settings.redis.namespace)) as totals:
        meta = totals.meta
        if meta.rules is None:
            raise ConfigurationError("no metrics are published yet: start a worker (tallystream worker) once")
        ranking = totals.run(query_top(meta.layout, meta.rules, metric, n, window, now=time.time()))
    if json:
        print_json(
            {
                "metric": metric,
                "window": window or "all",
                "top": [{"subject": subject, "value": value} for subject, value in ranking.places],
                "as_of": as_of(ranking.positions),
                "lag": lag_of(ranking.positions),
                "error": ranking.error,
            }
        )
        return
    title = f"{metric}, {window or 'all time'}"
    rows = [[subject, f"{value:,}"] for subject, value in ranking.places]
    print_table(title, ["subject", metric], rows)
    if ranking.error:
        error_console.print(f"values and order may be off by {ranking.error:,}")


def reset(
    subject: str,
    metric: str | None = None,
    /,
    *,
    json: AsJson = False,
    where: Where = Where(),  # noqa: B008
) -> None:
    """Bring the counters of a subject to 0, by compensating events: the log keeps what happened.

    Example: `tallystream reset article:1 view`

    Parameters
    ----------
    subject
        whose counters
    metric
        one metric; else all
    """
    settings = where.settings()
    subject = check_text("subject", subject, MAX_SUBJECT_BYTES)
    with closing(Totals(settings.redis.url, namespace=settings.redis.namespace)) as totals:
        meta = totals.meta
    metrics = declared(meta)
    if metric is not None:
        assert meta.rules is not None  # noqa: S101  # declared() saw to it
        meta.rules.refuse_undeclared(metric)
        metrics = [metric]
    elif meta.rules is not None:
        metrics = [name for name in metrics if meta.rules.metric[name].exact]
    with closing(connect(settings.redis.url)) as client:
        taken = take_back(client, meta, subject, metrics)
    if json:
        print_json({"subject": subject, "taken_back": taken})
        return
    print_table(subject, ["metric", "taken back"], [[name, f"{value:,}"] for name, value in taken.items() if value])
