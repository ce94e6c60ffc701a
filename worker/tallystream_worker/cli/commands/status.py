"""The command `status`: prints the lag of each partition, and whether the ledger balances."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from tallystream.reading.clocks import ClockStep, query_clock_step
from tallystream.reading.ledger import OUTCOMES, LedgerSummary
from tallystream.reading.totals import Totals
from tallystream_worker.cli.bounds import reach_notes
from tallystream_worker.cli.later_backup import find_losses
from tallystream_worker.cli.live_view import follow
from tallystream_worker.cli.lost_data import ensure_data
from tallystream_worker.cli.obstacles import query_obstacles
from tallystream_worker.cli.options import AsJson, Every, LiveView, Where
from tallystream_worker.cli.output import console, error_console, print_json, print_table
from tallystream_worker.cli.screens import StatusScreen
from tallystream_worker.cli.unfinished import unfinished
from tallystream_worker.maintenance.hot_subjects import HotSubject, advice, query_hot_subjects
from tallystream_worker.process.moments import format_moment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream.deployment import Deployment


class Status(LedgerSummary, frozen=True, kw_only=True):
    """The JSON output of `status`: the ledger summary, and what else the command prints, such as hot subjects."""

    hottest: dict[str, HotSubject]
    """By stream, the subject with the most events of late, hot or not; a stream is absent if this is not known."""

    building: int | None
    """Number of the generation that a rebuild is building, if one is."""

    moving: int | None
    """Number of the topic that a repartition is filling, if one is."""

    kept_topic: int | None
    """Number of the topic that is kept from before the last repartition, if one is."""

    clock_step: ClockStep | None
    """The last step of a server's clock that a worker noticed, if there was one."""

    lost: list[str]
    """Texts about entries that the server has lost, and a backup has, as the command prints them."""

    obstacles: list[str]
    """Texts about partitions whose stream or consumer group is missing, and what mends this."""


def status(
    *,
    live: LiveView = False,
    every: Every = 1.0,
    json: AsJson = False,
    where: Where = Where(),
) -> int:
    """Print partitions, lag, pending and dead entries, and whether the ledger balances.

    Also print hot subjects, steps of the clock, unfinished rebuilds and repartitions, missing streams and consumer
    groups, and entries that only a backup has; none of these with --live, which reads again every `every` seconds (0.1
    to 86,400): see `live_view.follow`. With --json, print a line of JSON; with --live too, one for each reading.

    The exit status is 0 even if the ledger does not balance. It is 1 if no deployment is stored on the server, or if no
    rules are and a configured backup has data of before. Without --live, it is also 1 if a stream, or a consumer group
    that has counted, is lost, and if the configured snapshot or archive has later entries than a stream. Any other loss
    that a backup shows is only printed, because producers may have sent the entries again.
    """
    settings = where.settings()
    with closing(Totals(settings.redis.url, namespace=settings.redis.namespace)) as totals:
        ledger = totals.ledger()
        ensure_data(settings, totals.deployment)
        if live:
            follow(totals.ledger, StatusScreen(), every=every, json=json)
            return 0
        hottest, deployment = totals.run(query_hot_subjects(totals.deployment.layout)), totals.deployment
        step = totals.run(query_clock_step(deployment.layout))
        obstacles = totals.run(query_obstacles(deployment.layout))
        losses = find_losses(settings, totals)
    has_lost = any(obstacle.is_loss for obstacle in obstacles)
    exit_status = int(has_lost or any(loss.is_certain for loss in losses))
    if json:
        fields = msgspec.structs.asdict(ledger)
        print_json(
            Status(
                **fields,
                hottest=hottest,
                building=deployment.building,
                moving=deployment.moving,
                kept_topic=deployment.kept,
                clock_step=step,
                lost=[loss.text for loss in losses],
                obstacles=[obstacle.text for obstacle in obstacles],
            )
        )
        return exit_status
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
    for note in reach_notes(ledger.unreachable):
        console.print(note, soft_wrap=True, markup=False)
    for stream, hot in hottest.items():
        if hot.is_hot:
            what = f"{hot.metric} of {hot.subject} is {hot.share:.0%} of the events of {stream}"
            console.print(f"hot: {what}: {advice(hot, deployment.declared)}", soft_wrap=True, markup=False)
    for line in (*_clocks(ledger, step), *_unfinished(deployment)):
        console.print(line, soft_wrap=True, markup=False)
    # The equation of the ledger: each appended event has exactly one of these outcomes, or waits.
    became = " + ".join(f"{ledger.ledger[name]:,} {name}" for name in OUTCOMES)
    waiting = f"and {'an unknown number of' if ledger.lag is None else f'{ledger.lag:,}'} entries not counted yet"
    console.print(f"events: {ledger.ledger['appended']:,} appended = {became}, {waiting}", soft_wrap=True)
    _print_balance(ledger, has_lost=has_lost)
    for obstacle in obstacles:
        error_console.print(obstacle.text, style="bold red", soft_wrap=True)
    for loss in losses:
        error_console.print(loss.text, style="bold red", soft_wrap=True)
    return exit_status


def _print_balance(ledger: LedgerSummary, *, has_lost: bool) -> None:
    """Print whether the ledger balances, or why it is not known; `has_lost`: a stream or a consumer group is lost."""
    if ledger.unreachable:
        error_console.print("ledger: open, because partitions cannot be read", style="bold red")
    elif has_lost:
        error_console.print("ledger: open, because a stream or a consumer group is lost", style="bold red")
    elif ledger.lag is None:
        error_console.print("ledger: open, because it is not known how many entries are not counted yet")
    elif ledger.unaccounted is None:
        error_console.print(f"ledger: open, {ledger.lag:,} entries are not counted yet")
    elif ledger.unaccounted == 0:
        error_console.print("ledger: balances, every appended event is accounted for", style="green")
    else:
        error_console.print(f"ledger: {ledger.unaccounted:,} events are UNACCOUNTED for", style="bold red")


def _clocks(ledger: LedgerSummary, step: ClockStep | None) -> Iterator[str]:
    """Yield one line for the last step of a server's clock, and one for streams whose IDs are ahead of the clock."""
    if step is not None:
        where = "ahead" if step.seconds > 0 else "back"
        yield f"clock: the server's clock was set {where} by {abs(step.seconds):,.1f} s at {format_moment(step.at)}"
    ahead = [partition.ids_ahead_seconds for partition in ledger.partitions if partition.ids_ahead_seconds > 0]
    if ahead:
        yield (
            f"clock: stream IDs are up to {max(ahead):,.1f} s ahead of the server's clock (streams: {len(ahead):,}). "
            "Until the clock reaches them, the lateness of plain XADD entries is measured from their ID"
        )


def _unfinished(deployment: Deployment) -> Iterator[str]:
    """Yield one line for each of `unfinished`, and one for a topic that a repartition has kept."""
    yield from unfinished(deployment)
    if deployment.kept is not None:
        yield f"repartition: the previous topic {deployment.kept} is kept: tallystream rebuild --drop removes it"


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} s"
