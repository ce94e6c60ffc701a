"""Restores a deployment from a snapshot: loads its counters, then counts the entries after it.

Each partition gets the rows of the snapshot; then its stream, built from the archive and the entries that are left,
with the consumer group at the snapshot's position; then the ordinary loop counts the pending and unread entries.
Until all partitions are restored, `tally:meta` has the field `restoring` instead of a description. So every process
that reads it gets an error with this reason; the scripts that count refuse because no generation is live. Producers
that run append as before. If the restore is interrupted, this stays so until a repeated restore, which begins from the
start.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, DeploymentChanged, StreamError
from tallystream.reading.deployment_cache import DEPLOYMENT_AGE
from tallystream.rules.metrics import publish
from tallystream.rules.metrics import read as read_rules
from tallystream.storage.deployment_hash import RESTORING, fields_of, live_topic, number, spread_fields
from tallystream.storage.keys import BEGUN, CLOSED, FIRST, FIRST_TOPIC, LAYOUT, Layout
from tallystream.storage.scripts import Script
from tallystream_worker.process import failpoints
from tallystream_worker.snapshot.database import Database, SnapshotError
from tallystream_worker.snapshot.partition_restore import PartitionRestore, RestoredPart
from tallystream_worker.snapshot.retractions import RETRACTED, decode_retractions, encode_retractions
from tallystream_worker.snapshot.rule_records import NUMBERS, restore_rule_records
from tallystream_worker.snapshot.schema import FORMAT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import redis

    from tallystream.rules.metrics import Rules
    from tallystream.rules.retraction import Retraction
    from tallystream_worker.counting.entry import Entry


_PAUSE: Final = DEPLOYMENT_AGE + 0.2
"""Seconds after which every reader has noticed that a restore has begun."""

_NEWEST: Final = "newest-log"
"""The field of the root hash with the highest number of a topic; it stays during a restore."""

_BEGIN: Final = Script("tallystream_worker.snapshot", "begin_restore")
_END: Final = Script("tallystream_worker.snapshot", "end_restore")


@dataclass(frozen=True)
class Restored:
    """The result of a restore.

    Attributes:
        parts: The result of each partition.
        lacking: The retractions that were made after the snapshot: until a rebuild, the counters have their events.
    """

    parts: list[RestoredPart]
    lacking: list[Retraction]


def restore(
    client: redis.Redis,
    database: Database,
    archived: Callable[[int, str, str | None], Iterable[Entry]] | None = None,
    *,
    force: bool = False,
    retracted: Sequence[Retraction] = (),
    progress: Callable[[RestoredPart], None] = lambda _: None,
) -> Restored:
    """Restore the counters of a snapshot, and count the entries after it; return what was restored.

    The restored rules have every retraction that the snapshot, the server or the caller knows. If the counters of the
    snapshot are older than one of them, they have its events until a rebuild.

    Args:
        client: The server to restore to. It must have no keys of the deployment, except those of an interrupted
            restore, unless `force` is set.
        database: The database of the snapshot.
        archived: Called with a partition, an ID and another ID or `None`; yields the archived entries after the first
            ID and before the second, or (`None`) to the end. `None` for no archive.
        force: Whether to replace the counters that exist on the server; the entries left in its streams are counted.
        retracted: Retractions that another source, such as the archive, knows.
        progress: Called with the result of each partition after it is restored.

    Raises:
        SnapshotError: there is no complete snapshot, it has another format, or the database cannot be used.
        StreamError: the server is not empty, and `force` is not set.
    """
    facts = database.facts()
    if not facts:
        hint = f"; there is one of the namespace {database.owner!r}" if database.owner else ""
        raise SnapshotError(f"{database.place} contains no complete snapshot{hint}")
    if facts["format"] != FORMAT or facts["layout"] != str(LAYOUT):
        raise SnapshotError(
            f"{database.place} has snapshot format {facts['format']} and key layout {facts['layout']}, but this "
            f"release reads {FORMAT} and {LAYOUT}: restore it with the release that took it"
        )
    layout = Layout(int(facts["partitions"]), facts["namespace"], topic=int(facts.get("log", FIRST_TOPIC)))
    root: dict[bytes, bytes] = client.execute_command("HGETALL", layout.root)
    if not force and RESTORING.encode() not in root and (there := _found(client, layout)):
        raise StreamError(
            f"the server is not empty: {there} exists. Restore to an empty server; or, to replace its counters by the "
            "snapshot and count the entries left in its streams, use --force"
        )
    rules = read_rules(facts["rules"].encode())
    noted = [*retracted, *decode_retractions(root.get(RESTORING.encode(), b"[]"))]
    lacking = _lacking(client, facts, rules, noted)
    rules = replace(rules, retracted=(*rules.retracted, *lacking))
    earlier = {
        int(topic): int(count) for topic, _, count in (e.partition(":") for e in facts.get("earlier", "").split())
    }
    kept: dict[str, Any] = {
        _NEWEST: _close_others(client, layout, root, earlier),
        **_numbers(client, layout, root, facts),
    }
    if b"kept" in root and (RESTORING.encode() in root or live_topic(root, layout.namespace).topic == layout.topic):
        kept["kept"] = root[b"kept"]  # workers still copy what is appended to the topic before
    begun = {RESTORING: encode_retractions(rules.retracted), **kept}
    _BEGIN(client, [layout.root], [part for pair in begun.items() for part in pair])
    if layout.topic != FIRST_TOPIC:
        client.delete(layout.meta)
    partitions = [PartitionRestore(client, database, layout, n, rules) for n in range(layout.partitions)]
    for each in partitions:
        each.close()
    if root:
        time.sleep(_PAUSE)  # until then, readers may use the deployment that they have read
    parts = []
    for each in partitions:
        part = each.run(archived)
        parts.append(part)
        progress(part)
        failpoints.reach("after-partition")
    restore_rule_records(client, layout, facts)
    for each in partitions:
        each.open()
    fields: dict[Any, Any] = fields_of(layout, facts["epoch"])
    newest, revision = (int(kept[name]) for name in NUMBERS)
    if lacking or revision > int(facts["revision"]):
        revision += 1  # different rules never have the same number
    newest = max(newest, *(each.newest for each in partitions))
    described = fields | {"rules": publish(rules), "revision": revision, NUMBERS[0]: newest, NUMBERS[1]: revision}
    described |= spread_fields(facts["spread"].split())
    if layout.topic != FIRST_TOPIC:
        client.hset(layout.meta, mapping=described)
        described = fields | {"log": layout.topic, **{f"partitions@{log}": count for log, count in earlier.items()}}
    _END(client, [layout.root], [RESTORING, *(part for pair in described.items() for part in pair)])
    return Restored(parts, lacking)


def _lacking(
    client: redis.Redis, facts: Mapping[str, str], rules: Rules, retracted: Sequence[Retraction]
) -> list[Retraction]:
    """Return the known retractions that the counters of a snapshot do not have."""
    known = [*decode_retractions(facts[RETRACTED]), *retracted]
    # This release may be unable to read what the server has; or a restore was interrupted, and `retracted` is complete.
    with suppress(ConfigurationError, DeploymentChanged):
        found = Deployment.find(client, facts["namespace"])
        if found.epoch == facts["epoch"] and found.declared is not None:
            known = [*found.declared.retracted]  # the live rules are the latest: a retraction may have been undone
    lacking: list[Retraction] = []
    for each in known:
        if each not in rules.retracted and each not in lacking:
            lacking.append(each)
    return lacking


def _close_others(client: redis.Redis, layout: Layout, root: Mapping[bytes, bytes], earlier: Mapping[int, int]) -> int:
    """Close every other topic that would count events, and return the highest number of a topic.

    These are the live topic of the server, and the first topic, which counts unless it is closed (see
    `lib/generations.lua`). A process that still knows such a topic is refused, and reads the deployment again. No later
    topic gets a number that was used before.

    Args:
        client: The server to restore to.
        layout: The layout of the topic to restore.
        root: The fields of the server's root hash; after an interrupted restore, it has the returned number.
        earlier: By number of each earlier topic, its partitions.
    """
    live = live_topic(root, layout.namespace).topic
    present = client.hget(Layout(namespace=layout.namespace, topic=live).meta, "partitions")
    counting = {topic: partitions for topic, partitions in earlier.items() if topic == FIRST_TOPIC}
    if present is not None:
        counting[live] = int(present)
    for topic in counting.keys() - {layout.topic}:
        for keys in Layout(counting[topic], layout.namespace, topic=topic).keys:
            with client.pipeline(transaction=True) as pipeline:
                pipeline.hset(keys.sequences, mapping={BEGUN: 1, CLOSED: layout.topic})
                pipeline.set(keys.live, f"{FIRST} closed")
                pipeline.execute()
    return max(layout.topic, live, number(root, _NEWEST.encode()) or 0)


def _numbers(
    client: redis.Redis, layout: Layout, root: Mapping[bytes, bytes], facts: Mapping[str, str]
) -> dict[str, int]:
    """Return the highest numbers of a generation and of rules that the server or the snapshot knows: see `NUMBERS`."""
    found = []
    for name in NUMBERS:
        known = [facts.get(name) or 0, client.hget(layout.meta, name) or 0, root.get(name.encode()) or 0]
        found.append(max(map(int, known)))
    return dict(zip(NUMBERS, found, strict=True))


def _found(client: redis.Redis, layout: Layout) -> str | None:
    names = [layout.root, layout.meta]
    names += [name for keys in layout.keys for name in (keys.stream, keys.ledger, keys.sequences)]
    return next((name for name in names if client.exists(name)), None)
