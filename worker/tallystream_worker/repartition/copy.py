"""Copies the entries of one topic into another, each event once and into the partition of its subject.

Marks in the new topic record what was copied: for each pair of an old and a new partition, the ID of the last entry of
the old one whose events for the new one were copied. An interrupted copy continues from the lowest mark, and skips the
new partitions that are further. The sequence of a copied entry is the time in the stream ID of the old entry. This
time, or the time that the old entry states, decides which of its events are late.
"""

from __future__ import annotations

from functools import lru_cache
from heapq import merge
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError, RedisError

from tallystream.errors import CodecError, EventError, KeyLost, StreamError
from tallystream.rules.retraction import applying
from tallystream.storage.keys import FIRST_TOPIC, partition_of
from tallystream.storage.scripts import Script
from tallystream.wire.codec import (
    COPIED,
    VERSION,
    decode,
    encode,
    retraction_field,
    split,
    stated_events,
    time_fields,
    was_sequenced,
)
from tallystream.wire.stream_id import parse_id
from tallystream_worker.counting.dropped import is_whole, without
from tallystream_worker.dead_letters.store import dropped
from tallystream_worker.rebuild.source import archived_entries, stream_entries
from tallystream_worker.repartition.reading_marks import HOLDER, EntriesGone

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    import redis

    from tallystream.rules.retraction import Retraction
    from tallystream.storage.keys import Layout
    from tallystream.wire.codec import Payload
    from tallystream_worker.counting.dropped import DroppedLetter
    from tallystream_worker.counting.entry import Entry
    from tallystream_worker.repartition.reading_marks import ReadingMarks

_COPY: Final = Script("tallystream_worker.repartition", "copy")
_HOLD: Final = Script("tallystream_worker.repartition", "hold")

_PAGE_ENTRIES: Final = 200
_PAGE_BYTES: Final = 2**20
"""Bytes of one page, for all partitions together; with the entries of a page, it limits how long a call blocks the
server."""

_KNOWN: Final = 20_000
"""Number of subjects of an old partition whose new partition is cached."""

CopyPart = tuple[int, list[Any]]
"""The number of a new partition, and the arguments of copy.lua for the events of one entry that belong there."""


class CopiedElsewhere(StreamError):
    """Raised if another process copies the same entries, or the topic that is copied to was given up or replaced.

    Also raised if servers have gone back to older data in a failover. Unless the topic was given up or replaced, call
    `look` to read the marks again, and continue from them.
    """


