"""The command `top`: prints a leaderboard."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

from cyclopts import Parameter

from tallystream.reading.totals import Totals
from tallystream_worker.cli.bounds import bounds_note, reach_notes
from tallystream_worker.cli.live_view import follow
from tallystream_worker.cli.options import AsJson, Every, LiveView, Where, whole
from tallystream_worker.cli.output import error_console, print_json, print_table
from tallystream_worker.cli.screens import TopScreen


def top(
    metric: str,
    *,
    n: Annotated[
        int | None,
        whole("number of subjects; default 10, or all if fewer are kept", 1, name=["-n", "--n"]),
    ] = None,
    window: Annotated[
        str | None, Parameter(help="a window such as day, or a range such as 7d; default all time")
    ] = None,
    live: LiveView = False,
    every: Every = 1.0,
    json: AsJson = False,
    where: Where = Where(),
) -> None:
    """Print the subjects with the largest totals of a metric.

    Parameters
    ----------
    metric
        a metric that is declared with top, such as view
    """
    settings = where.settings()
    with closing(Totals(settings.redis.url, namespace=settings.redis.namespace)) as totals:
        if live:
            follow(lambda: totals.top(metric, window, n=n), TopScreen(), every=every, json=json)
            return
        board = totals.top(metric, window, n=n)
    if json:
        print_json(board)
        return
    rows = [[place.subject, f"{place.value:,}"] for place in board.top]
    print_table(f"{metric}, {window or 'all time'}", ["subject", metric], rows)
    if note := bounds_note(board):
        error_console.print(note)
    for note in reach_notes(board.unreachable):
        error_console.print(note, soft_wrap=True)
    if board.error:
        error_console.print(f"values and order may be off by {board.error:,}")
