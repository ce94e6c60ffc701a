"""Segments: append-only files of records in one folder, which one process owns and another can take over.

    FOLDER/lock                        locked (flock) by the process that writes or delivers the records
    FOLDER/<position>.log              records; the name is the position of the first byte
    record = length u32, CRC-32 u32, kind u8, body       little-endian; the checksum is of kind and body

A record is written with one call, and the operating system has it when that call returns, so it survives the death of
the process. An incomplete record is the end of the segments: no record after it was reported as written.
"""

from __future__ import annotations

import contextlib
import os
import struct
import uuid
import zlib
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Self

from tallystream.errors import SpoolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SEGMENT_BYTES: Final = 4 * 2**20
"""Bytes after which a new file is begun; confirmed records are removed a whole file at a time."""

MAX_BODY: Final = 2**16
"""Most bytes in the body of a record."""

_HEAD: Final = struct.Struct("<IIB")
_RESERVE_BYTES: Final = 2**16
_CHUNK: Final = 2**18


class SegmentedLog:
    """The records of one process in a spool, in the order of writing; the position of a record is its offset in bytes.

    Make one with `create` or `claim`. Before `write`, call `rotate` if `is_due`. The offset counts from the first
    record that was ever written, also if its file is removed. Not safe across threads: the caller locks. On Windows,
    `create` and `claim` raise an `ImportError`.

    Args:
        folder: Folder of the files.
        lock: File descriptor of the lock file; `close` closes it.
        in_sync: Whether `write` forces each record to disk before it returns.

    Attributes:
        folder: Folder of the files.
    """

    def __init__(self, folder: Path, lock: int, *, in_sync: bool = False) -> None:
        self.folder = folder
        self._lock = lock
        self._in_sync = in_sync
        self._files = {int(path.stem): path for path in sorted(folder.glob("*.log"))}
        self._out: int | None = None
        self._in: dict[int, int] = {}
        self.start = min(self._files, default=0)
        """Position of the first byte of the oldest file."""
        last = max(self._files, default=0)  # an earlier file may have a part of a record after its last one
        self.end = last + self._files[last].stat().st_size if self._files else 0
        """Position after the last record."""

    @classmethod
    def create(cls, spool: Path, *, in_sync: bool = False) -> Self:
        """Create a new folder in a spool, with a lock and a reserve file of 64 KiB, and return its empty segments.

        The folder has no file for records yet: `rotate` creates the first. With `in_sync`, `write` forces each record
        to disk.

        Raises:
            SpoolError: the folder cannot be written; the message states the reason. The new files are removed, if
                possible.
        """
        folder = spool / uuid.uuid4().hex[:16]
        lock = None
        try:
            folder.mkdir(parents=True, mode=0o700)
            # `claim` takes over only folders with a file of records, and those are created after the lock is taken.
            # Another process may have the lock for a moment, until `claim` finds that there is no such file.
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            _hold(lock, wait=True)
            (folder / "reserve").write_bytes(bytes(_RESERVE_BYTES))
            return cls(folder, lock, in_sync=in_sync)
        except OSError as error:
            _remove(folder, [folder / "reserve", folder / "lock"])
            if lock is not None:
                os.close(lock)
            raise SpoolError(f"spool {spool} cannot be written ({error.strerror}): set a writable folder") from None

    @classmethod
    def claim(cls, folder: Path) -> Self | None:
        """Lock and return the segments in a folder; `None` if they are locked already, in this or another process.

        Also return `None` if the folder has no lock file that can be opened, or no file for records. `write` does not
        force the records to disk.
        """
        try:
            lock = os.open(folder / "lock", os.O_RDWR)
        except OSError:
            return None
        try:
            _hold(lock)
            if any(folder.glob("*.log")):
                return cls(folder, lock)
        except OSError:
            pass  # another process has the lock, or has removed the files
        os.close(lock)
        return None

    @property
    def size(self) -> int:
        """The bytes of the records in all files; a confirmed record counts until its whole file is deleted."""
        return self.end - self.start

    @property
    def is_due(self) -> bool:
        """Whether `rotate` must be called before the next `write`: no file is open, or the open one has 4 MiB.

        No file is open before the first `rotate`, nor after a part of a record could not be cut off.
        """
        return self._out is None or self.end - max(self._files) >= SEGMENT_BYTES

    def rotate(self, kind: int, body: bytes) -> None:
        """Begin a new file with a record at the end position; `write` adds to this file from now on.

        If a file is there already, it has no whole record, and is replaced.

        Raises:
            SpoolError: the file or its record cannot be written; the segments have not changed.
        """
        path = self.folder / f"{self.end:020d}.log"
        try:
            out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        except OSError as error:
            raise self._refusal(error) from None
        try:
            self._sync()
            written = self._put(out, kind, body)
        except SpoolError:
            with contextlib.suppress(OSError):
                os.ftruncate(out, 0)  # what stays is replaced by the next call, or is an incomplete record
            os.close(out)
            raise
        if self._out is not None:
            os.close(self._out)
        self._out = out
        self._files[self.end] = path
        self.end += written

    def write(self, kind: int, body: bytes) -> None:
        """Write one record; when this returns, the operating system has the record, with `in_sync` also the disk.

        If `is_due`, `rotate` must be called before; this method begins no file. It does not check that `body` has at
        most 64 KiB: `read` ends before a longer one.

        Raises:
            SpoolError: the record could not be written; what was written of it is cut off again. If that fails too, the
                segments are due: records in the next file follow the last whole one.
        """
        assert self._out is not None  # noqa: S101  # rotate() comes first
        try:
            self.end += self._put(self._out, kind, body)
        except SpoolError:
            try:
                os.ftruncate(self._out, self.end - max(self._files))
            except OSError:  # in this file, the incomplete record would hide all later ones
                os.close(self._out)
                self._out = None
            raise

    def make_room(self) -> bool:
        """Delete the reserve file, so that records for the delivery fit on a full disk; return whether it was deleted.

        Return `False` if it does not exist, or cannot be deleted.
        """
        try:
            (self.folder / "reserve").unlink()
        except OSError:
            return False
        return True

    def read(self, position: int, end: int) -> Iterator[tuple[int, bytes, int]]:
        """Yield the kind, the body and the end position of each record from `position` to `end`.

        `position` must be the start of a record that was not dropped, and `end` the end of a record. End early at a
        damaged or incomplete record; the last end position is then that of the last good record. If `position` is not
        before `end`, yield nothing.

        Raises:
            OSError: a file cannot be read.
        """
        while position < end:
            bases = list(self._files)  # another thread may begin a file meanwhile
            base = max(known for known in bases if known <= position)
            following = min((known for known in bases if known > base), default=end)
            data, at = self._read(base, position, min(following, end)), 0
            while len(data) - at >= _HEAD.size:
                length, checksum, kind = _HEAD.unpack_from(data, at)
                if length > MAX_BODY or not kind:
                    return
                body = data[at + _HEAD.size : at + _HEAD.size + length]
                if len(body) < length:
                    break
                if zlib.crc32(body, kind) != checksum:
                    return
                at += _HEAD.size + length
                yield kind, body, position + at
            if at == 0:
                return
            position += at

    def end_at(self, position: int) -> None:
        """Set the end position: later bytes are an incomplete record, which was never reported as written.

        The files do not change; the next `rotate` begins its file at this position.
        """
        self.end = position

    def drop(self, position: int) -> None:
        """Remove the files whose records all end at or before a position, except the last file; `start` moves up.

        A file that cannot be deleted stays on disk, without an error, and does not belong to the segments any more.
        """
        bases = sorted(self._files)
        for base, following in pairwise(bases):
            if following > position:
                break
            self._close_read(base)
            with contextlib.suppress(OSError):
                self._files[base].unlink()
            del self._files[base]
            self.start = following

    def close(self, *, remove: bool = False) -> None:
        """Close the files and release the lock; with `remove`, delete the files and the folder as far as possible.

        Call this once, and no other method afterwards.
        """
        if remove:
            _remove(self.folder, [*self._files.values(), self.folder / "reserve", self.folder / "lock"])
        for base in list(self._in):
            self._close_read(base)
        for descriptor in (self._out, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._out = None

    def _read(self, base: int, position: int, end: int) -> bytes:
        descriptor = self._in.get(base)
        if descriptor is None:
            descriptor = self._in[base] = os.open(self._files[base], os.O_RDONLY)
        return os.pread(descriptor, min(_CHUNK, end - position), position - base)

    def _close_read(self, base: int) -> None:
        if (descriptor := self._in.pop(base, None)) is not None:
            os.close(descriptor)

    def _sync(self) -> None:
        """With `in_sync`, force the names of the files to disk; raise `SpoolError` if that fails."""
        try:
            if self._in_sync:
                _sync_folder(self.folder)
        except OSError as error:
            raise self._refusal(error) from None

    def _put(self, out: int, kind: int, body: bytes) -> int:
        """Write a record to an open file; return the number of its bytes.

        Raises:
            SpoolError: it was not written, or only a part of it; or, with `in_sync`, it was not forced to disk.
        """
        record = _HEAD.pack(len(body), zlib.crc32(body, kind), kind) + body
        try:
            written = os.write(out, record)
            if written == len(record) and self._in_sync:
                os.fdatasync(out)
        except OSError as error:
            raise self._refusal(error) from None
        if written != len(record):
            raise SpoolError(f"spool {self.folder.parent} is full: free space on its disk")
        return written

    def _refusal(self, error: OSError) -> SpoolError:
        return SpoolError(
            f"spool {self.folder.parent} cannot be written ({error.strerror}): "
            "free space on its disk, or set another folder"
        )


def _remove(folder: Path, files: Iterable[Path]) -> None:
    """Delete files and their folder, as far as possible."""
    for path in files:
        with contextlib.suppress(OSError):
            path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _hold(lock: int, *, wait: bool = False) -> None:
    """Lock an open file, given by its descriptor, until it is closed or its process ends.

    With `wait`, wait without limit while another process has the lock.

    Raises:
        OSError: another process has the lock, and `wait` is false; or the file cannot be locked.
        ImportError: the system is Windows.
    """
    import fcntl  # noqa: PLC0415  # Windows has no fcntl, and no spool

    fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
