"""Explains an error about a server without data: if a backup has the data, the error names it and what restores it."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from tallystream.errors import NothingDeclared, TallyError
from tallystream_worker.cli.moments import format_moment
from tallystream_worker.cli.options import current_settings, current_url

if TYPE_CHECKING:
    from tallystream.deployment import Deployment
    from tallystream_worker.settings.settings import Settings


def explained(error: TallyError) -> str:
    """Return the text of an error; of `NothingDeclared`, if a backup has data of the namespace, a text about that."""
    settings = current_settings()
    if not isinstance(error, NothingDeclared) or settings is None:
        return str(error)
    found = backup_of(settings)
    return f"{current_url()} has no data of this deployment. {found}" if found else str(error)


def ensure_data(settings: Settings, deployment: Deployment) -> None:
    """Raise `NothingDeclared` if no deployment is stored, or if it has no rules, and a backup has data of before."""
    deployment.ensure_stored()
    if deployment.declared is None and backup_of(settings):
        deployment.ensure_declared()


def backup_of(settings: Settings) -> str:
    """Return which backup has the data of the namespace, up to when, and what restores it; `""` if none has it.

    A backup that cannot be read is passed over, also if a package is missing that reads it.
    """
    return _of_snapshot(settings) or _of_archive(settings)


def _of_snapshot(settings: Settings) -> str:
    if not settings.snapshot.url:
        return ""
    from tallystream_worker.snapshot.database import Database  # noqa: PLC0415  # SQLAlchemy takes its time

    try:
        with closing(Database(settings.snapshot.url, settings.redis.namespace, is_there=True)) as database:
            facts = database.facts()
            found = [database.position(number) for number in range(int(facts.get("partitions", 0)))]
            place = database.place
    except (TallyError, ValueError):
        return ""
    if not found or None in found:
        return ""
    taken = min(each[0].taken for each in found if each is not None) / 1000
    return (
        f"The snapshot {place} has it up to {format_moment(taken)}. To bring it back, run: tallystream restore "
        f"{place} --force"
    )


def _of_archive(settings: Settings) -> str:
    if not settings.archive.url:
        return ""
    try:
        from tallystream_worker.archive.store import Store  # noqa: PLC0415  # pyarrow is an extra

        store = Store(settings.archive.url, settings.redis.namespace)
        manifest = store.manifest()
        newest = [store.newest(number) for number in range(int((manifest or {}).get("partitions", 0)))]
    except (ImportError, TallyError, ValueError):
        return ""
    last = max((file.last[0] for file in newest if file is not None), default=0)
    if not last:
        return ""
    url = settings.archive.url
    return (
        f"The archive {url} has its events up to {format_moment(last / 1000)}, but there is no snapshot to restore. To "
        "count the events again, name another folder in [archive] url, start a worker, and run: tallystream replay "
        f"--archive {url} -o events.ndjson, then: tallystream ingest events.ndjson --wait"
    )
