"""Archives all partitions, once or again and again."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tallystream.client.connect import connect
from tallystream_worker.archive.archiver import SETTLED, PartitionArchiver
from tallystream_worker.archive.store import Store
from tallystream_worker.process.periodic import PeriodicTask

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream_worker.settings.settings import Settings


class Archive:
    """All partitions' archivists.

    Args:
        client: Where the streams are.
        store: Where the files go.
        meta: What is stored.

    Raises:
        ArchiveError: the files are those of other data.
    """

    def __init__(self, client: redis.Redis, store: Store, meta: Deployment) -> None:
        store.claim(meta.layout.namespace, meta.layout.partitions, (meta.epoch,))
        self.archivists = [PartitionArchiver(client, store, keys, n) for n, keys in enumerate(meta.layout.keys)]
        self._begun = False

    def run_once(self, *, settled: float = SETTLED) -> int:
        """Write what is there into files; return how many events that were.

        Args:
            settled: Seconds for which an entry is left alone.
        """
        if not self._begun:
            for archivist in self.archivists:
                archivist.ensure_group()
            self._begun = True
        events = 0
        try:
            for archivist in self.archivists:
                while written := archivist.run_once(settled=settled):
                    events += written
        except Exception:
            self._begun = False  # the server may come back with less than it had
            raise
        return events


@contextmanager
def archiving(settings: Settings, meta: Deployment, log: FilteringBoundLogger) -> Iterator[None]:
    """Archive in the background for as long as the context lasts, where `[archive] url` names a place."""
    if not settings.archive.url:
        yield
        return
    client = connect(settings.redis.url)
    store = Store(settings.archive.url, meta.layout.namespace, meta.layout.log)
    archive = Archive(client, store, meta)

    def work() -> dict[str, object] | None:
        events = archive.run_once()
        return {"events": events} if events else None

    duty = PeriodicTask("archive", settings.archive.every, work, log)
    duty.start()
    try:
        yield
    finally:
        if duty.stop(settings.worker.stop_timeout):
            client.close()
