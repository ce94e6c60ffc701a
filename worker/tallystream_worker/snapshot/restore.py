"""Brings counters back: the snapshot's rows, then what the log holds behind them, counted as ever.

By partition: the rows; the log again, put together of the archive and of what is left of the stream, with the group
at the snapshot's position; then the ordinary loop counts what is pending and unread. `tally:meta` comes last: until
then workers and readers take the server for one that has lost its data, and wait.

It begins from the start when it is run again: everything it wrote is written anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tallystream.errors import StreamError
from tallystream.rules.metrics import read as read_rules
from tallystream.storage.deployment_hash import fields_of, spread_fields
from tallystream.storage.keys import FIRST_TOPIC, LAYOUT, Layout
from tallystream_worker.process import failpoints
from tallystream_worker.snapshot.database import Database, SnapshotError
from tallystream_worker.snapshot.partition_restore import MARKER, PartitionRestore, RestoredPart
from tallystream_worker.snapshot.schema import FORMAT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import redis

    from tallystream_worker.counting.entry import Entry


def restore(
    client: redis.Redis,
    database: Database,
    archived: Callable[[int, str, str | None], Iterable[Entry]] | None = None,
    *,
    force: bool = False,
    progress: Callable[[RestoredPart], None] = lambda _: None,
) -> list[RestoredPart]:
    """Bring the counters of a snapshot back, and count what came after it.

    Args:
        client: The server; nothing of ours may be on it, but what an interrupted restore left.
        database: Where the snapshot is.
        archived: What the archive holds of a partition behind an ID, in front of another.
        force: Replace what is there; what is left of the streams is counted.
        progress: Told of each partition that is back.

    Raises:
        SnapshotError: there is no complete snapshot, or it is of another format.
        StreamError: the server is not empty.
    """
    facts = database.facts()
    if not facts:
        hint = f"; there is one of the namespace {database.owner!r}" if database.owner else ""
        raise SnapshotError(f"{database.place} holds no complete snapshot{hint}")
    if facts["format"] != FORMAT or facts["layout"] != str(LAYOUT):
        raise SnapshotError(f"{database.place} is of format {facts['format']}, which this release does not read")
    layout = Layout(int(facts["partitions"]), facts["namespace"], topic=int(facts.get("log", FIRST_TOPIC)))
    marker = layout.keys[0].prefix + MARKER
    if not force and not client.exists(marker) and (there := _found(client, layout)):
        raise StreamError(
            f"the server is not empty: {there} is there. Restore into an empty one; or, to replace its counters by the "
            "snapshot and count what its streams hold, say --force"
        )
    client.set(marker, "1")
    client.delete(layout.root)
    client.delete(layout.meta)
    rules = read_rules(facts["rules"].encode())
    parts = []
    for partition in range(layout.partitions):
        part = PartitionRestore(client, database, layout, partition, rules).run(archived)
        parts.append(part)
        progress(part)
        failpoints.reach("after-partition")
    fields: dict[Any, Any] = fields_of(layout, facts["epoch"])
    client.hset(layout.meta, mapping=fields | {"rules": facts["rules"], **spread_fields(facts["spread"].split())})
    if layout.topic != FIRST_TOPIC:
        logs = dict(each.split(":") for each in facts["earlier"].split())
        fields |= {"log": layout.topic, "newest-log": layout.topic}
        client.hset(layout.root, mapping=fields | {f"partitions@{log}": count for log, count in logs.items()})
    client.delete(marker)
    return parts


def _found(client: redis.Redis, layout: Layout) -> str | None:
    names = [layout.root, layout.meta]
    names += [name for keys in layout.keys for name in (keys.stream, keys.ledger, keys.sequences)]
    return next((name for name in names if client.exists(name)), None)
