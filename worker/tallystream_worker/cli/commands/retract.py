"""The command `retract`: rebuilds the counters without the events that match."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import Annotated, Final

from cyclopts import Parameter

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import EventError
from tallystream.rules.retraction import Retraction
from tallystream.wire.stream_id import parse_id
from tallystream.wire.window import MINUTE
from tallystream_worker.cli.generation import build, finish_switch
from tallystream_worker.cli.moments import parse_moment
from tallystream_worker.cli.options import AcceptLoss, AsJson, FromArchive, Where, flag
from tallystream_worker.cli.output import console, error_console, print_json, print_table
from tallystream_worker.rebuild.retract import (
    Effect,
    effect,
    ends,
    ensure_retractable,
    is_repetition,
    propose_without,
    unfinished,
)
from tallystream_worker.rebuild.turn import take_turn

_SHOWN: Final = 20

_LATEST: Final = 253_402_300_799_999
"""The last millisecond that a date can have."""


def retract(  # noqa: PLR0913  # each is an option of the command
    *,
    actor: Annotated[str | None, Parameter(help="events of this actor, such as a bot")] = None,
    subject: Annotated[str | None, Parameter(help="events counted for this subject")] = None,
    metric: Annotated[str | None, Parameter(help="events of this metric")] = None,
    id: Annotated[str | None, Parameter(help="the event with this id")] = None,
    from_: Annotated[
        str | None, Parameter(name="--from", help="events from this minute on: 2026-11-01T12:00Z or seconds since 1970")
    ] = None,
    to: Annotated[str | None, Parameter(help="events before this minute")] = None,
    dry_run: Annotated[bool, flag("show the events that match, change nothing")] = False,
    archive: FromArchive = None,
    accept_loss: AcceptLoss = False,
    json: AsJson = False,
    where: Where = Where(),
) -> None:
    """Take back the events that match all given options (at least one of them), as if they had never happened.

    History is counted again by the live rules, without these events, into a new generation, which then becomes live.
    The previous generation is kept until `tallystream rebuild --drop`, and `rebuild --undo` goes back to it. While an
    earlier one is kept, the command is refused, unless it repeats the last retraction and finds no later event. This is
    no erasure: the events stay in the streams and the archive. Events that are appended after the command has begun are
    counted, even if they match; the answer states up to which moment events were taken back. If no event matches,
    nothing is changed. But without --dry-run, the command first completes an earlier switch that was interrupted, or
    that a failover has undone in some partitions.
    """
    settings = where.settings()
    source = settings.archive.url if archive is None else archive
    with closing(connect(settings.redis.url)) as client:
        deployment = Deployment.load(client, settings.redis.namespace)
        if not dry_run:
            deployment = finish_switch(settings, deployment, source)
        retraction = Retraction(
            ends(client, deployment), metric, subject, actor, id, _minute("from", from_), _minute("to", to)
        )
        continued = unfinished(deployment, retraction)
        retraction = continued or retraction
        if not dry_run and continued is None and not is_repetition(deployment, retraction):
            ensure_retractable(client, deployment, retraction)
        with error_console.status("reading the entries"):
            found = effect(client, deployment, retraction, source)
        generation = turn = None
        if found.total and not dry_run:
            turn = take_turn(client, deployment)
            generation = propose_without(client, deployment.reload(client), retraction)
        if not json:
            _show(found)  # after a refusal
        if generation is not None:
            build(settings, deployment.reload(client), generation, source, accept_loss=accept_loss, turn=turn)
    if json:
        print_json(
            {
                "events": found.total,
                "counters": [
                    {"metric": metric, "subject": subject, "events": events, "amount": found.amounts[metric, subject]}
                    for (metric, subject), events in found.events.most_common()
                ],
                "generation": generation,
                "until": retraction.until,
            }
        )
    elif dry_run:
        console.print("nothing was changed: run it again without --dry-run")
    elif generation is not None:
        console.print(
            f"taken back up to {_last_moment(retraction)}; generation {generation} is live. The previous one, with "
            "these events, is kept: tallystream rebuild --undo goes back to it, --drop removes it. Events that were "
            "appended later count, even if they match: to take these back too, run tallystream rebuild --drop, then "
            "this command again"
        )


def _last_moment(retraction: Retraction) -> str:
    """Return when the last entry that a retraction applies to was appended, such as `2026-01-31 23:59:59.123 UTC`."""
    newest, _ = max(parse_id(last) for last in retraction.until.values())
    seconds, milliseconds = divmod(min(newest, _LATEST), 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{milliseconds:03} UTC"


def _show(found: Effect) -> None:
    counters = found.events.most_common()
    if not counters:
        console.print("no stored event matches")
        return
    rows = [
        (f"{metric} {subject}", f"{events:,}", f"{found.amounts[metric, subject]:+,}")
        for (metric, subject), events in counters[:_SHOWN]
    ]
    print_table(f"{found.total:,} events of {len(counters):,} counters", ("counter", "events", "amount"), rows)
    if len(counters) > _SHOWN:
        console.print(f"... and {len(counters) - _SHOWN:,} more (--json has all)")


def _minute(option: str, text: str | None) -> int | None:
    """Return a moment as milliseconds since 1970; `None` if the option was not given.

    Args:
        option: The name of the option without `--`.
        text: The value of the option; see `parse_moment`.

    Raises:
        EventError: the moment is not a whole minute.
        ConfigurationError: the text is not a moment.
    """
    if text is None:
        return None
    seconds = parse_moment(f"--{option}", text)
    if seconds % MINUTE:
        raise EventError(option, "must be a whole minute: plain events are kept by the minute")
    return int(seconds) * 1000
