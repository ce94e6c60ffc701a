"""The command that shows whether the books balance."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING

from tallystream.reading.ledger import OUTCOMES, query_ledger
from tallystream.reading.totals import Totals
from tallystream_worker.cli.live import follow
from tallystream_worker.cli.options import AsJson, Every, LiveView, Where
from tallystream_worker.cli.output import console, error_console, print_json, print_table
from tallystream_worker.cli.screens import StatusScreen
from tallystream_worker.maintenance.hot_subjects import advice, query_hot_subjects

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream.deployment import Deployment


def status(
    *,
    live: LiveView = False,
    every: Every = 1.0,
    json: AsJson = False,
    where: Where = Where(),  # noqa: B008
) -> None:
    """Print partitions, lag, pending and dead entries, and whether the books balance."""
    settings = where.settings()
    with closing(Totals(settings.redis.url, namespace=settings.redis.namespace)) as totals:
        if live:
            follow(lambda: totals.run(query_ledger(totals.deployment.layout)), StatusScreen(), every=every, json=json)
            return
        books = totals.run(query_ledger(totals.deployment.layout))
        hottest, deployment = totals.run(query_hot_subjects(totals.deployment.layout)), totals.deployment
    if json:
        print_json(
            books.summary()
            | {"hottest": {stream: asdict(hot) for stream, hot in hottest.items()}}
            | {"building": deployment.building, "moving": deployment.moving, "kept_log": deployment.kept}
        )
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
    for stream, hot in hottest.items():
        if hot.is_hot:
            what = f"{hot.metric} of {hot.subject} is {hot.share:.0%} of the events of {stream}"
            console.print(f"hot: {what}: {advice(hot, deployment.declared)}", soft_wrap=True, markup=False)
    for line in _unfinished(deployment):
        console.print(line, soft_wrap=True, markup=False)
    book = summary["ledger"]
    # The conservation equation: what came in became exactly one of these, or waits.
    became = " + ".join(f"{book[name]:,} {name}" for name in OUTCOMES)
    waiting = f"and {_count(summary['lag'])} entries that wait"
    console.print(f"events: {book['appended']:,} appended = {became}, {waiting}", soft_wrap=True)
    unaccounted = summary["unaccounted"]
    if unaccounted is None:
        error_console.print(f"books: open, {_count(summary['lag'])} entries wait to be counted")
    elif unaccounted == 0:
        error_console.print("books: balance, every appended event is accounted for", style="green")
    else:
        error_console.print(f"books: {unaccounted:,} events are UNACCOUNTED for", style="bold red")


def _unfinished(deployment: Deployment) -> Iterator[str]:
    """Yield what a rebuild has left to do."""
    if deployment.building is not None:
        number = deployment.building
        yield f"rebuild: generation {number} is being built: run tallystream rebuild to go on, --drop to give up"
    if deployment.moving is not None:
        number = deployment.moving
        yield f"move: log {number} is being filled: run the same tallystream rebuild to go on, --drop to give up"
    if deployment.kept is not None:
        yield f"move: log {deployment.kept} is kept from before the last one: tallystream rebuild --drop removes it"


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} s"
