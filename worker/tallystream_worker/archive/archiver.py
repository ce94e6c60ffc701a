"""Archives one partition: reads the entries after a group's position, writes a file, moves the position.

The group is the consumer group `archive`; its position is its last delivered ID. It has no pending entries: everything
up to its position is archived, and trimming never passes the position. The entries of a file are claimed in Redis
before the file is written. After a crash before the file is complete, the next archiver writes the claimed entries to
the same file; after a later crash, it finds the file and moves the position. So each entry is in one file, even if
several archivers run and crash.

If a server gets newer data back after the archiver has set entries of it aside, the group's position is after entries
that are in no file. Then the position is moved back to the end of the archive.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError, ResponseError

from tallystream.client.replies import is_group_missing, is_key_missing
from tallystream.client.server_time import server_time
from tallystream.errors import StreamError
from tallystream.storage.keys import RESTORED
from tallystream.storage.scripts import Script
from tallystream.wire.stream_id import StreamID, before, id_text, parse_id
from tallystream_worker.archive.counted_only import counted_only, find_counted_only, parse_restored, read_left_out
from tallystream_worker.archive.lost import find_lost, set_aside, state_counted_only
from tallystream_worker.archive.rows import Rows
from tallystream_worker.archive.store import Store, day_of
from tallystream_worker.counting.entry import Entry
from tallystream_worker.process import failpoints

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.archive.lost import LostEntries
    from tallystream_worker.archive.store import File

ARCHIVE_GROUP: Final = "archive"
"""The name of the consumer group whose position is the end of the archive."""

MAX_ROWS: Final = 500_000
"""Rows after which a file takes no further entry; it needs about 200 MB of memory while it is built."""

SETTLED: Final = 2.0
"""Age in seconds from which an entry is archived. With `appendfsync everysec`, the server can lose a younger entry in
a power cut, and the archive would then contain an entry that the server lacks."""

_READ: Final = 256

_BEGIN: Final = Script("tallystream_worker.archive", "begin")
_CLAIM: Final = Script("tallystream_worker.archive", "claim")
_SETTLE: Final = Script("tallystream_worker.archive", "settle")
_CONTINUE: Final = Script("tallystream_worker.archive", "continue_after")
_GO_BACK: Final = Script("tallystream_worker.archive", "go_back")


def archived_until(client: redis.Redis, stream: str) -> str | None:
    """Return the ID up to which no entry of a stream is left to archive: the position of its consumer group `archive`.

    Entries that were gone before the archive began are not archived. `None` if the stream or the group does not exist.

    Raises:
        redis.RedisError: the server did not answer, or refused the command for another reason than a missing stream.
    """
    try:
        groups: list[dict[str, Any]] = client.xinfo_groups(stream)
    except ResponseError as error:
        if is_key_missing(error):
            return None
        raise
    found = (group["last-delivered-id"] for group in groups if group["name"] == ARCHIVE_GROUP.encode())
    return next((id_.decode() for id_ in found), None)


class PartitionArchiver:
    """Archives one partition: call `ensure_group`, then `run_once` until it returns `None`.

    After an error, call `ensure_group` again: the server may have lost the group or its position.

    Args:
        client: The server of the stream.
        store: The archive.
        keys: The keys of the partition.
        partition: The number of the partition.
        on_loss: Called with a summary of archived entries that the server has lost, after they were set aside.
    """

    def __init__(
        self,
        client: redis.Redis,
        store: Store,
        keys: PartitionKeys,
        partition: int,
        on_loss: Callable[[LostEntries], None] = lambda _: None,
    ) -> None:
        self.partition = partition
        """The number of the partition."""
        self._checked: str | None = None  # the last position that was found right: see `_go_back`
        self._read_up_to: tuple[StreamID, float] = (0, 0), 0.0  # an ID, and the monotonic second at which it was read
        self._client = client
        self._store = store
        self._keys = keys
        self._on_loss = on_loss

    def ensure_group(self) -> None:
        """Create the consumer group at the end of the newest file, unless it exists; else correct its position.

        If there are no files, or no entry was ever removed from the stream, the group begins before its first entry. A
        stream that never had entries is created. After a restore, the group begins no later than the last archived
        entry that the snapshot had counted with every earlier one, unless the stream was trimmed since. If files are
        ahead of the group, it is moved, and archived entries that the server has lost are set aside: see
        `_continue_after`. If the group has passed entries of the stream that are in no file, it is moved back: see
        `_go_back`.

        Raises:
            KeyLost: the group is missing, and the partition has lost a sentinel, or a stream that had entries.
            ArchiveError: the archive cannot be listed, or a file cannot be read, written or removed.
            CodecError: files are ahead of the group, and one has a damaged row `raw`.
            redis.RedisError: the server did not answer, or refused a command.
        """
        newest = self._store.newest(self.partition)
        position = self._position()
        if position is None:
            _BEGIN(
                self._client,
                [self._keys.stream, self._keys.archive],
                [ARCHIVE_GROUP, id_text(self._first_position(newest)), int(newest is not None)],
            )
            position = self._position()
        while position is not None and self._continue_after(position):
            position = self._position()

    def find_lost(self) -> LostEntries | None:
        """Return a summary of the entries that `ensure_group` would set aside now, `None` for none; change nothing.

        The stream must exist.

        Raises:
            ArchiveError: the archive cannot be listed, or a file cannot be read.
            CodecError: files are ahead of the group, and one has a damaged row `raw`.
            redis.RedisError: the server did not answer, or refused a command.
        """
        while (newest := self._store.newest(self.partition)) is not None:
            state = self._position(), self._claim()
            position = state[0] or id_text(self._first_position(newest))
            if newest.last <= parse_id(position) or state[1] == (id_text(newest.first), id_text(newest.last)):
                return None
            files = list(self._store.files(self.partition, parse_id(position)))
            *_, lost = find_lost(self._client, self._keys, self._store, files, position)
            if lost is None or (self._position(), self._claim()) == state:
                return lost
        return None  # no file; the loop begins again only if another archiver has continued meanwhile

    def _first_position(self, newest: File | None) -> StreamID:
        """Return the ID after which a new consumer group begins; `newest` is the newest file, `None` if there is none.

        See `ensure_group`.
        """
        beginning = self._beginning()
        if newest is None or beginning == (0, 0):
            return beginning  # if no entry is gone, compare the files with the whole stream
        restored = self._restored()
        if restored is None or newest.last <= restored:
            return newest.last
        last, _ = self._store.neighbours(self.partition, restored)
        return restored if last is None else last

    def latest(self) -> str:
        """Return the last ID that the stream has generated, or `+`, which is after every ID, if there is no stream.

        The entry with this ID may be gone.

        Raises:
            redis.RedisError: the server did not answer, or refused a command.
        """
        try:
            about: dict[str, Any] = self._client.xinfo_stream(self._keys.stream)
        except ResponseError as error:
            if is_key_missing(error):
                return "+"
            raise
        return str(about["last-generated-id"].decode())

    def run_once(self, *, until: str = "+", settled: float = SETTLED) -> int | None:
        """Write the next entries to one file, and move the group; return the number of events in the file.

        The entries are of one UTC day, and the file takes no further entry when it has 500,000 rows; call again until
        the result is `None`: there are no more such entries, or another archiver has taken them meanwhile. 0 is not the
        end: a file can have 0 events, for example if all its entries are resets.

        Entries that the group has passed, but no file has, are written first: see `_go_back`. If there is no entry to
        write, nothing is changed. Otherwise, if an archiver was interrupted after it had
        claimed entries, these are written first, also those after `until` or younger than `settled`. If files are ahead
        of the group, it is moved before a file is written, as by `ensure_group`: archived entries that the server has
        lost are set aside, and `on_loss` is called.

        Args:
            until: The ID of the last entry to write, from `latest`; `+` for no limit. With a limit, repeated calls end
                even if entries arrive all the time.
            settled: Minimum age of an entry in seconds, by the server's clock; younger entries are left for a later
                call. If the time of an entry is ahead of that clock, its age is at most the time since this object
                first read it. 0 leaves none.

        Raises:
            StreamError: the group does not exist, or entries were trimmed before they were archived.
            ArchiveError: the file could not be written, or the archive not be read; call again to write it.
            CodecError: files are ahead of the group, and one has a damaged row `raw`.
            redis.RedisError: the file may be written or not; call again to finish it. `NOGROUP` if the group was lost
                during the call: first call `ensure_group`.
        """
        position = self._position()
        if position is None:
            raise StreamError(
                f"{self._keys.stream}: the consumer group {ARCHIVE_GROUP!r}, which states what is archived, was "
                "deleted. The next run creates it: a worker archives again later; otherwise, run: tallystream archive"
            )
        found = self._read(position, until, None, *([self._is_young(settled)] if settled else []))
        if not found.rows.entries:
            if position == self._checked or not self._go_back(position):
                return None
            return self.run_once(until=until, settled=settled)
        names = [self._keys.stream, self._keys.archive]
        answer, *claimed = _CLAIM(
            self._client, names, [ARCHIVE_GROUP, position, found.first, found.last, found.rows.entries]
        )
        if answer == b"moved":
            return None
        first, last, count = (part.decode() for part in claimed)
        if self._continue_after(position):
            return self.run_once(until=until, settled=settled)
        if (first, last, int(count)) != (found.first, found.last, found.rows.entries):
            found = self._read(position, last, int(count))
            if found.rows.entries != int(count):
                raise StreamError(
                    f"{self._keys.stream}: cannot archive {count} entries from {first} to {last}: only "
                    f"{found.rows.entries} are left, because another client trimmed the stream"
                )
        failpoints.reach("before-archive")
        lost = self._lost(parse_id(position), parse_id(first))
        self._store.put(self.partition, position, first, last, found.rows.table(), lost=lost)
        failpoints.reach("after-archive")
        return found.rows.events if self._settle(position, first, last, count) else None

    def _settle(self, position: str, first: str, last: str, count: str) -> bool:
        """Move the group past the entries of a complete file; return `False` if the file had to be removed.

        If the server does not have this claim any more, the group is not moved. Another archiver may then have begun to
        write some of the entries to a file of another name. If so, this file is removed.

        Args:
            position: The group's position when the range was claimed.
            first: The ID of the first entry in the file.
            last: The ID of the last entry in the file.
            count: Number of entries in the file.

        Raises:
            redis.RedisError: the server did not answer, or refused a command. `NOGROUP` if the server has the claim,
                but no group; then, too, the file was removed if that was necessary.
            ArchiveError: the archive cannot be listed, or a file not be read or removed.
        """
        try:
            names = [self._keys.stream, self._keys.archive]
            (answer,) = _SETTLE(self._client, names, [ARCHIVE_GROUP, first, last, count])
        except ResponseError as error:
            if is_group_missing(error):
                self._remove_stray(position, first, last)
            raise
        if answer == b"settled":
            self._checked = last
            return True
        return not self._remove_stray(position, first, last)

    def _remove_stray(self, position: str, first: str, last: str) -> bool:
        """Remove the file of a claim that was lost, if some of its entries are, or will be, in files of other claims.

        If another archiver has settled the same claim, the file stays: the next one follows it, or the group's position
        is its end. Arguments and errors: see `_settle`.

        Returns:
            Whether the file was removed.
        """
        ours = parse_id(first), parse_id(last)
        claim, reached = self._claim(), self._position()
        own, others = None, []
        for file in self._store.files(self.partition, parse_id(position)):
            if (file.first, file.last) == ours:
                own = file
            else:
                others.append((self._store.join(file).before, file.last))
        if own is None or claim == (first, last) or (reached is not None and parse_id(reached) == own.last):
            return False
        if any(before == own.last for before, _ in others):
            return False
        if claim != ("", "") and reached is not None:  # another archiver writes these entries now
            others.append((parse_id(reached), parse_id(claim[1])))
        if not any(before < own.last and own.first <= end for before, end in others):
            return False
        self._store.remove(own)
        return True

    def _continue_after(self, position: str) -> bool:
        """If files are ahead of the group's position, move it up to the first difference between them and the stream.

        Files are ahead if the server lost the position, and perhaps entries. Entries up to the difference are not
        written again. Of the later ones in the files, those that the stream lacks are set aside, and `on_loss` is
        called: their producers may send them again, with other IDs. Those that it has are archived again. (After a
        crash of an archiver, a file is ahead too, but the server still has its claim; then `run_once` moves the group.)

        If entries are only in the counters of a restored snapshot, and archived entries after them stay, the archive
        states the range.

        If no file is ahead, `_go_back` is called.

        Call it after each claim and before its file is written: then no file is written as long as files are ahead.

        Returns:
            `False` if no file is ahead and `_go_back` returns `False`, or the server still has the claim of the newest
            file: the caller continues with its claim. `True` otherwise: the claim is gone, or another archiver has
            changed the position or the claim, and the caller must begin again with the position.

        Raises:
            ArchiveError: the archive cannot be listed, or a file cannot be read, written or removed.
            CodecError: a file has a damaged row `raw`.
            redis.RedisError: the server did not answer, or refused a command; entries may be set aside already.
        """
        newest = self._store.newest(self.partition)
        if newest is None or newest.last <= parse_id(position):
            return self._go_back(position)
        claim = self._claim()
        if claim == (id_text(newest.first), id_text(newest.last)):
            return False
        if self._position() != position:
            return True  # another archiver has settled the claim
        files = list(self._store.files(self.partition, parse_id(position)))
        common, is_apart, lost = find_lost(self._client, self._keys, self._store, files, position)
        unknown = self._counted_only(parse_id(position))
        left_out = None if unknown is None else read_left_out(self._client, self._keys)

        def is_current() -> bool:
            return (self._position(), self._claim()) == (position, claim)

        # If another archiver has continued meanwhile, the list may have a file that it wrote.
        if not is_current():
            return True
        if is_apart:
            places = self._client, self._keys, self._store, self.partition
            if not set_aside(*places, files, common, left_out=left_out, is_current=is_current):
                return True
            failpoints.reach("after-set-aside")
        if unknown is not None and unknown[0] < parse_id(common):
            files = list(self._store.files(self.partition, unknown[0]))
            state_counted_only(self._store, self.partition, files, *unknown)
        names = [self._keys.stream, self._keys.archive]
        (answer,) = _CONTINUE(self._client, names, [ARCHIVE_GROUP, position, common])
        if lost is not None and answer == b"continued":
            self._on_loss(lost)
        return True

    def _go_back(self, position: str) -> bool:
        """If the last file up to the group's position ends before entries of the stream, move the group back there.

        The group has passed entries that are in no file if an archiver has set them aside, because the server had lost
        them, and the server then got its newer data back; or if the newest file was removed. They are archived again.

        If entries after the file may have been trimmed, the group is moved only to the ID before the first entry of the
        stream: so the next file does not state that it follows this one, and the gap is found.

        Do nothing if there is no such file, and none was set aside: then the archive begins at the position, or its
        files were deleted or are elsewhere.

        Args:
            position: The group's position. It must have been read before the call: a file that was written up to it is
                found then.

        Returns:
            Whether the group was moved, here or by another archiver, or entries were trimmed meanwhile: the claim may
            be gone, and the caller must begin again with the position.

        Raises:
            ArchiveError: the archive cannot be listed.
            redis.RedisError: the server did not answer, or refused a command. `NOGROUP` if the group does not exist.
        """
        end = self._unarchived_after(position)
        if end is not None:  # a file system may keep an old list of the files that another archiver writes
            self._store.refresh()
            end = self._unarchived_after(position)
        if end is None:
            self._checked = position
            return False
        about: dict[str, Any] = self._client.xinfo_stream(self._keys.stream)
        if about["first-entry"] is None:
            return True
        first = parse_id(about["first-entry"][0].decode())
        is_whole = first <= end or about["entries-added"] == about["length"]
        names = [self._keys.stream, self._keys.archive]
        target = id_text(end if is_whole else before(first))
        _GO_BACK(self._client, names, [ARCHIVE_GROUP, position, id_text(first), target])
        return True

    def _unarchived_after(self, position: str) -> StreamID | None:
        """Return the last archived ID up to the group's position, if the stream has entries between the two.

        `(0, 0)` if there is no file up to the position, but files were set aside. `None` if the stream has no such
        entries, or if there are no files of both kinds.

        Raises:
            ArchiveError: the archive cannot be listed.
            redis.RedisError: the server did not answer, or refused the command.
        """
        end, store = (0, 0), self._store
        file = store.newest(self.partition, parse_id(position))
        if file is not None:
            end = file.last
        elif not (store.set_aside(self.partition) or store.counted(self.partition)):
            return None
        if end >= parse_id(position):
            return None
        return end if self._client.xrange(self._keys.stream, f"({id_text(end)}", position, count=1) else None

    def _claim(self) -> tuple[str, str]:
        found: Any = self._client.hmget(self._keys.archive, "first", "last")
        first, last = (b"" if each is None else each for each in found)
        return first.decode(), last.decode()

    def _is_young(self, settled: float) -> Callable[[Entry, str], bool]:
        """Return a function that returns whether an entry is younger than `settled` seconds at the time of this call.

        Its second argument is the ID of the last entry that was read in the same command. The age is by the server's
        clock. If the time of an entry is ahead of that clock, its age is at most the time since this object first read
        it.
        """
        now, read = server_time(self._client), time.monotonic()

        def is_young(entry: Entry, last: str) -> bool:
            if entry.received <= now:
                return now - entry.received < settled * 1000
            # The server's clock was set back, and another client appended the entry: nothing states its age.
            if parse_id(entry.id) > self._read_up_to[0]:
                self._read_up_to = parse_id(last), read
            return read - self._read_up_to[1] < settled

        return is_young

    def _read(
        self,
        position: str,
        until: str,
        count: int | None,
        is_young: Callable[[Entry, str], bool] = lambda _entry, _last: False,
    ) -> _Range:
        """Read and return the entries after the ID `position`, as far as they go into one file.

        It ends before an entry of another UTC day or a young one, at `until`, or if the file is full.

        Args:
            position: The ID after which to read.
            until: The ID of the last entry to read; `+` for no limit.
            count: The number of entries up to `until`, if it is known: then the size of the file is no limit.
            is_young: Called with an entry, and with the ID of the last entry that was read in the same command.
        """
        found = _Range(Rows(), "", position)
        while count is None or found.rows.entries < count:
            reply: Any = self._client.xrange(self._keys.stream, f"({found.last}", until, count=_READ)
            part: list[tuple[bytes, dict[bytes, bytes]]] = reply
            for id_, fields in part:
                entry = Entry(id_.decode(), fields)
                found.first = found.first or entry.id
                full = count is None and len(found.rows) >= MAX_ROWS
                if (
                    full
                    or is_young(entry, part[-1][0].decode())
                    or day_of(parse_id(entry.id)) != day_of(parse_id(found.first))
                ):
                    return found
                found.rows.add(entry)
                found.last = entry.id
            if len(part) < _READ:
                break
        return found

    def _position(self) -> str | None:
        return archived_until(self._client, self._keys.stream)

    def _lost(self, position: StreamID, first: StreamID) -> str:
        """Return the ID up to which entries between the last archived one and the next may be lost, `""` if none are.

        After a restore, such entries may be in the counters alone: see `counted_only`.

        Args:
            position: The ID of the last archived entry.
            first: The ID of the next entry to archive.
        """
        restored: bytes | None = self._client.execute_command("HGET", self._keys.sequences, RESTORED)
        until = None if restored is None else counted_only(restored, position)
        return "" if until is None or until >= first else id_text(until)

    def _counted_only(self, position: StreamID) -> tuple[StreamID, StreamID] | None:
        """Return the range of entries that only the counters of a restored snapshot may have: see `find_counted_only`.

        Return `None` if there is none, or if it begins before `position`, the group's position.

        Raises:
            ArchiveError: the archive cannot be listed, or a file cannot be read.
            redis.RedisError: the server did not answer, or refused a command.
        """
        restored: bytes | None = self._client.execute_command("HGET", self._keys.sequences, RESTORED)
        found = None if restored is None else find_counted_only(self._store, self.partition, restored)
        return None if found is None or found[0] < position else found

    def _restored(self) -> StreamID | None:
        """Return the ID up to which the restored snapshot had counted every entry.

        Return `None` if the stream is not restored or does not exist, or if entries were removed from it since.

        Raises:
            redis.RedisError: the server did not answer, or refused a command.
        """
        with self._client.pipeline(transaction=True) as pipeline:
            pipeline.hget(self._keys.sequences, RESTORED)
            pipeline.execute_command("XINFO STREAM", self._keys.stream)
            restored, about = pipeline.execute(raise_on_error=False)
        if isinstance(restored, RedisError):
            raise restored
        if restored is None:
            return None
        if isinstance(about, RedisError):
            if is_key_missing(about):
                return None
            raise about
        begins, lacked = parse_restored(restored)
        trimmed = int(about["entries-added"]) - int(about["length"]) - lacked
        return None if trimmed else begins

    def _beginning(self) -> tuple[int, int]:
        """Return the ID after which an archive of this stream without files begins; files are not looked for.

        `(0, 0)` if no entry was ever removed from the stream, or there is no stream. Otherwise the ID just before the
        first entry; if no entry is left, the last ID that the stream generated.
        """
        try:
            about = self._client.xinfo_stream(self._keys.stream)
        except ResponseError as error:
            if is_key_missing(error):
                return 0, 0
            raise
        if about["entries-added"] == about["length"]:
            return 0, 0
        if about["first-entry"] is None:
            return parse_id(about["last-generated-id"].decode())
        return before(parse_id(about["first-entry"][0].decode()))


@dataclass
class _Range:
    rows: Rows
    first: str
    last: str
