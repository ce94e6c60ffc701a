"""Reads up to which entry the configured backups have each partition: the snapshot and the archive."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from tallystream.errors import ConfigurationError
from tallystream.storage.keys import FIRST_TOPIC
from tallystream_worker.server.data_folder import snapshot_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tallystream_worker.archive.store import File
    from tallystream_worker.settings.settings import Settings
    from tallystream_worker.snapshot.point_in_time import SnapshotPosition

_Last = TypeVar("_Last")


@dataclass(frozen=True)
class BackedUp(Generic[_Last]):
    """The contents of a backup of one topic.

    Attributes:
        place: The file, folder or URL of the backup; of a URL, without user and password.
        epoch: The epoch of the data; `None` if the backup does not state it.
        topic: The number of the topic.
        last: By partition, the position of the snapshot, or the last file of the archive; `None` if the backup has
            nothing of the partition.
    """

    place: str
    epoch: str | None
    topic: int
    last: Sequence[_Last | None]


def read_snapshot(settings: Settings) -> BackedUp[SnapshotPosition] | None:
    """Return the positions in the configured snapshot.

    If none is configured, they are those of the snapshot that `tallystream up` takes of this server: see `snapshot_of`.
    If there is no such snapshot either, or the SQLite file does not exist, return `None`. If the database has no
    complete snapshot, `last` is empty and `epoch` is `None`.

    Raises:
        ConfigurationError: the URL cannot be used.
        SnapshotError: the database cannot be used, or is damaged.
    """
    if not (url := settings.snapshot.url or snapshot_of(settings.redis.url)):
        return None
    from tallystream_worker.snapshot.database import Database, SnapshotError  # noqa: PLC0415  # SQLAlchemy is slow

    with closing(Database(url, settings.redis.namespace, is_there=True)) as database:
        try:
            facts = database.facts()
        except ConfigurationError:  # the SQLite file does not exist
            return None
        try:
            partitions, topic = int(facts.get("partitions", 0)), int(facts.get("log", FIRST_TOPIC))
            found = [database.position(number) for number in range(partitions)]
        except ValueError as error:
            raise SnapshotError(f"{database.place}: another program has changed a value: {error}") from None
        positions = [None if each is None else each[0] for each in found]
        return BackedUp(database.place, facts.get("epoch"), topic, positions)


def read_archive(settings: Settings, topic: int = FIRST_TOPIC) -> BackedUp[File] | None:
    """Return the last files of a topic in the configured archive; `None` if no archive is configured.

    If the archive has no manifest of the topic, `last` is empty and `epoch` is `None`.

    Raises:
        ConfigurationError: the URL cannot be used.
        ArchiveError: the archive cannot be read.
        ImportError: the package pyarrow is not installed.
    """
    if not settings.archive.url:
        return None
    from tallystream_worker.archive.store import Store  # noqa: PLC0415  # pyarrow is an extra

    store = Store(settings.archive.url, settings.redis.namespace, topic)
    manifest = store.manifest() or {}
    newest = [store.newest(number) for number in range(manifest.get("partitions", 0))]
    return BackedUp(store.place, manifest.get("epoch"), topic, newest)


def archived_topics(settings: Settings) -> list[int]:
    """Return the numbers of all topics that may be in the configured archive; empty if no archive is configured.

    They are the first topic, even if nothing of it is archived, and the later topics that have a folder there. The
    errors are those of `read_archive`.
    """
    if not settings.archive.url:
        return []
    from tallystream_worker.archive.store import Store  # noqa: PLC0415  # pyarrow is an extra

    return [FIRST_TOPIC, *Store(settings.archive.url, settings.redis.namespace).later_topics()]
