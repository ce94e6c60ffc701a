"""Finds out whether the entries count that the archiver has set aside, because the server had lost them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import TallyError
from tallystream.storage.keys import FIRST, RESTORED
from tallystream_worker.archive.counted_only import parse_restored, read_left_out
from tallystream_worker.archive.store import ArchiveError, Store
from tallystream_worker.verify.archived import links_of
from tallystream_worker.verify.scene import utc

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tallystream.storage.keys import PartitionKeys
    from tallystream.wire.stream_id import StreamID
    from tallystream_worker.verify.report import Verification
    from tallystream_worker.verify.scene import Scene
    from tallystream_worker.verify.sequence_walk import Link

_REBUILT: Final = "a rebuild leaves them out, and needs --accept-loss if they are gone from the stream too"


@dataclass
class _Sum:
    entries: int = 0
    events: int = 0

    def add(self, link: Link) -> None:
        self.entries += 1
        self.events += link.events

    def __str__(self) -> str:
        return f"{self.entries:,} entries with {self.events:,} events"


class SetAside:
    """The lost entries of a partition: those in files `*.parquet.lost`.

    Call `see` for each entry of the stream and of the archive, and then `report`. A lost entry that is also in a file
    `*.parquet.counted` is treated as sent again, as long as the live generation has the counters of the snapshot that
    the file names. Later, the entries in this file are stated as not proved.

    Args:
        client: The server, which states up to where a restored snapshot had counted.
        store: The archive.
        keys: The keys of the partition.
        number: The number of the partition.
        report: The report, which gets files that cannot be read, at once.

    Raises:
        ArchiveError: the files cannot be listed.
        redis.RedisError: the server does not reply, or rejects a command.
    """

    def __init__(self, client: Any, store: Store, keys: PartitionKeys, number: int, report: Verification) -> None:
        self._keys = keys
        self._nameless: dict[StreamID, Link] = {}
        self._named: dict[tuple[int, int], Link] = {}  # by hash of a producer, and number; an entry may be lost twice
        for file in store.set_aside(number):
            try:
                self._add(links_of(store, file, is_whole=False))
            except TallyError as error:
                report.find("archive.unreadable", f"{file.path}: {error}")
        self._sent_again, self._back = _Sum(), _Sum()
        self._replaced: dict[tuple[int, int], Link] = {}  # entries that the counters of an earlier restore had
        left_out, self._restored = read_left_out(client, keys), _restored(client, keys)
        for file in store.counted(number):
            try:
                counts = (
                    self._restored is not None and left_out is not None and left_out.mark == store.snapshot_of(file)
                )
                for link in links_of(store, file, is_whole=False) if self._named or not counts else ():
                    if counts:
                        self.see(link)
                    elif link.producer is not None:
                        self._named.pop((hash(link.producer), link.sequence), None)
                        self._replaced[hash(link.producer), link.sequence] = link
            except TallyError as error:
                report.find("archive.unreadable", f"{file.path}: {error}")

    def _add(self, links: Iterable[Link]) -> None:
        for link in links:
            if link.producer is None:
                self._nameless[link.id] = link
            else:
                self._named[hash(link.producer), link.sequence] = link

    def see(self, link: Link) -> None:
        """Note that the stream or the archive has an entry.

        A lost entry of the same producer with the same number was then sent again. If it has the same ID, it is this
        entry itself: the server has got it back. So is a lost entry without a producer that has the same ID.
        """
        if link.producer is None:
            if self._nameless.get(link.id) == link:
                self._back.add(self._nameless.pop(link.id))
        elif self._named or self._replaced:
            lost = self._named.pop((hash(link.producer), link.sequence), None)
            if lost is not None:
                (self._back if lost.id == link.id else self._sent_again).add(lost)
            self._replaced.pop((hash(link.producer), link.sequence), None)

    def report(self, report: Verification, begins: StreamID, gaps: Sequence[tuple[StreamID, StreamID]]) -> None:
        """Report the lost entries that do not count; state those that count, or may count, under what is not proved.

        An entry counts if it was sent again. It may count if a snapshot was restored that ends at or after it: it
        counts if that snapshot was taken before the loss. It may also count if it has a producer and is before
        `begins`: an entry that was not seen may be the one that was sent again. So may one in a gap of the archive: the
        server may have got it back before workers trimmed it.

        Args:
            report: The report.
            begins: The ID from which every entry of the stream and the archive was seen.
            gaps: The gaps of the archive: of each, the ID after which it begins, and its last ID.
        """
        missing, restored, unknown, passed = _Sum(), _Sum(), _Sum(), _Sum()
        for link in (*self._named.values(), *self._nameless.values()):
            if any(after < link.id <= until for after, until in gaps):
                passed.add(link)
            elif self._restored is not None and link.id <= self._restored:
                restored.add(link)
            else:
                (unknown if link.producer is not None and link.id < begins else missing).add(link)
        stream = self._keys.stream
        if unknown.entries:
            report.limit(
                "archive",
                f"{stream}: whether {unknown} in files *.parquet.lost count. They do if producers sent them again, but "
                f"later entries are in neither the stream nor the archive. {_REBUILT.capitalize()}",
            )
        if passed.entries:
            report.limit(
                "archive",
                f"{stream}: whether {passed} in files *.parquet.lost count. They are in a gap of the archive: they do "
                "if the server got them back, and workers trimmed them later",
            )
        if missing.entries:
            report.find("archive.set_aside", f"{stream}: {missing}; {_REBUILT}", times=missing.entries)
        if restored.entries and self._restored is not None:
            report.limit(
                "archive",
                f"{stream}: whether {restored} in files *.parquet.lost count. They do if the restored snapshot, which "
                f"ends at {utc(self._restored[0])}, was taken before the server lost them. {_REBUILT.capitalize()}. If "
                "they count, move the files out of the archive",
            )
        replaced = _Sum()
        for link in self._replaced.values():
            replaced.add(link)
        if replaced.entries:
            report.limit(
                "archive",
                f"{stream}: whether {replaced} in files *.parquet.counted count. They were in the counters of a "
                f"restored snapshot, which a rebuild or another restore has replaced. {_REBUILT.capitalize()}",
            )
        if self._back.entries:
            report.limit(
                "archive",
                f"{stream}: that nothing needs {self._back} in files *.parquet.lost. The server has got these entries "
                "back, so they count. If there is no fault archive.gap or archive.lacks: move the files out of the "
                "archive",
            )
        if self._sent_again.entries:
            report.limit(
                "archive",
                f"{stream}: that nothing needs {self._sent_again} in files *.parquet.lost. They were sent again, so "
                "they count: move the files out of the archive",
            )


def check_earlier_topics(scene: Scene) -> None:
    """State, as not proved, how many lost entries of each earlier topic were not sent again before they were set aside.

    They may have been sent again later, or a restored snapshot may have them. If a file of a topic cannot be read, this
    is a fault, and the entries of the topic are not stated. Without an archive, do nothing.

    Raises:
        ConfigurationError: the URL of the archive cannot be used.
    """
    archive = scene.sources.archive
    if archive is None:
        return
    for topic in sorted(scene.deployment.earlier):
        try:
            missing = Store(archive.url, scene.deployment.layout.namespace, topic).missing()
        except ArchiveError as error:
            scene.report.find("archive.unreadable", f"topic {topic}: {error}")
            continue
        if missing:
            scene.report.limit(
                "archive",
                f"topic {topic}: whether {missing:,} entries in files *.parquet.lost count. They had not been sent "
                f"again when the archiver moved them there. {_REBUILT.capitalize()}",
            )


def _restored(client: Any, keys: PartitionKeys) -> StreamID | None:
    """Return the ID up to which a restored snapshot had counted, if the live generation has these counts.

    `None` if no snapshot was restored, or if a rebuild made this generation and lacked entries for it.
    """
    with client.pipeline(transaction=True) as pipeline:
        pipeline.execute_command("HGET", keys.sequences, RESTORED)
        pipeline.execute_command("HGET", keys.ledger, "entries:backfilled")
        pipeline.get(keys.gone)
        restored, backfilled, gone = pipeline.execute()
    if restored is None:
        return None
    if keys.generation != FIRST and int((gone or b"0").split()[0]) > int(backfilled or 0):
        return None
    return parse_restored(restored)[0]
