"""What the commands around a snapshot open: its database, and the archive of the log that it is of."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from tallystream.errors import ConfigurationError
from tallystream.storage.keys import FIRST_TOPIC

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tallystream_worker.counting.entry import Entry
    from tallystream_worker.settings.settings import Settings
    from tallystream_worker.snapshot.database import Database


def open_snapshot(settings: Settings, url: str | None, *, is_there: bool = False) -> closing[Database]:
    """Open the database of snapshots that the command line or the configuration names.

    Raises:
        ConfigurationError: neither names one; or it is not there, with `is_there`.
    """
    from tallystream_worker.snapshot.database import Database  # noqa: PLC0415  # SQLAlchemy takes its time

    return closing(Database(snapshot_url(settings, url), settings.redis.namespace, is_there=is_there))


def snapshot_url(settings: Settings, url: str | None) -> str:
    """Return where snapshots are kept: what the command line names, else the configuration.

    Raises:
        ConfigurationError: neither names a place.
    """
    if not (chosen := url or settings.snapshot.url):
        raise ConfigurationError("no place for snapshots: name a file or database URL, or set [snapshot] url")
    return chosen


def open_archive(
    settings: Settings, url: str | None, database: Database
) -> Callable[[int, str, str | None], Iterable[Entry]] | None:
    """Return what reads the archive of the log that a snapshot is of, if there is one."""
    if not (chosen := url or settings.archive.url):
        return None
    from tallystream_worker.archive.entries import entries  # noqa: PLC0415  # pyarrow is an extra
    from tallystream_worker.archive.store import Store  # noqa: PLC0415

    log = int(database.facts().get("log", FIRST_TOPIC))
    store: Any = Store(chosen, settings.redis.namespace, log)
    return lambda partition, after, before: entries(store, partition, after, before)
