"""Opens the database and the archive that the commands `snapshot`, `restore` and `drill` work with."""

from __future__ import annotations

from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING

from tallystream.errors import ConfigurationError
from tallystream.storage.keys import FIRST_TOPIC

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tallystream.deployment import Deployment
    from tallystream.rules.retraction import Retraction
    from tallystream_worker.archive.store import Store
    from tallystream_worker.settings.settings import Settings
    from tallystream_worker.snapshot.archived import ArchivedEntries
    from tallystream_worker.snapshot.database import Database


def open_snapshot(settings: Settings, url: str | None, *, is_there: bool = False) -> closing[Database]:
    """Return a context with the snapshot database at `url`, or at `[snapshot] url` if `url` is empty.

    No connection is made until the database is used. The database is closed at the end of the context.

    Args:
        settings: The settings of the command.
        url: SQLite file or database URL from the command line.
        is_there: Require that a SQLite file exists: if not, the first use raises a `ConfigurationError`. Otherwise the
            first use creates it, or the tables that a PostgreSQL database lacks.

    Raises:
        ConfigurationError: no database is named, or its URL cannot be used.
    """
    from tallystream_worker.snapshot.database import Database  # noqa: PLC0415  # SQLAlchemy is slow to import

    return closing(Database(snapshot_url(settings, url), settings.redis.namespace, is_there=is_there))


def snapshot_url(settings: Settings, url: str | None) -> str:
    """Return `url`, or `[snapshot] url` of the settings if `url` is empty.

    Raises:
        ConfigurationError: both are empty.
    """
    if not (chosen := url or settings.snapshot.url):
        raise ConfigurationError("no snapshot database: name a file or a database URL, or set [snapshot] url")
    return chosen


def note_retractions(settings: Settings, deployment: Deployment, archive: str, retracted: Sequence[Retraction]) -> None:
    """Write the retractions that are live from now on into the snapshot of the settings, and into an archive.

    A backup that does not exist yet, or that has these retractions, is not changed. A snapshot whose URL cannot be
    used, or whose driver is not installed, is skipped without an error.

    Args:
        settings: The settings of the command.
        deployment: The deployment that the retractions are part of.
        archive: Folder or URL of the archive; `""` for none.
        retracted: All retractions that are live; they replace those that the backups have.

    Raises:
        SnapshotError: the snapshot cannot be read or written; the archive was not written.
        ArchiveError: the archive cannot be read or written.
        ConfigurationError: the URL of the archive cannot be used.
        ImportError: an archive is named, and the package pyarrow is not installed.

    Before the errors of the archive, the snapshot was written.
    """
    if settings.snapshot.url:
        from tallystream_worker.snapshot.retractions import note_retractions as note  # noqa: PLC0415

        with suppress(ConfigurationError), open_snapshot(settings, None, is_there=True) as database:
            note(database, retracted)
    if archive:
        from tallystream_worker.archive.store import Store  # noqa: PLC0415  # pyarrow is an extra

        Store(archive, deployment.layout.namespace, deployment.layout.topic).note(retracted)


def archive_of(settings: Settings, url: str | None, database: Database) -> Store | None:
    """Return the archive of the topic of a snapshot; `None` if no archive is named. Of its files, the manifest is read.

    Without a complete snapshot, return the archive of the first topic.

    Args:
        settings: The settings of the command.
        url: Folder or URL of the archive from the command line, `""` for none; if `None`, `[archive] url` is used.
        database: The snapshot, which has the number of the topic.

    Raises:
        SnapshotError: the snapshot cannot be read.
        ArchiveError: the archive is of other data than the snapshot, or its manifest cannot be read.
        ConfigurationError: the URL of the archive cannot be used, or the SQLite file that must exist does not.
        ImportError: an archive is named, and the package pyarrow is not installed.
    """
    if not (chosen := _archive_url(settings, url)):
        return None
    from tallystream_worker.archive.store import Store  # noqa: PLC0415  # pyarrow is an extra
    from tallystream_worker.snapshot.damage import explaining_damage  # noqa: PLC0415  # SQLAlchemy is slow to import

    with explaining_damage(database):
        facts = database.facts()
        topic = int(facts.get("log", FIRST_TOPIC))
    store = Store(chosen, settings.redis.namespace, topic)
    if "epoch" in facts:
        store.ensure_of(facts["epoch"])
    return store


def open_archive(store: Store | None) -> ArchivedEntries | None:
    """Return a function that reads the entries of an archive; `None` for `None`.

    The function raises its errors during the iteration: see `tallystream_worker.archive.entries.entries`.
    """
    if store is None:
        return None
    from tallystream_worker.archive.entries import entries  # noqa: PLC0415  # pyarrow is an extra

    return partial(entries, store)


def _archive_url(settings: Settings, url: str | None) -> str:
    """Return `url`, also if it is `""` (no archive); if it is `None`, return `[archive] url` of the settings."""
    return settings.archive.url if url is None else url


def archived_topics(settings: Settings, url: str | None) -> list[int]:
    """Return the numbers of the topics after the first one that have a folder in the archive; none without an archive.

    Args:
        settings: The settings of the command.
        url: Folder or URL of the archive from the command line, `""` for none; if `None`, `[archive] url` is used.

    Raises:
        ArchiveError: the archive cannot be listed.
        ConfigurationError: the URL of the archive cannot be used.
        ImportError: an archive is named, and the package pyarrow is not installed.
    """
    if not (chosen := _archive_url(settings, url)):
        return []
    from tallystream_worker.archive.store import Store  # noqa: PLC0415  # pyarrow is an extra

    return Store(chosen, settings.redis.namespace).later_topics()


def open_later_topics(settings: Settings, url: str | None) -> Callable[[int], Mapping[int, int]]:
    """Return a function that takes the number of a topic, and counts the events of each later topic in the archive.

    The function returns, by number of the later topic, how many archived events it has that no repartition copied
    there. For its result and errors, see `tallystream_worker.archive.later_topics.later_events`. If no archive is
    named, it returns an empty mapping.

    Args:
        settings: The settings of the command.
        url: Folder or URL of the archive from the command line, `""` for none; if `None`, `[archive] url` is used.

    Raises:
        ImportError: an archive is named, and the package pyarrow is not installed.
    """
    if not (chosen := _archive_url(settings, url)):
        return lambda _: {}
    from tallystream_worker.archive.later_topics import later_events  # noqa: PLC0415  # pyarrow is an extra

    return lambda topic: later_events(chosen, settings.redis.namespace, topic)
