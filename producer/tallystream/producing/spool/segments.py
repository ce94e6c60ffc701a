"""A journal: records in append-only files in one folder, which one process owns and another can take over.

    FOLDER/lock                        held (flock) by whoever writes or delivers it
    FOLDER/<position>.log              records; the name is the position of the first byte
    record = length u32, CRC-32 u32, kind u8, body       little-endian; the checksum is of kind and body

A record is written with one call and is with the operating system when that returns, so it survives the death of
the process. A tail that was cut in the middle of a record ends the journal; nothing behind it was ever reported as
written.
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
    from collections.abc import Iterator
    from pathlib import Path

SEGMENT_BYTES: Final = 4 * 2**20
"""Bytes after which a new file is begun: what is confirmed is removed in such pieces."""

MAX_BODY: Final = 2**16
"""The most bytes of one record."""

_HEAD: Final = struct.Struct("<IIB")
_RESERVE_BYTES: Final = 2**16
_CHUNK: Final = 2**18


class SegmentedLog:
    """Records in the order in which they were written; each has a position, and positions only grow.

    Not safe across threads: its user locks.

    Args:
        folder: The journal's own folder.
        lock: The open lock file; it is closed with the journal.
        in_sync: Force each record to disk before `write` returns.
    """

    def __init__(self, folder: Path, lock: int, *, in_sync: bool = False) -> None:
        self.folder = folder
        self._lock = lock
        self._in_sync = in_sync
        self._files = {int(path.stem): path for path in sorted(folder.glob("*.log"))}
        self._out: int | None = None
        self._in: dict[int, int] = {}
        self.start = min(self._files, default=0)
        """Position of the first byte that is still there,"""
        self.end = max((base + path.stat().st_size for base, path in self._files.items()), default=0)
        """and the position after the last record."""

    @classmethod
    def create(cls, spool: Path, *, in_sync: bool = False) -> Self:
        """Begin a new journal in a spool.

        Raises:
            SpoolError: the folder cannot be written; says why.
        """
        folder = spool / uuid.uuid4().hex[:16]
        try:
            folder.mkdir(parents=True, mode=0o700)
            # A journal is known by its first file, which comes after the lock: so nobody takes over a newborn one.
            # Who looks for journals of the dead may hold it for as long as it takes to see that there is no file.
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            _hold(lock, wait=True)
            (folder / "reserve").write_bytes(bytes(_RESERVE_BYTES))
        except OSError as error:
            raise SpoolError(f"spool {spool} cannot be written ({error.strerror}): name a folder that can") from None
        return cls(folder, lock, in_sync=in_sync)

    @classmethod
    def claim(cls, folder: Path) -> Self | None:
        """Take over a journal whose owner has died; `None` where it lives, or nothing is there."""
        try:
            lock = os.open(folder / "lock", os.O_RDWR)
        except OSError:
            return None
        try:
            _hold(lock)
        except OSError:
            os.close(lock)
            return None
        if not any(folder.glob("*.log")):
            os.close(lock)
            return None
        return cls(folder, lock)

    @property
    def size(self) -> int:
        """Bytes that are still there."""
        return self.end - self.start

    @property
    def is_due(self) -> bool:
        """Whether the next record should begin a new file."""
        return self._out is None or self.end - max(self._files) >= SEGMENT_BYTES

    def rotate(self) -> None:
        """Begin a new file.

        Raises:
            SpoolError: it cannot be written.
        """
        # What may be in it already is the torn beginning of a record.
        path = self.folder / f"{self.end:020d}.log"
        try:
            out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            if self._in_sync:
                _sync_folder(self.folder)
        except OSError as error:
            raise self._refusal(error) from None
        if self._out is not None:
            os.close(self._out)
        self._out = out
        self._files[self.end] = path

    def write(self, kind: int, body: bytes) -> None:
        """Write one record; it is with the operating system, or on disk, when this returns.

        Raises:
            SpoolError: it could not be written, and nothing of it is there.
        """
        record = _HEAD.pack(len(body), zlib.crc32(body, kind), kind) + body
        assert self._out is not None  # noqa: S101  # rotate() comes first
        try:
            written = os.write(self._out, record)
            if written == len(record) and self._in_sync:
                os.fdatasync(self._out)
        except OSError as error:
            self._take_back()
            raise self._refusal(error) from None
        if written != len(record):
            self._take_back()
            raise SpoolError(f"spool {self.folder.parent} is full: nothing was taken; make room on its disk")
        self.end += len(record)

    def make_room(self) -> bool:
        """Give up the reserve, so that what is needed to deliver can be written on a full disk."""
        try:
            (self.folder / "reserve").unlink()
        except OSError:
            return False
        return True

    def read(self, position: int, end: int) -> Iterator[tuple[int, bytes, int]]:
        """Yield kind, body and end position of the records from one position to another.

        Ends early where a record is damaged: the last position tells how far it was good.
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
        """Take this for the end: what is behind it is the torn tail of a record that nobody was told of."""
        self.end = position

    def drop(self, position: int) -> None:
        """Remove the files that end before a position; never the one that is written."""
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
        """Let go of it, and with `remove` of what it holds."""
        if remove:
            for path in [*self._files.values(), self.folder / "reserve", self.folder / "lock"]:
                with contextlib.suppress(OSError):
                    path.unlink()
            with contextlib.suppress(OSError):
                self.folder.rmdir()
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

    def _take_back(self) -> None:
        # Half a record in the middle would hide every later one.
        assert self._out is not None  # noqa: S101  # something was written to it
        with contextlib.suppress(OSError):
            os.ftruncate(self._out, self.end - max(self._files))

    def _refusal(self, error: OSError) -> SpoolError:
        return SpoolError(
            f"spool {self.folder.parent} cannot be written ({error.strerror}): the event was not taken; "
            "make room on its disk, or name another folder"
        )


def _hold(lock: int, *, wait: bool = False) -> None:
    """Take the lock until the file is closed, or its process ends; an `OSError` where another has it."""
    import fcntl  # noqa: PLC0415  # not on Windows, where there is no spool

    fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
