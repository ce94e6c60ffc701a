"""Checks the entries of each partition, from the first archived one to the last of the stream, with the producers.

One pass over the archive and the stream, side by side: the files of the archive adjoin, each of its entries that the
stream should still have is there with the same events, and each producer's entries have successive numbers. Then the
records in the sequences are compared with the last entry of each producer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tallystream.storage.keys import FIRST, FIRST_TOPIC, REAPED, REAPED_SPOOL
from tallystream.storage.stored_values import RECORD
from tallystream.wire.stream_id import StreamID, id_text, parse_id
from tallystream_worker.counting.entry import Entry
from tallystream_worker.verify.archived import ArchivedLinks
from tallystream_worker.verify.archived_rows import RowComparison
from tallystream_worker.verify.pages import PAGE, pages
from tallystream_worker.verify.scene import Scene, utc
from tallystream_worker.verify.sequence_walk import SOURCE, Link, SequenceWalk, link_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.archive.store import Store
    from tallystream_worker.verify.set_aside import SetAside

_RANDOM_NAME: Final = frozenset(b"0123456789abcdef")
_RANDOM_LENGTH: Final = 16


def check(scene: Scene) -> None:
    """Report entries that were lost or appended twice, in the streams, in the archive, and for each producer.

    Also report entries that differ between stream and archive, streams that were deleted, and ledgers and records of
    producers that disagree with the entries. What agrees is added as proved. Report a limit for entries that are not
    archived yet. If there is no archive, report a limit, unless `failed` states already why it cannot be used.

    Raises:
        ArchiveError: the archive cannot be listed. A file that cannot be read is only reported.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    if scene.sources.archive is None:
        if not any(each.check == "archive" for each in scene.report.failed):
            scene.report.limit("archive", "no archive is configured (--archive URL), so no entry was compared with one")
    else:
        from tallystream_worker.verify.set_aside import check_earlier_topics  # noqa: PLC0415  # pyarrow is an extra

        check_earlier_topics(scene)
    for number, keys in enumerate(scene.deployment.layout.keys):
        if scene.client.exists(keys.stream):
            _Partition(scene, number, keys).check()
        elif entries := _appended(scene, keys):
            scene.report.find("log.missing", f"{keys.stream}: at least {entries:,} entries were appended")
            scene.report.explain("log.missing")
        else:
            scene.report.limit(
                "log",
                f"{keys.stream} does not exist, and the ledger has no entry of it: a worker creates it",
            )


def _appended(scene: Scene, keys: PartitionKeys) -> int:
    """Return how many entries a partition without a stream has had at least, by its ledgers; 0 if they state none."""
    with scene.client.pipeline(transaction=True) as pipeline:
        pipeline.execute_command("HGET", keys.topic_ledger, "entries:gated")
        pipeline.execute_command("HGET", keys.ledger, "entries:settled")
        return max(int(value or 0) for value in pipeline.execute())


