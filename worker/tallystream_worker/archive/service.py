"""Archives all partitions, once or as a service."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tallystream.client.connect import connect
from tallystream.storage.deployment_hash import ARCHIVE_LOST
from tallystream.storage.rule_changes import read_changes
from tallystream_worker.archive.archiver import SETTLED, PartitionArchiver
from tallystream_worker.archive.store import Store
from tallystream_worker.process.description import note
from tallystream_worker.process.periodic import PeriodicService

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.rules.retraction import Retraction
    from tallystream.storage.rule_changes import Record
    from tallystream_worker.archive.lost import LostEntries
    from tallystream_worker.settings.settings import Settings


class Archive:
    """Archives all partitions of a deployment: each call of `run_once` writes what is new.

    Args:
        client: The client of the server that has the streams.
        store: The archive; its manifest is written if there is none, and gets the live retractions of the deployment.
        deployment: The deployment to archive.
        on_loss: Called with a summary of archived entries that the server has lost, after they were set aside.

    Raises:
        ArchiveError: the store is the archive of other data, or its manifest cannot be read or written.
    """

    def __init__(
        self,
        client: redis.Redis,
        store: Store,
        deployment: Deployment,
        on_loss: Callable[[LostEntries], None] = lambda _: None,
    ) -> None:
        store.claim(deployment.layout.namespace, deployment.layout.partitions, (deployment.epoch,))
        self._store = store
        self._noted: tuple[Retraction, ...] | None = None
        self.note(deployment)
        self.archivists = [
            PartitionArchiver(client, store, keys, n, on_loss) for n, keys in enumerate(deployment.layout.keys)
        ]
        """The archiver of each partition, by partition number."""
        self._begun = False
        self._client, self._deployment = client, deployment
        url, namespace = store.url, deployment.layout.namespace
        self._stores = [store, *(Store(url, namespace, topic) for topic in sorted(deployment.earlier))]
        self._layout = deployment.layout
        self._rules: list[Record] = []
        self._files: dict[bytes, bytes] = {}

    def _note_missing(self) -> None:
        """Store on the server, for monitoring, how many lost entries were not sent again, by the files that have them.

        These are the files of this topic and of all earlier ones. Nothing is stored if the server has this number
        already.

        Raises:
            ArchiveError: a folder cannot be listed, or a file cannot be read.
            redis.RedisError: the server did not answer, or refused a command.

        Any error of `process.description.note` is raised too.
        """
        missing = sum(store.missing() for store in self._stores)
        stored: Any = self._client.hget(self._layout.meta, ARCHIVE_LOST)
        if missing != int(stored or 0):
            note(self._client, self._deployment, {ARCHIVE_LOST: missing})

    def note(self, deployment: Deployment) -> None:
        """Write the live retractions of a deployment into the manifest, unless this object wrote the same ones last.

        Do nothing if no rules are published.

        Raises:
            ArchiveError: the manifest cannot be read or written.
        """
        if deployment.declared is not None and deployment.declared.retracted != self._noted:
            self._store.note(deployment.declared.retracted)
            self._noted = deployment.declared.retracted

    def run_once(self, *, settled: float = SETTLED) -> int:
        """Write all entries that are not archived yet to files; return the number of events in them.

        Entries younger than `settled` are left for a later call, and so are those that arrive after the call has read
        the last ID of each partition, before it writes the first file. So a call ends under any load, and writes few
        files. Also add new changes of the rules, and new identities of ingested files, from the server to the archive.
        Archived entries that the server has lost are set aside, in files `*.parquet.lost`, and `on_loss` is called.
        Store on the server how many entries in these files were not sent again. The first call, and the next one after
        an archiver failed, creates missing consumer groups: see `PartitionArchiver.ensure_group`.

        Args:
            settled: Minimum age of an entry in seconds, by the server's clock; 0 leaves none.

        Raises:
            KeyLost: a partition has lost a key: see `PartitionArchiver.ensure_group`; or the number of lost entries has
                changed, and a hash that describes the deployment is lost or lacks a field.
            StreamError, ArchiveError, CodecError, redis.RedisError: see `PartitionArchiver`; call again to continue.
            DeploymentChanged, ConfigurationError, DamagedValue: the number of lost entries has changed, and could not
                be stored on the server, because the deployment was replaced or cannot be read.
        """
        if not self._begun:
            for archivist in self.archivists:
                archivist.ensure_group()
            self._note_missing()
            self._begun = True
        rules = read_changes(self._client, self._layout)
        if rules != self._rules:
            self._store.add_rules({name.decode(): _texts(fields) for name, fields in rules})
            self._rules = rules
        events = 0
        try:
            bounds = [archivist.latest() for archivist in self.archivists]
            self._add_files()
            for archivist, until in zip(self.archivists, bounds, strict=True):
                while (written := archivist.run_once(until=until, settled=settled)) is not None:
                    events += written
            self._note_missing()
        except Exception:
            self._begun = False  # the server may have lost data, the groups included
            raise
        return events

    def _add_files(self) -> None:
        """Add the identities of ingested files to the archive, if the server has other ones than at the last call.

        The identity of a file is stored before its first entry. So call this after the last entry to archive was
        chosen: a restore then finds the identity of every archived entry.
        """
        found: dict[bytes, bytes] = self._client.execute_command("HGETALL", self._layout.files)
        if found != self._files:
            self._store.add_files_ingested({name.decode(): int(size) for name, size in found.items()})
            self._files = found


def _texts(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}


class LiveArchive:
    """Archives the live topic; after a repartition, only the new topic, to which the old entries were copied.

    Each call of `run_once` is one pass. The object writes or checks the manifest when it is made.

    Args:
        client: The client of the server that has the streams.
        url: The URL of the archive.
        deployment: The deployment that the worker began with.
        log: Logs archived entries that the server has lost.

    Raises:
        ArchiveError: the files are the archive of other data, or their manifest cannot be read or written.
        ConfigurationError: the URL cannot be used.
    """

    def __init__(self, client: redis.Redis, url: str, deployment: Deployment, log: FilteringBoundLogger) -> None:
        self._client = client
        self._log = log
        self._url = url
        self._deployment = deployment
        self._archive = self._open(deployment)

    def run_once(self) -> dict[str, object] | None:
        """Write all new entries to files; return the field of a log line: `events`, the number of events in them.

        Return `None` if there are no such events, even if files were written: a file may have resets alone. Entries
        younger than 2 seconds are left for a later call. Changes of the rules, the identities of ingested files and the
        live retractions are also written.

        Raises:
            DeploymentChanged: the server has other data than the worker began with, or a restore has not finished.
            ConfigurationError: this release cannot read the stored layout version or rules.
            KeyLost: the hash of the live topic, a field of the deployment, or a key of a partition is lost.
            DamagedValue: a stored value of the deployment has a form that tallystream never writes.
            StreamError: see `PartitionArchiver.run_once`.
            ArchiveError: a file could not be read, written or removed, or the files are the archive of other data.
            CodecError: a file has a damaged row `raw`.
            redis.RedisError: the server did not answer, or refused a command.
        """
        found = self._deployment.reload(self._client)
        if found.layout.topic != self._deployment.layout.topic:
            self._archive = self._open(found)
            self._deployment = found
        self._archive.note(found)
        events = self._archive.run_once()
        return {"events": events} if events else None

    def _open(self, deployment: Deployment) -> Archive:
        store = Store(self._url, deployment.layout.namespace, deployment.layout.topic)
        return Archive(self._client, store, deployment, self._log_loss)

    def _log_loss(self, lost: LostEntries) -> None:
        self._log.error("archive.set_aside", **asdict(lost))


def archive_service(settings: Settings, deployment: Deployment, log: FilteringBoundLogger) -> PeriodicService:
    """Return the service that archives to `[archive] url` every `[archive] every`.

    The service is not started, but the manifest is checked, or written if there is none, and gets the live retractions.
    The caller must check that `[archive] url` is not empty: an empty one is the working directory.

    Raises:
        ArchiveError: the files at the URL are the archive of other data, or the manifest cannot be read or written.
        ConfigurationError: the URL of the archive or of the server cannot be used.
    """
    client = connect(settings.redis.url)
    archive = LiveArchive(client, settings.archive.url, deployment, log)
    return PeriodicService(
        "archive",
        settings.archive.every,
        archive.run_once,
        log,
        clients=[client],
    )
