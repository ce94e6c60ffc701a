"""The command `dead`: lists, retries and drops dead letters."""

from __future__ import annotations

import json as plain_json
import re
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Parameter
from rich.progress import track

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError
from tallystream.wire.stream_id import parse_id
from tallystream_worker.cli.lost_data import ensure_data
from tallystream_worker.cli.options import AsJson, Where, flag
from tallystream_worker.cli.output import console, error_console, print_json
from tallystream_worker.dead_letters import store
from tallystream_worker.dead_letters.retry import retry
from tallystream_worker.process.barrier import step

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from tallystream_worker.dead_letters.store import DeadLetter

_SHOWN = 100

_UNDECLARED: Final = re.compile(r"metric: ([^\s:]+) is not declared")
"""The beginning of the reason of an event whose metric is not declared."""


def dead(
    action: Literal["list", "show", "retry", "drop"] = "list",
    /,
    *ids: str,
    all: Annotated[bool, flag("all dead letters")] = False,
    reason: Annotated[str | None, Parameter(help="dead letters whose reason contains this text")] = None,
    json: AsJson = False,
    where: Where = Where(),
) -> int:
    """List or show the dead letters, which are entries that could not be counted; retry or drop them.

    A retry counts each event once, by the current rules and as of the time at which it was appended. Events that still
    cannot be counted are dead-lettered again. If a dead letter cannot be retried, for example because the ids that
    would show whether it is a copy are gone, the command fails, and does not retry those after it. Dropped events stay
    in the ledger as dead, and no rebuild counts them. The exit status of retry and drop is 1 if there was nothing to
    do, or if an event was dead-lettered again. If `ids` are given, --all and --reason are ignored; if --reason is
    given, --all has no effect. Retry and drop need one of the three. The list has the first 100; --json has all.

    Parameters
    ----------
    action
        list, show, retry or drop
    ids
        names of dead letters as `list` prints them: PARTITION/ID
    """
    settings = where.settings()
    with closing(connect(settings.redis.url)) as client:
        deployment = Deployment.find(client, settings.redis.namespace)
        ensure_data(settings, deployment)
        chosen = _chosen(client, deployment, ids, every=all or (action in {"list", "show"} and not ids), reason=reason)
        if action in {"list", "show"}:
            return _print(chosen, json=json, whole=action == "show")
        deployment.ensure_declared()
        found = list(chosen)  # read all before the first retry: an entry dead-lettered again must not be retried twice
        moving = track(found, action, console=error_console, transient=True, disable=len(found) < _SHOWN)
        with step(client, deployment, "the dead letters are handled"):
            done = (_retry if action == "retry" else _drop)(client, deployment, moving)
    if json:
        print_json(done)
    else:
        console.print(", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in done.items()))
    return 0 if done["entries"] and not done.get("dead_lettered_again") else 1


def _chosen(
    client: redis.Redis, deployment: Deployment, ids: tuple[str, ...], *, every: bool, reason: str | None
) -> Iterator[DeadLetter]:
    if not (ids or every or reason):
        raise ConfigurationError(
            "no dead letters named: give PARTITION/ID as `tallystream dead list` prints it, --reason TEXT or --all"
        )
    partitions = range(deployment.layout.partitions)
    for name in ids:
        partition, _, id_ = name.partition("/")
        try:
            parse_id(id_)
            number = int(partition)
        except ValueError:
            number = -1
        if number not in partitions:
            raise ConfigurationError(
                f"{name!r} is not the name of a dead letter: write PARTITION/ID, such as 0/1763900000000-0"
            )
        if letter := store.find(client, deployment.layout, number, id_):
            yield letter
        else:
            error_console.print(f"there is no dead letter {name}")
    if not ids:
        for number in partitions:
            for letter in store.letters(client, deployment.layout, number):
                if reason is None or reason in letter.reason:
                    yield letter


def _retry(client: redis.Redis, deployment: Deployment, chosen: Any) -> dict[str, int]:
    done = {"entries": 0, "events_counted": 0, "dead_lettered_again": 0}
    for letter in chosen:
        generation = deployment.layout.keys[letter.partition].generation
        rules, revision = deployment.numbered_rules_of(generation)
        if (became := retry(client, deployment.layout, rules, letter, revision)) is not None:
            done["entries"] += 1
            done["events_counted"] += became.counted
            done["dead_lettered_again"] += became.dead
    return done


def _drop(client: redis.Redis, deployment: Deployment, chosen: Any) -> dict[str, int]:
    done = {"entries": 0, "events_dropped": 0}
    for letter in chosen:
        entries, events = store.drop(client, deployment.layout.keys[letter.partition], [letter])
        done["entries"] += entries
        done["events_dropped"] += events
    return done


def _print(chosen: Iterator[DeadLetter], *, json: bool, whole: bool) -> int:
    rows = [_row(letter, whole=whole) for letter in chosen]
    if json:
        print_json(rows)
    elif whole:
        for row in rows:
            console.print(plain_json.dumps(row, indent=2, ensure_ascii=True), markup=False)
    elif not rows:
        console.print("there are no dead letters")
    else:
        for row in rows[:_SHOWN]:  # no table: a name that is cut to the width of a terminal cannot be given to a retry
            about = [row["since"], _number(row["events"], "event"), _number(row["attempts"], "attempt")]
            about += [f"metric {row['metric']}"] if row["metric"] else []
            console.print(f"{row['name']}  {', '.join(about)}", soft_wrap=True)
            console.print(f"    {row['reason']}", soft_wrap=True)
        if len(rows) > _SHOWN:
            error_console.print(f"and {len(rows) - _SHOWN:,} more; --json prints all")
    return 0


def _number(value: int, noun: str) -> str:
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def _metric(letter: DeadLetter) -> str:
    """Return the metric of a dead letter, also one that is not declared if the reason names it; `""` for none."""
    found = _UNDECLARED.match(letter.reason)
    return letter.metric or (found[1] if found else "")


def _row(letter: DeadLetter, *, whole: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": letter.name,
        "since": datetime.fromtimestamp(parse_id(letter.id)[0] / 1000, UTC).isoformat(timespec="seconds"),
        "source": letter.source,
        "events": letter.events,
        "attempts": letter.attempts,
        "metric": _metric(letter),
        "reason": ascii(letter.reason)[1:-1],  # escaped, because it may quote bytes of an event
    }
    if whole:
        row["fields"] = {ascii(name)[2:-1]: ascii(value)[2:-1] for name, value in letter.fields.items()}
    return row
