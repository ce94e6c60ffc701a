"""Finds events of other topics that a restore would leave out: it brings back one topic, and closes all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import StreamError
from tallystream.storage.deployment_hash import RESTORING, live_topic, whole_number
from tallystream.storage.keys import CLOSED, FIRST_TOPIC, Layout
from tallystream.wire.codec import own_events
from tallystream_worker.snapshot.rule_records import NEWEST_TOPIC, settled_topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import redis

    from tallystream_worker.snapshot.database import Database

RESTORED_TOPIC: Final = "restoring-log"
"""The field of the root hash with the number of the topic that is being restored, its number of partitions, and the
epoch that the server had before (nothing if it had none), separated by spaces. It exists only with `RESTORING`."""

_READ: Final = 1000


def refuse_loss(
    client: redis.Redis,
    database: Database,
    layout: Layout,
    root: Mapping[bytes, bytes],
    archived: Callable[[int], Mapping[int, int]],
) -> None:
    """Raise `StreamError` if a restore would leave out events of a topic that is not the snapshot's; change nothing.

    Each of these proves that there are such events:

    - The topic that is live on the server is of the same data, and has a higher number than that of the snapshot.
    - It is of the same data, has a lower number, and events were appended to it after the snapshot.
    - It is of other data, has another number, and events were appended to it.
    - The root hash is gone, but a stream of the snapshot's topic is closed: a later topic has replaced it.
    - The archive has events of a later topic that were not copied from an earlier one.

    Later topics that were given up before the snapshot, or on the server since then, are no proof. If an interrupted
    restore of the same topic is repeated, nothing is checked. If one of another topic was interrupted, that topic
    counts as live, and as of the same data.

    Args:
        client: The server to restore to.
        database: The database of the snapshot, which must be complete.
        layout: The layout of the topic to restore.
        root: The fields of the server's root hash; empty if there is none.
        archived: Called with the number of a topic; returns, by number of each later topic that has archived events
            which were not copied, how many these are.

    Raises:
        StreamError: the restore would leave out events; or another client has damaged a field of the root hash or of
            the live topic's hash (`DamagedValue`).
        SnapshotError: the database cannot be used.
        ConfigurationError: the database was opened with `is_there`, and its SQLite file does not exist.
        redis.RedisError: the server did not answer, or refused a command.

    Any error of `archived` is raised too.
    """
    facts, topic = database.facts(), layout.topic
    is_restoring = RESTORING.encode() in root
    live, partitions = present_topic(client, layout.namespace, root)
    if is_restoring and live == topic:
        return
    is_same_data = is_restoring or root.get(b"epoch") == facts["epoch"].encode()
    known = max(int(facts[NEWEST_TOPIC]), topic)
    if root and live != topic:
        is_later = is_same_data and live > topic
        moments = [found[0].taken for n in range(layout.partitions) if (found := database.position(n)) is not None]
        since = min(moments, default=0) if is_same_data and not is_later else 0
        events = sum(_own_events(client, Layout(partitions or 1, layout.namespace, topic=live), since))
        if is_later or events:
            raise _loss(f"topic {live} is live on the server, and has {events:,} events", topic)
    elif root and is_same_data:
        known = max(known, settled_topic(root, topic))
    elif not root and (later := _closed_by(client, layout)) > known:
        raise _loss(f"topic {later} has replaced its streams on the server, and may have events", topic)
    if unknown := {later: events for later, events in archived(known).items() if later > known}:
        last, events = max(unknown), sum(unknown.values())
        raise _loss(f"the archive has topic {last}, with {events:,} events", topic)


def present_topic(client: redis.Redis, namespace: str, root: Mapping[bytes, bytes]) -> tuple[int, int | None]:
    """Return the number of the live topic, and its number of partitions; `None` for the latter if it is not stored.

    If the root hash states that a restore runs or was interrupted, they are those of the topic that it restores.

    Raises:
        DamagedValue: one of the numbers on the server is not a whole number.
        redis.RedisError: the server did not answer, or refused the command.
    """
    if RESTORING.encode() in root:
        topic, partitions, _ = _restored(root)
        return topic, partitions
    live = live_topic(root, namespace)
    found: Any = client.hget(live.meta, "partitions")
    return live.topic, None if found is None else whole_number(found, "partitions")


def describe_restored(layout: Layout, root: Mapping[bytes, bytes]) -> str:
    """Return the value of `RESTORED_TOPIC` during a restore of the topic of `layout`; `root` is the hash before it."""
    return f"{layout.topic} {layout.partitions} {former_epoch(root)}"


def former_epoch(root: Mapping[bytes, bytes]) -> str:
    """Return the epoch in a root hash; `""` if there is none.

    If the hash states that a restore runs or was interrupted, return the epoch that the server had before this restore.
    """
    return _restored(root)[2] if RESTORING.encode() in root else root.get(b"epoch", b"").decode()


def _restored(root: Mapping[bytes, bytes]) -> tuple[int, int | None, str]:
    """Return the numbers of the topic and of its partitions, and the epoch, in the field `RESTORED_TOPIC`.

    Without this field, return `FIRST_TOPIC`, `None` and `""`.
    """
    if (stated := root.get(RESTORED_TOPIC.encode())) is None:
        return FIRST_TOPIC, None, ""
    topic, partitions, epoch = stated.decode().split(" ")
    return int(topic), int(partitions), epoch


def _loss(found: str, topic: int) -> StreamError:
    return StreamError(
        f"the snapshot is of topic {topic}, but {found} that topic {topic} does not have: the restored counters would "
        "lack them. Name a snapshot of the later topic; or, to restore without these events, use --accept-loss"
    )


def _own_events(client: redis.Redis, layout: Layout, since: int) -> Iterator[int]:
    """Yield, for each page of entries in a topic's streams, the number of the events that were appended there.

    Events that a repartition has copied there are left out. If `since` is not 0, entries whose ID has this millisecond
    or an earlier one are left out too.
    """
    for keys in layout.keys:
        after = f"{since}-{2**64 - 1}" if since else "0-0"
        while True:
            page: Any = client.xrange(keys.stream, f"({after}", count=_READ)
            yield sum(own_events(fields) for _, fields in page)
            if len(page) < _READ:
                break
            after = page[-1][0].decode()


def _closed_by(client: redis.Redis, layout: Layout) -> int:
    """Return the highest number of a topic for which a partition of the topic of `layout` was closed; 0 if none was."""
    found = [client.hget(keys.sequences, CLOSED) for keys in layout.keys]
    return max((int(topic) for topic in found if topic), default=0)
