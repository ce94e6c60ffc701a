"""The command `rules`: prints the stored rules, or their changes."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.rules.changes import changes_of
from tallystream.storage.rule_changes import read_changes
from tallystream_worker.cli.options import AsJson, Where, flag
from tallystream_worker.cli.output import console, error_console, print_json
from tallystream_worker.process.moments import format_moment
from tallystream_worker.settings.toml import to_toml

if TYPE_CHECKING:
    import redis

    from tallystream.rules.changes import RuleChange

_STORED_AGAIN: Final = (
    "the same rules as before: they were stored again, for example because the server had lost a later change (older "
    "data was put back, or a replica that lagged was promoted)"
)


def rules(
    *,
    history: Annotated[bool, flag("print the changes of the rules instead, oldest first")] = False,
    json: AsJson = False,
    where: Where = Where(),
) -> int:
    """Print the rules that are stored in Redis, as the TOML of a configuration file.

    With --history, print the last 1,000 changes of the rules: the time by the server's clock, the process that
    published the rules, and the differences. With --history --json, `places` has two stream IDs for each stream:
    entries before `first` were counted by the rules before, entries after `last` by the new ones. Of the entries
    between the two, those that were counted before the change follow the rules before. A stream is missing if no entry
    was counted by these rules yet, or if they counted all its entries, as after a rebuild.

    If the record of the changes lacks the live rules, the server has lost it: this is printed, with what mends it, and
    the exit status is 1.
    """
    settings = where.settings()
    with closing(connect(settings.redis.url)) as client:
        deployment = Deployment.load(client, settings.redis.namespace)
        if history:
            changes = changes_of(read_changes(client, deployment.layout))
            if json:
                print_json({"changes": [_as_json(client, deployment, change) for change in changes]})
            for place, change in enumerate(changes if not json else ()):
                _print(change, is_first=place == 0)
            if deployment.revision <= max((change.number for change in changes), default=0):
                return 0
            name = deployment.layout.rule_changes
            text = f"{name}: the server has lost the record of the change {deployment.revision}, whose rules are live"
            mends = "tallystream verify names what mends it" if changes else "To write it again: tallystream reopen"
            error_console.print(f"{text}. {mends}", style="bold red", soft_wrap=True)
            return 1
    if json:
        print_json({"number": deployment.revision, "rules": msgspec.to_builtins(deployment.rules)})
        return 0
    console.print(to_toml(deployment.rules), end="", soft_wrap=True)
    if deployment.rules.retracted:
        console.print(f"# {len(deployment.rules.retracted)} retractions are stored too; they are no setting")
    return 0


def _print(change: RuleChange, *, is_first: bool) -> None:
    """Print a change; `is_first` is whether no earlier one is recorded."""
    console.print(
        f"{_time(change)}  rules {change.number}, generation {change.generation}, by {change.by}", soft_wrap=True
    )
    equal = "no earlier rules are recorded" if is_first else _STORED_AGAIN
    for difference in change.differences or [equal]:
        console.print(f"    {difference}", soft_wrap=True)


def _as_json(client: redis.Redis, deployment: Deployment, change: RuleChange) -> dict[str, Any]:
    places = {}
    for keys in deployment.layout.keys:
        place: bytes | None = client.execute_command("HGET", keys.adopted, change.number)
        if place is not None:
            first, last = place.decode().split()
            places[keys.stream] = {"first": first, "last": last}
    stated: dict[str, Any] = msgspec.to_builtins(change)
    return stated | {"at": _time(change), "places": places}


def _time(change: RuleChange) -> str:
    return format_moment(change.at / 1000)
