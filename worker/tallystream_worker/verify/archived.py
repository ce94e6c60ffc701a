"""Reads the entries of one partition from the archive, and checks that the files adjoin.

The events are read only from files that may have entries of the stream, with which they are compared.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from tallystream.errors import TallyError
from tallystream.storage.keys import RESTORED
from tallystream.wire.codec import COPIED
from tallystream.wire.stream_id import StreamID, id_text, parse_id
from tallystream_worker.archive.counted_only import counted_only, find_counted_only, read_left_out
from tallystream_worker.counting.entry import Entry
from tallystream_worker.verify.archived_rows import ArchivedRows
from tallystream_worker.verify.sequence_walk import Link, link_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.archive.lost import LostEntries
    from tallystream_worker.archive.store import File, Join, Store
    from tallystream_worker.verify.report import Verification

_COLUMNS: Final = ["received", "received_n", "events", "producer", "sequence", "decided", "raw"]


class ArchivedLinks:
    """The archive of one partition, and what is wrong with its files; call `check_files` before the other methods.

    Args:
        client: The server; its consumer group tells what is archived.
        store: The archive.
        keys: The keys of the partition.
        number: The number of the partition.
        report: Gets the faults of the files.

    The files are listed when the object is made: `check_files` checks them, and `links` yields their entries. Entries
    that the server has lost, and the archiver will set aside, are reported by `check_files`, and left out of all else.

    Raises:
        ArchiveError: the archive cannot be listed.
        redis.RedisError: the server does not reply, or rejects a command.
    """

    def __init__(
        self, client: redis.Redis, store: Store, keys: PartitionKeys, number: int, report: Verification
    ) -> None:
        self._store, self._keys, self._number, self._report = store, keys, number, report
        self._position = _position(client, keys.stream)
        self._restored: bytes | None = client.execute_command("HGET", keys.sequences, RESTORED)
        self._left_out = read_left_out(client, keys)
        self._ahead = _ahead(client, store, keys, number)
        self._files = list(store.files(number))
        if self._ahead is not None:
            self._files = [file for file in self._files if file.first <= parse_id(self._ahead.after)]
        self._begins: StreamID | None = None
        self._unreadable: set[File] = set()
        self.faults = 0
        """How many faults were reported."""
        self.gaps: list[tuple[StreamID, StreamID]] = []
        """Gaps between or after the files, as in `lost`; known after `check_files`."""
        self.lost: list[tuple[StreamID, StreamID]] = []
        """Ranges of entries that only the counters may have: of each, the ID after which it begins, and its last ID.

        They are in ascending order, and known after `check_files`.
        """

    @property
    def is_whole(self) -> bool:
        """Whether the archive has every entry from the first that was ever appended to its last one.

        `False` before `check_files`, without files, and if a fault was reported or there is a range in `lost`.
        """
        return self._begins == (0, 0) and not self.faults and not self.lost

    def reaches(self, held: StreamID | None, until: StreamID) -> bool:
        """Return whether the archive reaches the first entry of the stream, so that no entry is missing between them.

        If the stream has entries, and the consumer group of the archive exists, the result is `True`, even without
        files, because retention removes only archived entries. Entries that another client removed may be missing.

        Args:
            held: The first ID of the stream; `None` if it is empty: then the files must reach `until`.
            until: The last ID that the stream generated.
        """
        last = self._end
        # An entry that was removed from the stream was archived before: trimming stops at the group of the archive.
        return last >= until if held is None else last >= held or self._position is not None

    def should_have(self, id_: StreamID) -> bool:
        """Return whether an entry of the stream must be in a file.

        `False` if there are no files, if nothing archives the stream, if the entry precedes the beginning of the
        archive, if it is not archived yet, or if `is_unreadable` returns `True` for it.
        """
        if self._begins is None or self._position is None or self.is_unreadable(id_):
            return False
        return self._begins < id_ <= self._position

    def is_unreadable(self, id_: StreamID) -> bool:
        """Return whether an ID is in the range of a file that was reported, so far, because it cannot be read."""
        return any(file.first <= id_ <= file.last for file in self._unreadable)

    def check_files(self, held: StreamID | None, newest: StreamID) -> None:
        """Report files that overlap or cannot be read, gaps, and entries that the server has lost; set `lost`.

        Entries that the server has lost are also added to `ahead` of the report. If the last restore left them out,
        because the snapshot has their events, report a limit instead. Without files, report a fault only if the stream
        still has entries that are marked as archived. If the archive begins after the first entry that was ever
        appended, and the stream has no earlier one either, report a limit instead of a gap before the files.

        Args:
            held: The first ID of the stream; `None` if it is empty.
            newest: The last ID that the stream generated, read after this object was made: if the archive ends later,
                the server has lost entries.
        """
        if self._ahead is not None and self._is_left_out(self._ahead):
            self._report.limit(
                "archive",
                f"{self._keys.stream}: that nothing needs {self._ahead.entries:,} archived entries with "
                f"{self._ahead.events:,} events that the restored stream lacks. Their producers had sent them again, "
                "and the restored snapshot has their events: the archiver moves these entries to files "
                "*.parquet.counted",
            )
        elif self._ahead is not None:
            self._fault("archive.ahead", _told(self._ahead))
            self._report.explain("archive.ahead")
            self._report.ahead[self._number] = self._ahead
        if not self._files:
            if self._ahead is None and self._position is not None and held is not None and held <= self._position:
                self._fault("archive.missing", f"entries from {id_text(held)} to {id_text(self._position)}")
            return
        joins = [self._join(file) for file in self._files]
        self.lost = [(join.before, join.lost) for join in joins if join is not None and join.lost is not None]
        for (file, later), join in zip(pairwise(self._files), joins[1:], strict=True):
            if later.first <= file.last:
                self._fault("archive.overlap", f"{file.path} ends at {id_text(file.last)}, after {later.path} begins")
            elif join is not None and join.before > file.last:
                self._gap(file.last, join.before, f"before {later.path}")
        end = self._end
        if end > newest:
            self._fault("archive.ahead", f"the archive ends at {id_text(end)}, the stream at {id_text(newest)}")
            self._report.explain("archive.ahead")
        self._add_unstated(held)
        if self._position is not None and self._position > end:
            self._gap(end, self._position, "after the last file")
        if joins[0] is None:
            self._begins = self._files[0].first  # or earlier: only the file that cannot be read states it
            return
        self._begins = joins[0].before
        if held is not None and held <= self._begins:
            self._fault("archive.gap", f"between {id_text(held)} and {id_text(self._begins)}, before the first file")
        elif self._begins != (0, 0):
            self._report.limit(
                "archive", f"{self._keys.stream}: entries up to {id_text(self._begins)}, before the archive begins"
            )

    def _add_unstated(self, held: StreamID | None) -> None:
        """Add the range in `_unstated` to `lost`, because the file that will state it may not be written yet.

        Do nothing if there is no such range, if a range in `lost` contains it, or if the stream begins at or before the
        last ID of the range. `held` is the first ID of the stream; `None` if it is empty.
        """
        found = self._unstated
        if found is None or (held is not None and held <= found[1]):
            return
        if not any(after <= found[0] and found[1] <= until for after, until in self.lost):
            self.lost = sorted([*self.lost, found])

    @cached_property
    def _unstated(self) -> tuple[StreamID, StreamID] | None:
        """The range that only the counters may have since the last restore, as in `lost`.

        `None` if there is none, or if it cannot be read from the archive.
        """
        if self._restored is None:
            return None
        if (until := counted_only(self._restored, self._end)) is not None:
            return self._end, until
        with suppress(TallyError):  # `links` reports a file that cannot be read
            return find_counted_only(self._store, self._number, self._restored)
        return None

    def _is_left_out(self, ahead: LostEntries) -> bool:
        """Return whether the last restore left these archived entries out, because the snapshot has their events.

        `False` if not all of them are in `sent_again`, if an archiver has run since, if the restore read no archive, or
        if one of them was appended after the restore.
        """
        if self._unstated is None or ahead.sent_again < ahead.entries:
            return False
        if self._left_out is None or parse_id(ahead.until) > self._left_out.until:
            return False
        return self._position is None or self._position <= self._unstated[0]

    def links(self, held: StreamID | None, until: StreamID, interrupt: Callable[[], object]) -> Iterator[Link]:
        """Yield the archived entries in the order of the files, without those after the ID `until`.

        The files are those that were listed when this object was made. A file that cannot be read to its end is
        reported, and the rest of its entries are left out.

        Args:
            held: The first ID of the stream; a file that reaches it is read whole, and its entries have a `content`.
                `None` for an empty stream.
            until: The last ID to yield.
            interrupt: Called after each file that cannot be read to its end, if the stream may lack entries of it.
        """
        for file in self._files:
            try:
                for link in links_of(self._store, file, is_whole=held is not None and file.last >= held):
                    if link.id <= min(until, self._end):
                        yield link
            except TallyError as error:
                self._note_unreadable(file, error)
                if held is None or file.first < held:
                    interrupt()

    @property
    def _end(self) -> StreamID:
        """The ID of the last archived entry that the server has not lost; `(0, 0)` if there is none."""
        last = self._files[-1].last if self._files else (0, 0)
        return last if self._ahead is None else min(last, parse_id(self._ahead.after))

    def _join(self, file: File) -> Join | None:
        """Return how a file joins the one before; if it cannot be read, report it and return `None`."""
        try:
            return self._store.join(file)
        except TallyError as error:
            self._note_unreadable(file, error)
            return None

    def _note_unreadable(self, file: File, error: TallyError) -> None:
        if file not in self._unreadable:
            self._unreadable.add(file)
            text = str(error) if file.path in str(error) else f"{file.path}: {error}"
            self._fault("archive.unreadable", text)

    def _gap(self, after: StreamID, until: StreamID, place: str) -> None:
        self.gaps.append((after, until))
        self._fault("archive.gap", f"between {id_text(after)} and {id_text(until)}, {place}")

    def _fault(self, name: str, text: str) -> None:
        self.faults += 1
        self._report.find(name, f"{self._keys.stream}: {text}")


def links_of(store: Store, file: File, *, is_whole: bool) -> Iterator[Link]:
    """Yield the entries of one file, each with its rows as `content` if `is_whole`.

    Raises:
        ArchiveError, CodecError: the file cannot be read, or a row is damaged; raised while the entries are iterated.
    """
    from tallystream_worker.archive.rows import SCHEMA, raw_fields  # noqa: PLC0415  # pyarrow is an extra

    table = store.columns(file, SCHEMA.names if is_whole else _COLUMNS)
    columns = {name: table.column(name).to_pylist() for name in _COLUMNS[1:]}
    received, numbers = table.column("received").cast("int64").to_pylist(), columns["received_n"]
    start, rows = 0, len(received)
    while start < rows:
        id_, events, row = (received[start], numbers[start]), 0, start
        while row < rows and (received[row], numbers[row]) == id_:
            events += columns["events"][row]
            row += 1
        producer, raw = columns["producer"][start], columns["raw"][start]
        if raw is not None:
            link = link_of(Entry(id_text(id_), raw_fields(raw)))
        elif producer is None:
            link = Link(id_, events, is_gated=columns["decided"][start] is not None)
        elif producer == COPIED.decode():
            link = Link(id_, events, is_gated=True)
        else:
            link = Link(id_, events, producer.encode(), columns["sequence"][start], is_gated=True)
        yield replace(link, content=ArchivedRows(table, start, row) if is_whole else None)
        start = row


def _position(client: redis.Redis, stream: str) -> StreamID | None:
    """Return the ID up to which entries are archived; `None` if nothing archives the stream."""
    from tallystream_worker.archive.archiver import archived_until  # noqa: PLC0415  # pyarrow is an extra

    found = archived_until(client, stream)
    return None if found is None else parse_id(found)


def _ahead(client: redis.Redis, store: Store, keys: PartitionKeys, number: int) -> LostEntries | None:
    """Return the archived entries that the server has lost, and that are not set aside yet; `None` if there are none.

    `None` too if the archive cannot be listed or a file cannot be read: `ArchivedLinks` finds this again.

    Raises:
        redis.RedisError: the server does not reply, or rejects a command.
    """
    from tallystream_worker.archive.archiver import PartitionArchiver  # noqa: PLC0415  # pyarrow is an extra

    try:
        return PartitionArchiver(client, store, keys, number).find_lost()
    except TallyError:
        return None


def _told(lost: LostEntries) -> str:
    """Return a text on archived entries that the server has lost."""
    return (
        f"the stream does not have {lost.entries:,} archived entries with {lost.events:,} events, after {lost.after} "
        f"up to {lost.until}; {lost.sent_again:,} of them were sent again"
    )
