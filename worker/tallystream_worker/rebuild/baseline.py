"""Chooses the base of an audit: every entry that was ever appended, a snapshot, or the entries that still exist."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tallystream.errors import ConfigurationError
from tallystream.storage.keys import FIRST_TOPIC, RESTORED
from tallystream.wire.stream_id import StreamID, before, id_text, parse_id
from tallystream_worker.archive.counted_only import find_counted_only
from tallystream_worker.process.moments import format_moment
from tallystream_worker.process.stream_facts import stream_facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.archive.store import Store
    from tallystream_worker.rebuild.scope import Span
    from tallystream_worker.settings.settings import Settings
    from tallystream_worker.snapshot.database import Database


@dataclass(frozen=True)
class Sources:
    """The archive and the snapshot that an audit may use in place of entries that are gone from the streams.

    Attributes:
        archive: The archive; `None` if there is none.
        snapshot: The database of the snapshot; `None` if there is none.
        prefers_snapshot: Whether to begin with the snapshot even if every entry still exists; ignored by an audit whose
            span has a beginning.
    """

    archive: Store | None = None
    snapshot: Database | None = None
    prefers_snapshot: bool = False

    def changes(self) -> dict[str, dict[str, str]]:
        """Return the changes of the rules in the archive: by ID, the fields of each. Empty without an archive.

        Raises:
            ArchiveError: the archive cannot be read.
        """
        return {} if self.archive is None else self.archive.rules()


@dataclass(frozen=True)
class Base:
    """The starting point of the audit of one partition.

    Attributes:
        after: The ID after which entries are folded; empty to fold them all.
        gone: The time of `after`, in milliseconds since 1970, if entries up to `after` are left out; `None` if every
            entry is folded or in the snapshot.
        is_archived: Whether entries after `after` that are gone from the stream are read from the archive.
        is_snapshot: Whether the counters of the snapshot are loaded first; `after` is then the ID up to which the
            snapshot contains every entry.
    """

    after: str
    gone: int | None = None
    is_archived: bool = False
    is_snapshot: bool = False

    @property
    def kind(self) -> str:
        """The source of the oldest entries or counters: `snapshot`, `archive` or `log` (the stream)."""
        return "snapshot" if self.is_snapshot else "archive" if self.is_archived else "log"


@contextmanager
def opened(
    settings: Settings, archive: str | None = None, snapshot: str | None = None, *, log: int = FIRST_TOPIC
) -> Iterator[Sources]:
    """Yield the archive and the snapshot for an audit; close the snapshot at the end of the context.

    Args:
        settings: The configuration.
        archive: URL of the archive; `""` for no archive, `None` for the archive of the settings.
        snapshot: URL of the snapshot to begin with; `""` for no snapshot, `None` for the snapshot of the settings,
            which is used only if entries are gone that the archive lacks.
        log: The number of the topic that is audited; each topic has its own archive.

    Raises:
        ConfigurationError: the URL of the archive or of the snapshot cannot be used. Whether the two exist is not
            checked here.
        ImportError: an archive is named or configured, and the package pyarrow is not installed.
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
    """Return the base of the audit of partition `number`: where its fold begins, and from what.

    If the span has a beginning, the fold begins with the entries that the span needs, or with the oldest available
    entry if that is later; no snapshot is used. Otherwise, a preferred snapshot is the base. If none is preferred, and
    the stream and the archive have every entry, all are folded. If they lack entries, the snapshot of `sources` is the
    base. If that is missing, incomplete, outdated or of other data, the fold begins with the oldest available entry.

    Raises:
        ConfigurationError: the preferred snapshot is missing, incomplete, outdated or of other data; or the span has a
            beginning, and no rules are published.
        ArchiveError: entries are gone from the stream, and the archive cannot be read or is of other data.
        SnapshotError: the snapshot is needed and cannot be read, even if it is not preferred.
        KeyLost: the partition has no stream.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    lost = _lost(stream_facts(client, deployment.layout.keys[number]))
    archived = None
    if sources.archive is not None and lost is not None:
        sources.archive.ensure_of(deployment.epoch)
        archived = _archived(client, sources.archive, deployment.layout.keys[number], number, lost)
    if span.begin > 0:
        return _of_range(before((span.needs(deployment.rules), 0)), lost, archived)
    if sources.prefers_snapshot:
        return _of_snapshot(client, deployment, number, sources.snapshot)
    if lost is None or archived == (0, 0):
        return Base("", is_archived=lost is not None)
    if sources.snapshot is not None:
        with suppress(ConfigurationError):  # it is not preferred: begin with the entries that still exist
            return _of_snapshot(client, deployment, number, sources.snapshot)
    return _of_range((0, 0), lost, archived)


def _of_range(needed: StreamID, lost: StreamID | None, archived: StreamID | None) -> Base:
    """Return a base that begins after the ID `needed`, or with the oldest available entry if that is later.

    Entries are available in the stream, or in the archive if it can be used.

    Args:
        needed: The ID after which entries are needed.
        lost: The highest ID of an entry that is gone from the stream; `None` if none is gone.
        archived: The ID after which the archive has every entry up to `lost`; `None` if the archive cannot be used.
    """
    if lost is None or lost <= needed:
        return Base(id_text(needed), needed[0])
    first = max(needed, lost if archived is None else archived)
    return Base(id_text(first), first[0], is_archived=archived is not None)


def _lost(info: Any) -> StreamID | None:
    """Return the highest ID that an entry which is gone from the stream can have; `None` if no entry is gone.

    `info` is the reply of XINFO STREAM. The oldest entries are taken to be the ones that are gone: entries that were
    deleted from the middle may be later.
    """
    if info["entries-added"] == info["length"]:
        return None
    if info["first-entry"] is None:
        return parse_id(info["last-generated-id"].decode())
    return before(parse_id(info["first-entry"][0].decode()))


def _archived(client: redis.Redis, store: Store, keys: PartitionKeys, number: int, lost: StreamID) -> StreamID | None:
    """Return the ID after which the archive has every entry up to the ID `lost`; `None` if it ends before `lost`.

    Return `None` also if it has no entry. A file that was removed between two others is not noticed here. Entries that
    only the counters have since the last restore are not after the ID, even if no file states them yet.
    """
    newest, begins = store.newest(number), store.beginning(number)
    if newest is None or begins is None or newest.last < lost:
        return None
    restored: Any = client.execute_command("HGET", keys.sequences, RESTORED)
    unstated = None if restored is None else find_counted_only(store, number, restored)
    return begins if unstated is None else max(begins, unstated[1])


def _of_snapshot(client: redis.Redis, deployment: Deployment, number: int, database: Database | None) -> Base:
    keys = deployment.layout.keys[number]
    found = database.position(number) if database is not None else None
    if database is None or found is None:
        raise ConfigurationError("there is no complete snapshot yet: take one (tallystream snapshot --once)")
    facts, (position, generation) = database.facts(), found
    if facts.get("epoch") != deployment.epoch or facts.get("namespace") != deployment.layout.namespace:
        raise ConfigurationError(f"{database.place} contains a snapshot of other data: name another one")
    if facts.get("log", str(FIRST_TOPIC)) != str(deployment.layout.topic):
        raise ConfigurationError(
            f"{database.place} contains a snapshot from before the last repartition: take another snapshot "
            "(tallystream snapshot --once)"
        )
    moment = format_moment(position.taken / 1000)
    if generation != keys.generation:
        raise ConfigurationError(
            f"{database.place} contains generation {generation} of {keys.stream} as of {moment}, but generation "
            f"{keys.generation} is live: take another snapshot (tallystream snapshot --once)"
        )
    if not position.is_reached(client, keys):
        raise ConfigurationError(
            f"{keys.stream}: entries after the snapshot of {moment} were trimmed: take another snapshot "
            "(tallystream snapshot --once)"
        )
    return Base(position.floor, is_snapshot=True)
