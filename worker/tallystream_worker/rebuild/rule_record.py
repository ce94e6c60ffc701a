"""Writes the lost record of the changes of a topic's rules again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from tallystream.errors import KeyLost
from tallystream.storage.scripts import Script
from tallystream.wire.stream_id import parse_id
from tallystream_worker.process.publisher import publisher

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis

    from tallystream.deployment import Deployment

_RECORD: Final = Script("tallystream_worker.rebuild", "record_rules")
MOST: Final = 1000
"""Changes that are kept, as in `lib/rule_changes.lua`."""


def is_record_lost(client: redis.Redis, deployment: Deployment) -> bool:
    """Return whether rules are published (by `deployment`), and the server has no recorded change of the rules."""
    return bool(deployment.revision and not client.exists(deployment.layout.rule_changes))


def record_again(client: redis.Redis, deployment: Deployment, archived: Mapping[str, Mapping[str, str]]) -> bool:
    """Record again the changes of the rules that an archive has, then the live rules, if no change is recorded.

    Of the changes in the archive, only the last 1,000 are recorded. If the last of them is not that of the live rules,
    a change with the present time is recorded for these. It states that they were recorded again. The rules and their
    number do not change.

    Args:
        client: The server.
        deployment: The deployment, with published rules.
        archived: By ID, the fields of the changes that the archive has; empty without an archive. Left out are changes
            of another epoch, changes whose number is above every number that the server knows, and changes whose number
            belongs to other rules: the live ones, or those of a later change.

    Returns:
        Whether this call wrote the record. Otherwise a change is recorded already, or other rules are live now.

    Raises:
        DeploymentChanged: the data was deleted or replaced, or a restore has not finished.
        KeyLost: the hash of the live topic is lost.
        ConfigurationError: the hash of the live topic changed, and this release cannot read what is stored now.
        DamagedValue: a stored value has a form that tallystream never writes.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    layout = deployment.layout
    rules: bytes = client.execute_command("HGET", layout.meta, "rules") or b""
    newest = max(deployment.revision, int(client.hget(layout.meta, "newest-revision") or 0))
    of_number = {deployment.revision: rules.decode()}
    known: list[tuple[str, list[str]]] = []
    for name, fields in sorted(archived.items(), key=lambda change: parse_id(change[0]), reverse=True):
        number = int(fields["number"])
        if fields.get("epoch") != deployment.epoch or number > newest:  # after an undo, `revision` is lower
            continue
        if of_number.setdefault(number, fields["rules"]) == fields["rules"]:
            known.append((name, [part for field in fields.items() for part in field]))
    by = f"{publisher()}, which recorded them again: the record was lost"
    arguments = [deployment.revision, by, msgspec.json.encode(known[:MOST][::-1])]
    (status, *_) = _RECORD(client, [layout.meta, layout.rule_changes], arguments)
    if status == b"gone":
        deployment.reload(client)  # states why
        raise KeyLost(layout.meta)
    return bool(status == b"recorded")
