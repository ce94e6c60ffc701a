"""What is done to a log as a whole: begun, closed, opened again, made the one that holds, given up, removed."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace as changed

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, StreamError
from tallystream.rules.metrics import publish
from tallystream.storage.deployment_hash import fields_of, spread_fields
from tallystream.storage.keys import FIRST_TOPIC, Layout
from tallystream.storage.scripts import Script
from tallystream_worker.repartition.copy import HOLDER

if TYPE_CHECKING:
    import redis

    from tallystream.rules.metrics import Rules

_PROPOSE: Final = Script("tallystream_worker.repartition", "propose")
_CLOSE: Final = Script("tallystream_worker.repartition", "close")
_REOPEN: Final = Script("tallystream_worker.repartition", "reopen")
_ACTIVATE: Final = Script("tallystream_worker.repartition", "activate")
_GIVE_UP: Final = Script("tallystream_worker.repartition", "give_up")

_STEP: Final = 500
_OF_A_LATER_TOPIC: Final = re.compile(rb"l[0-9]+:")
_KEPT: Final = frozenset({b"seq", b"files"})
"""What stays of a removed log: how far each producer came, so that a spool that comes late is told by it."""


def propose(client: redis.Redis, deployment: Deployment, partitions: int) -> Layout:
    """Return where a new log lies, with so many partitions: the one that was begun, if one was.

    Raises:
        ConfigurationError: another one is being filled, an earlier one is still kept, or a generation is being built.
    """
    if deployment.building is not None:
        raise ConfigurationError(
            f"generation {deployment.building} of the counters is being built: let that rebuild come to its end, or "
            "give it up with: tallystream rebuild --drop"
        )
    answer, number = _PROPOSE(client, [deployment.layout.root], [partitions])
    if answer == b"other":
        raise ConfigurationError(
            f"the events are being moved to {number.decode()} partitions: go on with --partitions {number.decode()}, "
            "or give that up with: tallystream rebuild --drop"
        )
    if answer == b"kept":
        raise ConfigurationError(
            f"log {number.decode()}, from before the last move, is still kept: remove it with: "
            "tallystream rebuild --drop"
        )
    return Layout(partitions, deployment.layout.namespace, topic=int(number))


def begin(client: redis.Redis, deployment: Deployment, layout: Layout, rules: Rules) -> Deployment:
    """Store what a new log is like, where that is not stored yet, and by which rules it counts.

    What was retracted of the log before is not copied, so the new one's rules need not remember it.

    Raises:
        ConfigurationError: it was begun by other rules.
    """
    rules = changed(rules, retracted=())
    if not client.exists(layout.meta):
        fields = fields_of(layout, deployment.epoch) | {"rules": publish(rules)} | spread_fields(rules.spread)
        client.hset(layout.meta, items=[part for field in fields.items() for part in field])
    stored = client.execute_command("HGETALL", layout.meta)
    found = replace(Deployment.parse(stored, namespace=layout.namespace), layout=layout)
    if publish(found.rules) != publish(rules):
        raise ConfigurationError(
            "the move was begun by other rules: give it up with tallystream rebuild --drop, then begin anew"
        )
    return found


def close(client: redis.Redis, deployment: Deployment, layout: Layout) -> None:
    """Let nothing more be written to a log, or counted in it: what is in its streams then is all there is."""
    for keys in deployment.layout.keys:
        _CLOSE(client, [keys.sequences, keys.live], [layout.topic])


def reopen(client: redis.Redis, deployment: Deployment) -> None:
    """Let a log be written to again; nothing that was refused meanwhile is in it, nor in another."""
    for keys in deployment.layout.keys:
        _REOPEN(client, [keys.sequences, keys.live], [])


def activate(client: redis.Redis, deployment: Deployment, layout: Layout) -> bool:
    """Make a log the one that holds; tell whether it may be: nobody has given it up."""
    before = deployment.layout
    (answer,) = _ACTIVATE(client, [before.root], [layout.topic, before.topic, before.partitions])
    return bool(answer == b"active")


def give_up(client: redis.Redis, deployment: Deployment) -> int:
    """Give up the log that is being filled, if one is; return how many of its keys were removed.

    Raises:
        StreamError: it holds by now.
    """
    moving = deployment.moving
    if moving is None:
        return 0
    (answer,) = _GIVE_UP(client, [deployment.layout.root], [moving])
    if answer != b"given_up":
        raise StreamError(f"log {moving} holds by now: there is nothing to give up")
    reopen(client, deployment)
    for keys in deployment.layout.keys:
        client.hdel(keys.retention_holds, HOLDER)
    found = client.hget(Layout(namespace=deployment.layout.namespace, topic=moving).meta, "partitions")
    if found is None:
        return 0
    return _remove(client, Layout(int(found), deployment.layout.namespace, topic=moving), kept=frozenset())


def drop(client: redis.Redis, deployment: Deployment) -> int:
    """Remove the log from before the last move, if it is kept; return how many keys that were.

    How far producers came in it stays: who comes with what was sealed for it is told what it had taken.
    """
    layout = deployment.kept_layout
    if layout is None:
        return 0
    removed = _remove(client, layout, kept=_KEPT)
    client.hdel(layout.root, "kept")
    return removed


def _remove(client: redis.Redis, layout: Layout, kept: frozenset[bytes]) -> int:
    removed = 0
    for keys in layout.keys:
        prefix = keys.prefix.encode()
        pattern = keys.prefix.translate({ord(c): f"\\{c}" for c in "*?[]\\"}) + "*"
        page: list[bytes] = []
        for name in client.scan_iter(match=pattern, count=1000):
            below = name.removeprefix(prefix)
            if below in kept or (layout.topic == FIRST_TOPIC and _OF_A_LATER_TOPIC.match(below)):
                continue
            page.append(name)
            if len(page) == _STEP:
                removed += client.unlink(*page)
                page = []
        if page:
            removed += client.unlink(*page)
    return removed


def without_retracted(rules: Rules) -> bytes:
    """Return rules as they are published, but for what was retracted: what two logs must agree on."""
    return publish(changed(rules, retracted=()))
