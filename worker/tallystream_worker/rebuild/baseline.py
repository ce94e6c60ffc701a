"""What an audit begins with: all that was ever appended, a snapshot, or as much of the log as there is."""

from __future__ import annotations

import datetime as dt
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tallystream.errors import ConfigurationError
from tallystream.storage.keys import FIRST_TOPIC
from tallystream.wire.stream_id import StreamID, parse_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from tallystream.deployment import Deployment
    from tallystream_worker.archive.store import Store
    from tallystream_worker.rebuild.scope import Span
    from tallystream_worker.settings.settings import Settings
    from tallystream_worker.snapshot.database import Database


@dataclass(frozen=True)
class Sources:
    """Where an audit may find what the streams no longer hold.

    Attributes:
        archive: The archive's files; `None` for none.
        snapshot: The snapshot; `None` for none.
        prefers_snapshot: Begin with it although the log reaches back to the beginning.
    """

    archive: Store | None = None
    snapshot: Database | None = None
    prefers_snapshot: bool = False


@dataclass(frozen=True)
class Base:
    """What is known before the stream's entries behind `after` are folded.

    Attributes:
        after: Empty for all that the stream holds.
        gone: The millisecond of the last entry that is not known; `None` where all are.
        is_archived: What lies behind `after` and is not in the stream is taken from the archive.
        is_snapshot: The snapshot says what came before; `after` is its floor.
    """

    after: str
    gone: int | None = None
    is_archived: bool = False
    is_snapshot: bool = False

    @property
    def kind(self) -> str:
        """What it is, in a word."""
        return "snapshot" if self.is_snapshot else "archive" if self.is_archived else "log"


@contextmanager
def opened(
    settings: Settings, archive: str | None = None, snapshot: str | None = None, *, log: int = FIRST_TOPIC
) -> Iterator[Sources]:
    """Open what is named, else what the settings name.

    Args:
        settings: What was configured.
        archive: URL of the archive; `""` for none, `None` for the one of the settings.
        snapshot: URL of the snapshot to begin with; `None` for the one of the settings, as a last resort.
        log: The log that is audited: each has an archive of its own.
    """
    store = database = None
    if url := settings.archive.url if archive is None else archive:
        from tallystream_worker.archive.store import Store  # noqa: PLC0415  # pyarrow is an extra

        store = Store(url, settings.redis.namespace, log)
    if url := settings.snapshot.url if snapshot is None else snapshot:
        from tallystream_worker.snapshot.database import Database  # noqa: PLC0415  # SQLAlchemy takes its time

        database = Database(url, settings.redis.namespace, is_there=True)
    try:
        yield Sources(store, database, prefers_snapshot=bool(snapshot))
    finally:
        if database is not None:
            database.close()


def choose(client: redis.Redis, deployment: Deployment, number: int, sources: Sources, span: Span) -> Base:
    """Return what to begin with in one partition: whatever proves most.

    Raises:
        ConfigurationError: the snapshot that was named is of other data.
        ArchiveError, SnapshotError: what was named cannot be read.
    """
    stream = deployment.layout.keys[number].stream
    info: Any = client.xinfo_stream(stream)
    lost = _lost(info)
    archived = None if sources.archive is None or lost is None else _archived(sources.archive, number, lost)
    if span.begin > 0:
        return _of_range(_before(span.needs(deployment.rules)), lost, archived)
    if sources.prefers_snapshot:
        return _of_snapshot(client, deployment, number, sources.snapshot)
    if lost is None or archived == (0, 0):
        return Base("", is_archived=lost is not None)
    if sources.snapshot is not None:
        with suppress(ConfigurationError):  # it was not asked for: then by what is left of the log
            return _of_snapshot(client, deployment, number, sources.snapshot)
    return _of_range((0, 0), lost, archived)


def _of_range(needed: StreamID, lost: StreamID | None, archived: StreamID | None) -> Base:
    """Return what is left of the log behind an entry, from the archive or the stream."""
    if lost is None or lost <= needed:
        return Base(_text(needed), needed[0])
    first = max(needed, lost if archived is None else archived)
    return Base(_text(first), first[0], is_archived=archived is not None)


def _lost(info: Any) -> StreamID | None:
    """Return the last ID that an entry which is gone can have; `None` where none is."""
    if info["entries-added"] == info["length"]:
        return None
    if info["first-entry"] is None:
        return parse_id(info["last-generated-id"].decode())
    milliseconds, number = parse_id(info["first-entry"][0].decode())
    return (milliseconds, number - 1) if number else _before(milliseconds)


def _archived(store: Store, number: int, lost: StreamID) -> StreamID | None:
    """Return the ID behind which the archive has all that the stream lost; `None` where it has not."""
    newest = store.newest(number)
    return None if newest is None or newest.last < lost else store.beginning(number)


def _of_snapshot(client: redis.Redis, deployment: Deployment, number: int, database: Database | None) -> Base:
    keys = deployment.layout.keys[number]
    found = database.position(number) if database is not None else None
    if database is None or found is None:
        raise ConfigurationError("there is no complete snapshot yet: take one (tallystream snapshot --once)")
    facts, (position, generation) = database.facts(), found
    if facts.get("epoch") != deployment.epoch or facts.get("namespace") != deployment.layout.namespace:
        raise ConfigurationError(f"{database.place} holds the snapshot of other data")
    if facts.get("log", str(FIRST_TOPIC)) != str(deployment.layout.topic):
        raise ConfigurationError(
            f"{database.place} is of the log before the partitions were changed: take another snapshot "
            "(tallystream snapshot --once)"
        )
    moment = dt.datetime.fromtimestamp(position.taken / 1000, dt.UTC).isoformat(" ", "seconds")
    if generation != keys.generation:
        raise ConfigurationError(
            f"{database.place} holds generation {generation} of {keys.stream} as of {moment}, and {keys.generation} is "
            "live by now: take another snapshot (tallystream snapshot --once)"
        )
    if not position.is_reached(client, keys.stream):
        raise ConfigurationError(
            f"{keys.stream} was trimmed behind the snapshot of {moment}: take another (tallystream snapshot --once)"
        )
    return Base(position.floor, is_snapshot=True)


def _before(milliseconds: int) -> StreamID:
    return (milliseconds - 1, 2**64 - 1) if milliseconds else (0, 0)


def _text(stream_id: StreamID) -> str:
    return f"{stream_id[0]}-{stream_id[1]}"