class StreamCopier:
    """Copies one topic into another. Not thread-safe; several processes may copy the same topics at the same time.

    Call `look` once, then the object for each pass; `mark` and `hold` depend on what `look` has read.

    Args:
        client: The server of both topics.
        old: The topic to read.
        new: The topic to write.
        retracted: Retractions of the old topic; the copies of their events are marked with them.
        archive: URL of the old topic's archive, for entries that are gone from its streams; `""` if none.
        spread: The metrics whose events (without an id) may be in any partition of the old topic.
        accept_loss: Whether to copy even if the archive lacks some of the entries that are gone.
        reading: The records in the old partitions of how far they are read; `None` to record nothing. Without them,
            entries that an old partition loses and gets again are copied twice.
        confirm: Called with a text on what was written, before a retention hold moves; see `process.barrier`.
    """

    def __init__(
        self,
        client: redis.Redis,
        old: Layout,
        new: Layout,
        retracted: Sequence[Retraction] = (),
        archive: str = "",
        *,
        spread: Collection[str] = (),
        accept_loss: bool = False,
        reading: ReadingMarks | None = None,
        confirm: Callable[[str], Any] = lambda _: None,
    ) -> None:
        self._client = client
        self._old, self._new = old, new
        self._reading, self._confirm = reading, confirm
        self._ends: list[str] = ["+"] * old.partitions
        self._retracted = retracted
        self._archive = archive
        self._spread = spread
        self._accepts_loss = accept_loss
        self._archived_wholly: set[int] = set()
        self._marks: list[dict[int, str]] = []
        self._dropped: list[dict[str, list[DroppedLetter]]] = []
        self._homes = [lru_cache(_KNOWN)(self._home_from(source)) for source in range(old.partitions)]
        self.entries = 0
        """The number of entries of the old topic that this object has copied."""

    def look(self) -> None:
        """Read the marks, up to which entries are copied, and the records of dropped dead letters.

        The events of dead letters with a record are not copied. Call it again after a `CopiedElsewhere`. The records
        are read only here, so place the retention hold `HOLDER` on each old stream first: while it is there, no dead
        letter is dropped with a record.

        Raises:
            ScanBroken: a node failed over while the dropped dead letters were read; call again.
            CodecError: the record of a dropped dead letter is damaged.
            redis.RedisError: the server does not reply, or rejects a command.
        """
        self._dropped = [dropped(self._client, keys) for keys in self._old.keys]
        with self._client.pipeline(transaction=False) as pipeline:
            for keys in self._new.keys:
                pipeline.execute_command("HGETALL", keys.copied)
            found = pipeline.execute()
        self._marks = [{int(source): mark.decode() for source, mark in marks.items()} for marks in found]

    def mark(self, source: int) -> str:
        """Return the ID up to which all new partitions have the entries of old partition `source`; `0-0` at first.

        The marks are those that `look` read, moved by what this object has copied since; `ValueError` before `look`.
        """
        return min((marks.get(source, "0-0") for marks in self._marks), key=parse_id)

    def __call__(self, show: Callable[[], Any] = lambda: None) -> int:
        """Copy all entries after the marks, and move the retention holds; return how many entries were copied.

        With `reading`, entries that are appended during the call are left out.

        The result counts entries of the old topic, also those of which no event had to be copied. The marks are read
        first if `look` was not called; the holds stay if there was nothing to copy.

        Args:
            show: Called after each full page (200 entries, or 1 MiB of them).

        Raises:
            CopiedElsewhere: another process copies the same entries, or servers have gone back to older data; call
                `look`, then copy again. Or the new topic was given up or replaced.
            StreamError: an archive is given, entries are neither in the streams nor in it, and no loss is accepted.
                Without an archive, this is not checked. Or (`EntriesTrimmed`) entries were trimmed while the streams
                were read, an old stream was replaced, an old partition lacks its retention hold, (`EntriesGone`) an old
                partition lacks entries that were copied, or (`KeyLost`) an old stream was deleted or a partition has
                lost a key. Earlier pages are copied.
            Unconfirmed: the entries to copy, or the copies, were not confirmed in time; the holds stay. Any other error
                of `confirm` is raised too.
            ArchiveError, CodecError: the archive cannot be read, a file of it is missing, or a row is damaged.
            ScanBroken, CodecError: see `look`.
            ConfigurationError: the URL of the archive cannot be used.
            ImportError: archived entries are needed, and the package pyarrow is not installed.
            redis.RedisError: the last page may be copied or not; call `look`, then copy again. Also raised if an
                archive is given and an old stream does not exist.
        """
        if not self._marks:
            self.look()
        before = self.entries
        if self._reading is not None:
            self._ends = self._read(self._reading)
        page: list[tuple[int, Entry]] = []
        size = 0
        for source, entry in merge(*map(self._from, range(self._old.partitions)), key=_order):
            page.append((source, entry))
            size += len(entry.fields.get(b"b", b""))
            if len(page) == _PAGE_ENTRIES or size > _PAGE_BYTES:
                self._copy(page)
                page, size = [], 0
                show()
        if page:
            self._copy(page)
        if self._reading is not None:
            self._reading.ensure(self._ends)
        if self.entries != before:
            self.hold()
        return self.entries - before

    def _read(self, reading: ReadingMarks) -> list[str]:
        """Record that the old partitions are read to their ends, and return the ID of each end.

        Raises:
            CopiedElsewhere: old and new partitions have gone back to older data together; the marks are read again.

        The errors of `advance` and `look` are raised too.
        """
        try:
            return reading.advance(self._furthest())
        except EntriesGone:
            self.look()
            reading.advance(self._furthest())
            raise CopiedElsewhere(
                "the server has gone back to older data while entries were copied: run the command again"
            ) from None

    def _furthest(self) -> list[str]:
        """Return, by old partition, the ID up to which entries of it were copied to any new partition."""
        return [
            max((marks.get(source, "0-0") for marks in self._marks), key=parse_id)
            for source in range(self._old.partitions)
        ]

    def hold(self) -> None:
        """Set the retention hold of each old partition to its mark, so that only copied entries are trimmed.

        Call `look` before, else this raises a `ValueError`. This calls `confirm` (see the class) before it moves a
        hold, because entries that are trimmed could not be copied again. A hold does not change if the partition has
        no stream, or if no repartition to this new topic reads the partition any more, because it was given up or
        another one has begun.

        Raises:
            redis.RedisError: the server does not reply, or rejects a command; some holds may have changed.

        Any error of `confirm`, such as `Unconfirmed`, is raised too; then no hold changes.
        """
        self._confirm("entries are copied")
        for source, keys in enumerate(self._old.keys):
            names = [keys.stream, keys.sequences, keys.retention_holds]
            _HOLD(self._client, names, [self._new.topic, HOLDER, self.mark(source)])

    def _from(self, source: int) -> Iterator[tuple[int, Entry]]:
        """Yield pairs of `source` and an entry of this old partition after its mark: archived ones first.

        If the stream has an entry up to the mark, or this object has read the archive before, the archive is left out.
        With `reading`, the entries of the stream are those up to the end that was recorded last.

        Raises:
            StreamError, redis.RedisError: see `_archived` and `stream_entries`.
            ArchiveError, CodecError, ConfigurationError, ImportError: see `_archived`.
        """
        mark, keys = self.mark(source), self._old.keys[source]
        if self._archive and source not in self._archived_wholly:
            held = next(stream_entries(self._client, keys, count=1), None)
            if held is None or parse_id(mark) < parse_id(held.id):
                for entry in self._archived(source, mark, None if held is None else held.id):
                    mark = entry.id
                    yield source, entry
            self._archived_wholly.add(source)
        for entry in stream_entries(
            self._client, keys, "" if mark == "0-0" else mark, self._ends[source], count=_PAGE_ENTRIES
        ):
            yield source, entry

    def _archived(self, source: int, mark: str, before: str | None) -> Iterator[Entry]:
        """Yield the archived entries of an old partition after the ID `mark` and before `before` (`None`: to the end).

        Raises:
            StreamError: entries are neither in the stream nor in the archive, also entries up to `mark`, and no loss
                is accepted; raised at the end.
            ArchiveError, CodecError: the archive cannot be read, a file of it is missing, or a row is damaged.
            ConfigurationError, ImportError: see `archived_entries`.
            redis.RedisError: there is no stream, or the server does not reply.
        """
        stream = self._old.keys[source].stream
        about: dict[str, Any] = self._client.xinfo_stream(stream)
        gone = int(about["entries-added"]) - int(about["length"])
        for entry in archived_entries(self._archive, self._old.keys[source], source, "0-0", before):
            gone -= 1
            if parse_id(entry.id) > parse_id(mark):
                yield entry
        if gone > 0 and not self._accepts_loss:
            raise StreamError(
                f"{stream}: {gone:,} entries are neither in the stream nor in the archive, so the new counters would "
                "lack them. Name another archive, or repartition without them (--accept-loss)"
            )

    def _copy(self, page: Sequence[tuple[int, Entry]]) -> None:
        parts: list[list[tuple[int, str, list[Any]]]] = [[] for _ in self._new.keys]
        ends: dict[int, str] = {}
        for source, entry in page:
            ends[source] = entry.id
            for home, part in self._parts(source, entry):
                parts[home].append((source, entry.id, part))
        calls: dict[int, list[Any]] = {}
        for home, marks in enumerate(self._marks):
            further = [source for source, end in ends.items() if _behind(end, marks, source)]
            moves = [(source, marks.get(source, ""), ends[source]) for source in further]
            if moves:
                flat = [argument for move in moves for argument in move]
                new = [part for source, id_, part in parts[home] if _behind(id_, marks, source)]
                calls[home] = [len(moves), *flat, *(argument for part in new for argument in part)]
        self._send(calls)
        for home in calls:
            self._marks[home].update({s: end for s, end in ends.items() if _behind(end, self._marks[home], s)})
        self.entries += len(page)

    def _send(self, calls: dict[int, list[Any]]) -> None:
        while calls:
            with self._client.pipeline(transaction=False) as pipeline:
                for home, arguments in calls.items():
                    keys = self._new.keys[home]
                    _COPY.queue(pipeline, [keys.stream, keys.copied, keys.topic_ledger], arguments)
                replies = dict(zip(calls, pipeline.execute(raise_on_error=False), strict=True))
            again = {}
            for home, reply in replies.items():
                if isinstance(reply, NoScriptError):
                    again[home] = calls[home]
                elif isinstance(reply, RedisError):
                    raise reply
                elif reply[0] == b"closed" or (reply[0] == b"damaged" and not self._is_in_use()):
                    raise CopiedElsewhere(
                        f"{self._new.keys[home].stream}: its topic was given up or replaced meanwhile"
                    )
                elif reply[0] == b"damaged":
                    raise KeyLost(reply[1].decode())
                elif reply[0] != b"copied":
                    raise CopiedElsewhere(
                        f"{self._new.keys[home].stream}: it has the events of partition {reply[1].decode()} up to "
                        f"{reply[2].decode() or 'nothing'}, which this process has not copied: another repartition is "
                        "copying the same events, or the server has gone back to older data in a failover. If no other "
                        "one runs, run the command again"
                    )
            if again:
                _COPY.load(self._client)
            calls = again

    def _is_in_use(self) -> bool:
        """Return whether the new topic is live or is being filled; `True` if the root hash describes no deployment."""
        topics: list[bytes | None] = self._client.execute_command("HMGET", self._new.root, "log", "moving", "epoch")
        live, moving, epoch = topics
        return epoch is None or b"%d" % self._new.topic in (live or b"%d" % FIRST_TOPIC, moving)

    def _parts(self, source: int, entry: Entry) -> Iterator[CopyPart]:
        """Yield the parts of an entry, one for each new partition of its events.

        Each part is marked with the retractions that remove events of it. An entry that cannot be decoded is a single
        part: it is marked with all retractions that apply to it (a plain entry with none), and is dead-lettered in the
        new topic again. Events of dead letters that were dropped with a record are left out, and with them an entry
        that was dropped whole.
        """
        gated = was_sequenced(entry.fields)
        retractions = applying(self._retracted, self._old.keys[source].stream, entry.id, entry.fields)
        letters = self._dropped[source].get(entry.id, ())
        if is_whole(letters):
            return
        try:
            payload: Payload = without(decode(entry.fields, entry.received), letters)
        except (CodecError, EventError):
            # The entry cannot be decoded: copy it whole, and it is dead-lettered in the new topic too.
            fields = dict(entry.fields)
            if gated:
                fields.pop(b"d", None)
                fields.pop(b"r", None)
                fields |= retraction_field(retractions)
                fields |= {b"p": COPIED, b"q": b"%d" % entry.id_time}
            yield source % self._new.partitions, _part(entry, stated_events(fields) if gated else 0, fields)
            return
        for home, part in split(payload, self._homes[source]).items():
            events = part.events
            if not events and not part.resets:
                continue
            marks = [place for place, each in retractions.items() if each.without(part).events < events]
            fields = {b"v": VERSION} | time_fields(entry.fields) | {b"p": COPIED, b"q": b"%d" % entry.id_time}
            fields |= retraction_field(marks) | {b"n": b"%d" % events, b"b": encode(part)}
            yield home, _part(entry, events, fields)

    def _home_from(self, source: int) -> Callable[[str, str, bool], int]:
        """Return a function (metric, subject, whether the event has an id) -> number of the new partition of an event.

        The function is for events of old partition `source`. Events that were in a wrong partition get a wrong one
        again, so that they are dead-lettered again. But if the new topic has one partition, none is wrong: these events
        get it too, and are counted there.
        """
        before, after = self._old.partitions, self._new.partitions

        def home(metric: str, subject: str, has_id: bool) -> int:  # called with positional arguments
            right = partition_of(subject, after)
            was_right = partition_of(subject, before) == source or (metric in self._spread and not has_id)
            return right if was_right else (right + 1) % after

        return home


def _part(entry: Entry, events: int, fields: dict[bytes, bytes]) -> list[Any]:
    flat = [argument for field in fields.items() for argument in field]
    return [entry.id.partition("-")[0], events, len(flat), *flat]


def _behind(id_: str, marks: dict[int, str], source: int) -> bool:
    return parse_id(id_) > parse_id(marks.get(source, "0-0"))


def _order(pair: tuple[int, Entry]) -> tuple[int, int]:
    return parse_id(pair[1].id)