class _Partition:
    def __init__(self, scene: Scene, number: int, keys: PartitionKeys) -> None:
        self._scene, self._client, self._report = scene, scene.client, scene.report
        self._faults_before = scene.report.faults
        self._keys = keys
        # Before the files are listed: everything up to this position is in a file then.
        archive = scene.sources.archive
        self._archived = None if archive is None else ArchivedLinks(self._client, archive, keys, number, scene.report)
        self._set_aside = None if archive is None else _set_aside(scene, archive, keys, number)
        self._about, ledger = self._moment()
        self._appended, plain, self._gated, retired = (int(value or 0) for value in ledger)
        self._appended -= plain
        self._until = _id(self._about["last-generated-id"])
        self._retired = retired
        first = self._about["first-entry"]
        self._held = None if first is None else _id(first[0])
        """The first ID of the stream when the check began; `None` if the stream was empty."""
        self._gone = self._about["entries-added"] - self._about["length"]
        self._walk = SequenceWalk(is_whole=self._gone == 0)
        self._lost: list[tuple[StreamID, StreamID]] = []
        self._comparison = RowComparison(self._note_content)
        self._only_archived, self._last_alone = 0, (0, 0)
        self._compared, self._waiting, self._last_archived = 0, 0, (0, 0)
        self._archive_faults = 0

    def _moment(self) -> tuple[Any, Any]:
        with self._client.pipeline(transaction=True) as pipeline:
            pipeline.xinfo_stream(self._keys.stream)
            pipeline.execute_command(
                "HMGET", self._keys.topic_ledger, "appended", "plain", "entries:gated", "entries:retired"
            )
            pipeline.execute_command("HGET", self._keys.ledger, "entries:removed")
            about, ledger, self._removed = pipeline.execute()
        return about, ledger

    def check(self) -> None:
        if self._about["entries-added"] < self._gated:
            self._report.find("log.missing", f"{self._keys.stream}: the present stream was created later")
        self._deletions()
        if self._archived is not None:
            self._archived.check_files(self._held, self._until)
            if self._gone and self._archived.is_whole and self._archived.reaches(self._held, self._until):
                self._walk = SequenceWalk(is_whole=True)
            self._lost = self._archived.lost
        self._walk_all()
        if self._set_aside is not None:
            gaps = [] if self._archived is None else self._archived.gaps
            self._set_aside.report(self._report, self._walk.begins, gaps)
        self._compare_ledger()
        self._compare_records()
        self._prove()
        self._prove_archive()

    def _deletions(self) -> None:
        stream = self._keys.stream
        removed = int(self._removed or 0)
        if (more := self._gone - self._retired - removed) > 0:
            self._report.find(
                "log.removed",
                f"{stream}: {more:,} entries more than entries:retired and entries:removed in the ledger",
                times=more,
            )
        if removed > 0:
            self._report.limit("log", f"{stream}: another client removed {removed:,} entries, which the ledger states")
        deleted = self._about.get("max-deleted-entry-id")
        if deleted is not None and self._held is not None and _id(deleted) > self._held:
            self._report.find("log.deleted", f"{stream}: the last one deleted is {deleted.decode()}")

    def _walk_all(self) -> None:
        held = _Ahead(self._held_links())
        archived = _Ahead(
            iter(()) if self._archived is None else self._archived.links(self._held, self._until, self._walk.interrupt)
        )
        # An iterator may interrupt the walk, so `step` comes after the entry was added.
        while held.next is not None or archived.next is not None:
            old, new = archived.next, held.next
            if old is not None and (new is None or old.id <= new.id):
                self._last_archived = max(self._last_archived, old.id)
                if self._walk.entries and old.id <= self._walk.last:
                    self._find_in_archive("archive.repeated", f"entry {id_text(old.id)}")
                elif new is not None and old.id == new.id:
                    self._compared += 1
                    self._compare_events(old, new)
                    self._add(new, is_archived=False)
                    held.step()
                else:
                    self._note_unknown(old)
                    self._only_archived, self._last_alone = self._only_archived + 1, old.id
                    self._add(old, is_archived=True)
                archived.step()
            elif new is not None:
                if self._archived is not None and self._archived.should_have(new.id):
                    self._find_in_archive("archive.lacks", f"entry {id_text(new.id)}")
                elif new.id > self._last_archived and archived.next is None and not self._is_unreadable(new.id):
                    self._waiting += 1
                self._add(new, is_archived=False)
                held.step()
        self._comparison.finish()
        if self._only_archived:
            self._report.limit(
                "archive",
                f"{self._keys.stream}: subjects, amounts and actors of {self._only_archived:,} entries up to "
                f"{id_text(self._last_alone)}, because only the archive has these entries",
            )
        self._pass_lost((2**64, 0))

    def _is_unreadable(self, id_: StreamID) -> bool:
        return self._archived is not None and self._archived.is_unreadable(id_)

    def _pass_lost(self, id_: StreamID) -> None:
        """Interrupt the walk, and report a limit, for each lost range in `_lost` that begins before an ID.

        Call it before the entry with this ID is added to the walk. The entries of a lost range may exist only as
        counters. A restore makes the first generation; so if a later one is live, a rebuild has left them out since.
        The ranges are removed from `_lost`, so each is reported once. After an interruption, the next entry of each
        producer may have any number.
        """
        while self._lost and self._lost[0][0] < id_:
            after, until = self._lost.pop(0)
            self._walk.interrupt()
            loss = "a restored snapshot was newer than the archive, and the server had lost these entries"
            if self._keys.generation == FIRST:
                place = f"which exist only as counters: {loss}"
            else:
                place = f"which neither log nor counters have: {loss}. Then a rebuild or a retraction left them out"
            self._report.limit(
                "log", f"{self._keys.stream}: entries after {id_text(after)} up to {id_text(until)}, {place}"
            )

    def _add(self, link: Link, *, is_archived: bool) -> None:
        self._pass_lost(link.id)
        if self._set_aside is not None:
            self._set_aside.see(link)
        fault = self._walk.add(link)
        if fault is not None:
            names = ("archive.skips", "archive.repeated") if is_archived else ("log.gap", "log.repeated")
            if is_archived:
                self._find_in_archive(names[fault.is_repeat], fault.text)
            else:
                self._report.find(names[fault.is_repeat], f"{self._keys.stream}: {fault.text}")

    def _find_in_archive(self, name: str, text: str) -> None:
        self._archive_faults += 1
        self._report.find(name, f"{self._keys.stream}: {text}")

    def _compare_events(self, old: Link, new: Link) -> None:
        """Report the archived entry `old` if it differs from `new`, the entry of the stream with the same ID.

        It is also reported, without a comparison of its events, if it has no `content`: it is in a file whose name
        states only earlier entries. The events may be compared later, and a difference is reported then.
        """
        if old != new:
            self._note_content(id_text(new.id), f"{new.events:,} events, archived with {old.events:,}")
        elif old.content is None:
            self._note_content(id_text(new.id), "archived in a file whose name states only earlier entries")
        else:
            self._comparison.add(new.content, old.content)

    def _note_content(self, id_: str, difference: str) -> None:
        self._find_in_archive("archive.differs", f"entry {id_}: {difference}")

    def _note_unknown(self, link: Link) -> None:
        """Report an archived entry that the caller has not found in the stream, as a fault `archive.unknown`.

        Do nothing if retention may have removed the entry, before or during the check.

        Raises:
            redis.RedisError: the server does not reply, or rejects the command.
        """
        if self._held is not None and link.id > self._held and link.id >= (self._first_now() or self._until):
            self._find_in_archive("archive.unknown", f"entry {id_text(link.id)}")

    def _first_now(self) -> StreamID | None:
        found = self._client.xrange(self._keys.stream, count=1)
        return _id(found[0][0]) if found else None

    def _held_links(self) -> Iterator[Link]:
        """Yield the entries of the stream, up to its last one when the check began.

        Interrupt the walk if retention may have removed entries between two pages.
        """
        after, until = "", id_text(self._until)
        while True:
            with self._client.pipeline(transaction=True) as pipeline:
                pipeline.xrange(self._keys.stream, f"({after}" if after else "-", until, count=PAGE)
                pipeline.xrange(self._keys.stream, count=1)
                page, first = pipeline.execute()
            if after and first and _id(first[0][0]) > parse_id(after):
                self._walk.interrupt()  # retention has passed this check: entries between two pages may be gone
            for id_, fields in page:
                after = id_.decode()
                yield link_of(Entry(after, fields))
            self._scene.show(f"{self._keys.stream}: {self._walk.entries:,} entries read")
            if len(page) < PAGE:
                return

    def _compare_ledger(self) -> None:
        walk = self._walk
        if self._gone or not walk.is_whole or self._keys.topic != FIRST_TOPIC:
            return  # the figures also contain entries that are gone; a copy of a plain entry is not in them
        if (walk.gated_entries, walk.gated_events) != (self._gated, self._appended):
            self._report.find(
                "log.differs",
                f"{self._keys.stream}: {walk.gated_entries:,} entries with {walk.gated_events:,} events, but the "
                f"ledger has {self._gated:,} with {self._appended:,}",
            )

    # -- producers --------------------------------------------------------------------------------------

    def _compare_records(self) -> None:
        later: list[tuple[bytes, int, StreamID]] = []
        seen: set[int] = set()  # HSCAN may return a field twice
        for producer, value in self._client.hscan_iter(self._keys.sequences, count=1000):
            if (
                producer.startswith(b"!")
                or (producer.startswith(SOURCE) and b"@" in producer)
                or hash(producer) in seen
            ):
                continue
            seen.add(hash(producer))
            record, last = _record(value), self._walk.take(producer)
            if record is None:
                self._find_record(producer, f"the value '{value.decode(errors='backslashreplace')}'", last)
            elif record[1] > self._until:
                later.append((producer, *record))
            elif last is None:
                if self._walk.first is not None and record[1] >= self._walk.first:
                    self._differs(producer, record, None)
            elif last != record:
                self._differs(producer, record, last)
            if len(later) >= PAGE:
                self._compare_later(later)
                later.clear()
        self._compare_later(later)
        self._compare_missing()

    def _compare_later(self, records: list[tuple[bytes, int, StreamID]]) -> None:
        """Report each record whose entry does not exist, or has another producer or number.

        Each record has the producer, the number and the ID of the entry, which was appended after the check began. An
        entry that retention has removed meanwhile is no fault.
        """
        with self._client.pipeline(transaction=False) as pipeline:
            for _, _, id_ in records:
                pipeline.xrange(self._keys.stream, id_text(id_), id_text(id_))
            pipeline.xrange(self._keys.stream, count=1)
            *found, first = pipeline.execute()
        for (producer, number, id_), page in zip(records, found, strict=True):
            link = link_of(Entry(id_text(id_), page[0][1])) if page else None
            if link is None and first and _id(first[0][0]) > id_:
                continue  # retention removed it meanwhile
            if link is None or (link.producer, link.sequence) != (producer, number):
                self._differs(producer, (number, id_), None)

    def _compare_missing(self) -> None:
        """Report producers without a record, except those whose record may have been removed for their silence.

        Producers whose last entry is not in the stream any more are left out. If the key of the records is lost, do
        nothing: the check of lost keys has reported it, and its repair differs.
        """
        if self._keys.sequences in self._report.lost:
            return
        for page in pages(self._walk.left()):
            with self._client.pipeline(transaction=False) as pipeline:
                for id_ in page:
                    pipeline.xrange(self._keys.stream, id_text(id_), id_text(id_))
                pipeline.hmget(self._keys.sequences, REAPED, REAPED_SPOOL)
                *entries, (drawn, spool) = pipeline.execute()
            for id_, entry in zip(page, entries, strict=True):
                producer = entry[0][1].get(b"p", b"") if entry else None
                if producer is None:
                    continue  # only the archive has it, and its name with it
                horizon = spool if producer.startswith(b"spool:") else drawn if _is_random(producer) else None
                if horizon is None or id_ >= _id(horizon.split()[0]):
                    self._report.find(
                        "sequences.missing", f"{self._keys.sequences}: {producer.decode(errors='replace')}"
                    )

    def _differs(self, producer: bytes, record: tuple[int, StreamID], last: tuple[int, StreamID] | None) -> None:
        self._find_record(producer, f"{record[0]:,} at {id_text(record[1])}", last)

    def _find_record(self, producer: bytes, record: str, last: tuple[int, StreamID] | None) -> None:
        there = (
            "the stream has no such entry" if last is None else f"its last entry is {last[0]:,} at {id_text(last[1])}"
        )
        self._report.find(
            "sequences.differ",
            f"{self._keys.sequences}: {producer.decode(errors='replace')} has {record}, but {there}",
        )

    def _prove_archive(self) -> None:
        """Add to the report how many entries are equal in stream and archive, and how many are not archived yet.

        Call it after `_walk_all`, which reports each entry that differs. Do nothing if no archive is configured. The
        first number is added as proved, or as not proved if any fault of this partition's archive was reported, other
        than one of the files that are set aside (see `SetAside`); it is left out if it is 0. The second one is added as
        a limit, unless it is 0.
        """
        if self._archived is None:
            return
        in_archive = self._archive_faults + self._archived.faults
        stream, waiting = self._keys.stream, "1 entry is" if self._waiting == 1 else f"{self._waiting:,} entries are"
        if self._compared:
            self._report.prove(
                "archive",
                f"{stream}: {self._compared:,} entries up to {id_text(self._last_archived)} "
                f"({utc(self._last_archived[0])}) are equal in stream and archive; {waiting} not archived yet",
                faults_before=self._report.faults - in_archive,
                stream=stream, entries=self._compared, until=self._last_archived[0] / 1000, not_archived=self._waiting,
            )  # fmt: skip
        if self._waiting:
            self._report.limit("archive", f"{stream}: {waiting} not archived yet, so only the stream has them")

    def _prove(self) -> None:
        walk, stream = self._walk, self._keys.stream
        if walk.first is None:
            self._report.prove(
                "log", f"{stream}: no entry is kept",
                faults_before=self._faults_before, stream=stream, entries=0, events=0,
            )  # fmt: skip
            return
        self._report.prove(
            "log",
            f"{stream}: from {id_text(walk.first)} ({utc(walk.first[0])}) to {id_text(walk.last)} "
            f"({utc(walk.last[0])}), {walk.entries:,} entries with {walk.events:,} events",
            faults_before=self._faults_before,
            stream=stream, first=id_text(walk.first), last=id_text(walk.last), since=walk.first[0] / 1000,
            until=walk.last[0] / 1000, entries=walk.entries, events=walk.events,
        )  # fmt: skip
        if not walk.is_whole:
            self._report.limit(
                "log",
                f"{stream}: entries before {id_text(walk.first)}, because neither stream nor archive has all of them",
            )


def _set_aside(scene: Scene, archive: Store, keys: PartitionKeys, number: int) -> SetAside:
    from tallystream_worker.verify.set_aside import SetAside  # noqa: PLC0415  # pyarrow is an extra

    return SetAside(scene.client, archive, keys, number, scene.report)


class _Ahead:
    """Reads an iterator of entries: `next` is the entry that was read last, `None` after the end.

    `step` reads the entry after it into `next`. The first entry is read when the object is made.
    """

    def __init__(self, links: Iterator[Link]) -> None:
        self._links = links
        self.next = next(links, None)

    def step(self) -> None:
        self.next = next(self._links, None)


def _record(value: bytes) -> tuple[int, StreamID] | None:
    """Return the number and the ID in the record of a producer; `None` if it has another form than scripts write."""
    found = RECORD.fullmatch(value)
    return None if found is None else (int(found[1]), (int(found[2]), int(found[3])))


def _is_random(producer: bytes) -> bool:
    return len(producer) == _RANDOM_LENGTH and _RANDOM_NAME.issuperset(producer)


def _id(raw: bytes) -> StreamID:
    return parse_id(raw.decode())
