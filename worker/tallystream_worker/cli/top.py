"""The command that reads leaderboards."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Annotated, Final

from cyclopts import Parameter

from tallystream.reading.leaderboards import Leaderboard, query_top
from tallystream.reading.query import as_of, lag_of
from tallystream.reading.totals import Totals
from tallystream_worker.cli.live import follow
from tallystream_worker.cli.options import AsJson, Every, LiveView, Where
from tallystream_worker.cli.output import error_console, print_json, print_table
from tallystream_worker.cli.screens import TopScreen

_SHOWN: Final = 10


def top(
    metric: str,
    *,
    n: Annotated[
        int | None, Parameter(name=["-n", "--n"], help="how many; default 10, or all where less are kept")
    ] = None,
    window: Annotated[str | None, Parameter(help="a window such as day, or a range such as 7d; else all time")] = None,
    live: LiveView = False,
    every: Every = 1.0,
    json: AsJson = False,
    where: Where = Where(),  # noqa: B008  # frozen
) -> None:
    """Print the subjects with the most.

    Parameters
    ----------
    metric
        one with top declared, such as view
    """
    settings = where.settings()
    with closing(Totals(settings.redis.url, namespace=settings.redis.namespace)) as totals:

        def look() -> Leaderboard:
            deployment = totals.deployment
            rules = deployment.rules
            kept = rules.metric[metric].top if metric in rules.metric else 0
            wanted = min(_SHOWN, kept or _SHOWN) if n is None else n
            return totals.run(query_top(deployment.layout, rules, metric, wanted, window, now=time.time()))

        if live:
            follow(look, TopScreen(metric, window or "all time"), every=every, json=json)
            return
        ranking = look()
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
