"""Archives one partition: reads behind the group's position, writes a file, moves the position.

The group `archive` never holds anything pending: its position *is* what is archived, and a mark that trimming does
not pass. Which entries a file holds is agreed on in Redis before it is written. A crash before the file is complete
leaves the claim, and the next to come writes the same file; a crash after it finds the file and moves the position.
So each entry is in one file, however many archivists there are and whenever they die.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from tallystream.client.replies import is_group_there, is_key_missing
from tallystream.errors import StreamError
from tallystream.storage.scripts import Script
from tallystream.wire.stream_id import parse_id
from tallystream_worker.archive.rows import Rows
from tallystream_worker.archive.store import Store, day_of
from tallystream_worker.counting.entry import Entry
from tallystream_worker.process import failpoints

if TYPE_CHECKING:
    import redis

    from tallystream.storage.keys import PartitionKeys

ARCHIVE_GROUP: Final = "archive"
MAX_ROWS: Final = 500_000
"""The most rows that a file gets: about 200 MB of memory while it is made."""

SETTLED: Final = 2.0
"""Seconds for which an entry is left alone: with `appendfsync everysec` a power cut could take it back, and the
archive would hold what the server does not."""

_READ: Final = 256

_CLAIM: Final = Script("tallystream_worker.archive", "claim")
_SETTLE: Final = Script("tallystream_worker.archive", "settle")


class PartitionArchiver:
    """Archives one partition.

    Args:
        client: Where the stream is.
        store: Where the files go.
        keys: The partition's keys.
        partition: Its number.
    """

    def __init__(self, client: redis.Redis, store: Store, keys: PartitionKeys, partition: int) -> None:
        self.partition = partition
        self._client = client
        self._store = store
        self._keys = keys

    def ensure_group(self) -> None:
        """Create the group where the newest file ends, or at the beginning; move it on where a file is ahead of it.

        A file is ahead where the server came back with less than it had. The file is right: what is in it must not be
        written twice, and IDs do not come twice. (After a crash of ours the claim is still there, and settled.)
        """
        newest = self._store.newest(self.partition)
        archived = (0, 0) if newest is None else newest.last
        position = self._position()
        if position is None:
            if newest is None:
                archived = self._beginning()
            try:
                self._client.xgroup_create(
                    self._keys.stream, ARCHIVE_GROUP, id=_text(archived), mkstream=True,
                    entries_read=0 if archived == (0, 0) else None,
                )  # fmt: skip
            except ResponseError as error:
                if not is_group_there(error):
                    raise
        elif (
            archived > parse_id(position) and self._client.hget(self._keys.archive, "last") != _text(archived).encode()
        ):
            self._client.execute_command("XGROUP SETID", self._keys.stream, ARCHIVE_GROUP, _text(archived))
            self._client.delete(self._keys.archive)

    def run_once(self, *, settled: float = SETTLED) -> int:
        """Write one file, if there is anything to write; return how many events it holds.

        Args:
            settled: Seconds for which an entry is left alone.

        Raises:
            StreamError: the group is gone, or entries were trimmed although they were not archived.
            ArchiveError: the file could not be written; nothing is lost.
            redis.RedisError: it is not known how far this came; running again is safe.
        """
        position = self._position()
        if position is None:
            raise StreamError(f"{self._keys.stream}: consumer group {ARCHIVE_GROUP!r} is missing")
        until = str(int((time.time() - settled) * 1000)) if settled else "+"
        found = self._read(position, until, None)
        if not found.rows.entries:
            return 0
        names = [self._keys.stream, self._keys.archive]
        answer, *claimed = _CLAIM(
            self._client, names, [ARCHIVE_GROUP, position, found.first, found.last, found.rows.entries]
        )
        if answer == b"moved":
            return 0
        first, last, count = (part.decode() for part in claimed)
        if (first, last, int(count)) != (found.first, found.last, found.rows.entries):
            found = self._read(position, last, int(count))
            if found.rows.entries != int(count):
                raise StreamError(
                    f"{self._keys.stream}: {count} entries from {first} to {last} were to be archived, and "
                    f"{found.rows.entries} are left: somebody has trimmed them away"
                )
        failpoints.reach("before-archive")
        self._store.put(self.partition, position, first, last, found.rows.table())
        failpoints.reach("after-archive")
        _SETTLE(self._client, names, [ARCHIVE_GROUP, first, last, count])
        return found.rows.events

    def _read(self, position: str, until: str, count: int | None) -> _Range:
        """Gather entries of one day behind a position: so many, or until a file is full."""
        found = _Range(Rows(), "", position)
        while count is None or found.rows.entries < count:
            reply: Any = self._client.xrange(self._keys.stream, f"({found.last}", until, count=_READ)
            part: list[tuple[bytes, dict[bytes, bytes]]] = reply
            for id_, fields in part:
                entry = Entry(id_.decode(), fields)
                found.first = found.first or entry.id
                full = count is None and len(found.rows) >= MAX_ROWS
                if full or day_of(parse_id(entry.id)) != day_of(parse_id(found.first)):
                    return found
                found.rows.add(entry)
                found.last = entry.id
            if len(part) < _READ:
                break
        return found

    def _position(self) -> str | None:
        try:
            groups: list[dict[str, Any]] = self._client.xinfo_groups(self._keys.stream)
        except ResponseError as error:
            if is_key_missing(error):
                return None
            raise
        found = (group["last-delivered-id"] for group in groups if group["name"] == ARCHIVE_GROUP.encode())
        return next((id_.decode() for id_ in found), None)

    def _beginning(self) -> tuple[int, int]:
        """Return the position before everything that the stream holds: 0-0 only where nothing was ever trimmed."""
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
        milliseconds, number = parse_id(about["first-entry"][0].decode())
        return (milliseconds, number - 1) if number else (milliseconds - 1, 2**64 - 1)


@dataclass
class _Range:
    rows: Rows
    first: str
    last: str


def _text(stream_id: tuple[int, int]) -> str:
    return f"{stream_id[0]}-{stream_id[1]}"
