"""The command that shows whether the ledger balances."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from tallystream.reading.ledger import OUTCOMES, LedgerSummary
from tallystream.reading.totals import Totals
from tallystream_worker.cli.live_view import follow
from tallystream_worker.cli.options import AsJson, Every, LiveView, Where
from tallystream_worker.cli.output import console, error_console, print_json, print_table
from tallystream_worker.cli.screens import StatusScreen
from tallystream_worker.maintenance.hot_subjects import HotSubject, advice, query_hot_subjects

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream.deployment import Deployment


class Status(LedgerSummary, frozen=True):
    """The ledger, each stream's hot subject, and what a rebuild or a repartition has left to do."""

    hottest: dict[str, HotSubject]
    building: int | None
    moving: int | None
    kept_log: int | None


def status(
    *,
    live: LiveView = False,
    every: Every = 1.0,
    json: AsJson = False,
    where: Where = Where(),
) -> None:
    """Print partitions, lag, pending and dead entries, and whether the ledger balances."""
    settings = where.settings()
    with closing(Totals(settings.redis.url, namespace=settings.redis.namespace)) as totals:
        if live:
            follow(totals.ledger, StatusScreen(), every=every, json=json)
            return
        ledger = totals.ledger()
        hottest, deployment = totals.run(query_hot_subjects(totals.deployment.layout)), totals.deployment
    if json:
        fields = msgspec.structs.asdict(ledger)
        print_json(
            Status(
                **fields,
                hottest=hottest,
                building=deployment.building,
                moving=deployment.moving,
                kept_log=deployment.kept,
            )
        )
        return
    print_table(
        "partitions",
        ["stream", "lag", "pending", "oldest pending", "dead entries"],
        [
            [
                partition.stream,
                _count(partition.lag),
                _count(partition.pending),
                _seconds(partition.oldest_pending_seconds),
                _count(partition.dead),
            ]
            for partition in ledger.partitions
        ],
    )
    for stream, hot in hottest.items():
        if hot.is_hot:
            what = f"{hot.metric} of {hot.subject} is {hot.share:.0%} of the events of {stream}"
            console.print(f"hot: {what}: {advice(hot, deployment.declared)}", soft_wrap=True, markup=False)
    for line in _unfinished(deployment):
        console.print(line, soft_wrap=True, markup=False)
    # The conservation equation: what came in became exactly one of these, or waits.
    became = " + ".join(f"{ledger.ledger[name]:,} {name}" for name in OUTCOMES)
    waiting = f"and {_count(ledger.lag)} entries that wait"
    console.print(f"events: {ledger.ledger['appended']:,} appended = {became}, {waiting}", soft_wrap=True)
    if ledger.unaccounted is None:
        error_console.print(f"ledger: open, {_count(ledger.lag)} entries wait to be counted")
    elif ledger.unaccounted == 0:
        error_console.print("ledger: balances, every appended event is accounted for", style="green")
    else:
        error_console.print(f"ledger: {ledger.unaccounted:,} events are UNACCOUNTED for", style="bold red")


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
