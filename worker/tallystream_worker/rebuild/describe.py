"""Stores a lost hash `tally:meta` again, with what other keys and the archive state."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from tallystream.client.replies import is_key_missing
from tallystream.errors import ConfigurationError
from tallystream.rules.metrics import read
from tallystream.storage.deployment_hash import fields_of, parse_live, spread_fields
from tallystream.storage.keys import FIRST, GROUP, MAX_PARTITIONS, Layout
from tallystream.storage.rule_changes import read_changes
from tallystream.storage.scripts import Script

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis

_INIT: Final = Script("tallystream.storage", "init_deployment")
_COUNTS: Final = re.compile(rf"{GROUP}(?:-([0-9]+))?")


def describe(client: redis.Redis, namespace: str, partitions: int, manifest: Mapping[str, Any] | None) -> bool:
    """Store the root hash of a deployment again if it does not exist; return whether this call stored it.

    The rules, the epoch and the number of partitions are those of the last recorded change of the rules. If no change
    is recorded any more, the epoch and the number are those of the archive, and the next worker that starts publishes
    its rules. Without an archive, the number is `partitions`, and the epoch is new. The live generation is the one that
    the partitions count.

    Args:
        client: The server.
        namespace: The first part of every key.
        partitions: The configured number of partitions; 0 if none is configured.
        manifest: The manifest of the archive; `None` if there is none.

    Raises:
        ConfigurationError: no key of a deployment is stored; or the number of partitions, the live topic or the live
            generation is not known. Nothing was changed.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    layout = Layout(namespace=namespace)
    if client.exists(layout.root):
        return False
    records = [{name.decode(): value for name, value in fields.items()} for _, fields in read_changes(client, layout)]
    latest = records[-1] if records else {}
    archived = manifest or {}
    has_keys = _has_keys(client, layout)
    if not records and not any(has_keys):
        raise ConfigurationError(f"nothing is stored under {namespace}: start a worker, which begins a deployment")
    if next(client.scan_iter(match=f"{layout.keys[0].prefix}l[0-9]*:meta", count=1000), None) is not None:
        raise ConfigurationError(
            f"{layout.root} was lost after a repartition, and only a snapshot has its content. Run: tallystream "
            "restore --force"
        )
    number = int(latest.get("partitions") or archived.get("partitions") or partitions)
    least = 1 + max((at for at, has in enumerate(has_keys) if has), default=0)
    if number < least:
        raise ConfigurationError(
            f"the number of partitions is lost with {layout.root}; it was at least {least}. Set [redis] partitions to "
            "the right number, then repeat the command"
        )
    epoch = latest["epoch"].decode() if "epoch" in latest else archived.get("epoch") or uuid.uuid4().hex
    fields = fields_of(Layout(number, namespace), epoch) | _generations(client, Layout(number, namespace), latest)
    for record in records:
        fields |= spread_fields(read(record["rules"]).spread)
    answer, *_ = _INIT(client, [layout.root], [part for field in fields.items() for part in field])
    return bool(answer == b"created")


def _has_keys(client: redis.Redis, layout: Layout) -> list[bool]:
    """Return, for each of the 1,024 possible partitions of the first topic, whether it has sequences or a ledger."""
    with client.pipeline(transaction=False) as pipeline:
        for keys in Layout(MAX_PARTITIONS, layout.namespace).keys:
            pipeline.exists(keys.sequences)
            pipeline.exists(keys.topic_ledger)
        replies: list[int] = pipeline.execute()
    return [bool(one or other) for one, other in zip(replies[::2], replies[1::2], strict=True)]


def _generations(client: redis.Redis, layout: Layout, latest: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the fields of the hash about generations and rules.

    They have the generations that are not live too, so that `rebuild --drop` can remove these.

    Raises:
        ConfigurationError: the partitions do not count the same generation.
    """
    values = [value for keys in layout.keys if (value := client.execute_command("GET", keys.live)) is not None]
    live = {parse_live(value)[0] for value in values} or {int(latest.get("generation", FIRST))}
    if len(live) > 1:
        raise ConfigurationError(
            f"{layout.root} was lost while a rebuild was switching, and only a snapshot has its content. Run: "
            "tallystream restore --force"
        )
    (generation,) = live
    fields: dict[str, Any] = {}
    numbers = [int(word) for value in values for word in value.split()[1:] if word.isdigit()]
    if "rules" in latest:
        revision = int(latest["number"])
        # A rebuild may have given the next number to rules that are not recorded yet.
        fields |= {"rules": latest["rules"], "revision": revision, "newest-revision": max([revision, *numbers]) + 1}
    others = _counted(client, layout) - {generation}
    if generation != FIRST or others:
        fields |= {"generation": generation, "newest": max(generation, *others, FIRST)}
    if "rules" in latest:
        for other in others:
            fields |= {f"rules@{other}": latest["rules"], f"revision@{other}": revision}
    return fields


def _counted(client: redis.Redis, layout: Layout) -> set[int]:
    """Return the numbers of the generations that have a consumer group in a stream."""
    found = set()
    for keys in layout.keys:
        try:
            groups: list[dict[str, Any]] = client.xinfo_groups(keys.stream)
        except ResponseError as error:
            if not is_key_missing(error):
                raise
            continue
        names = (_COUNTS.fullmatch(group["name"].decode()) for group in groups)
        found |= {int(name[1] or FIRST) for name in names if name}
    return found
