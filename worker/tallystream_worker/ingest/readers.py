"""Files as numbered lines: plain or gzip, on disk or piped in, in memory bounded by one chunk."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from tallystream.errors import TallyError
from tallystream_worker.ingest.lines import MAX_LINE_BYTES, Line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import WriteableBuffer

CHUNK: Final = 256 * 1024
"""Bytes taken from a file at a time; splitting a chunk at once is what makes reading lines cheap."""

_GZIP_MAGIC: Final = b"\x1f\x8b"


class SourceError(TallyError):
    """A file cannot be opened, or cannot be read to its end; the message names it."""


class Source:
    """An open file: iterate over it for its lines, look at `bytes_read` and `total` for the progress.

    Attributes:
        name: What to call it in messages.
        total: Bytes on disk, `None` when they cannot be known (a pipe).
        compressed: It is gzip.
    """

    def __init__(self, raw: io.BufferedIOBase, name: str, total: int | None) -> None:
        self.name = name
        self.total = total
        self._counted = _Counted(raw)
        self._begin = 0
        self.compressed = self._counted.head == _GZIP_MAGIC
        self._bytes: gzip.GzipFile | io.BufferedReader = io.BufferedReader(self._counted)
        if self.compressed:
            self._bytes = gzip.GzipFile(fileobj=self._bytes)

    def head(self, size: int) -> bytes:
        """Return the first bytes of the text without taking them; less than `size` only where there is no more.

        For regular files, and before anything else is read.
        """
        found = self._bytes.read(size)
        self._bytes.seek(0)
        return found

    def seek(self, offset: int) -> None:
        """Begin with the first line that starts at or behind an offset of the text; numbers count from there."""
        self._begin = offset
        if not self.compressed:
            self._bytes.seek(max(0, offset - 1))

    @property
    def bytes_read(self) -> int:
        """Bytes taken from the file so far, as they are on disk: compressed ones where they are."""
        return self._counted.count

    def __iter__(self) -> Iterator[Line]:
        """Yield the lines that are not blank.

        Raises:
            SourceError: the file cannot be read on; all lines before that place have been yielded.
        """
        number = cut = 0
        # One byte early: whether a line starts at a byte, the one before it tells.
        offset = 0 if self.compressed else max(0, self._begin - 1)
        rest = b""
        for chunk in self._chunks():
            *whole, rest = (rest + chunk).split(b"\n")
            for text in whole:
                if offset >= self._begin:
                    number += 1
                    if text and not text.isspace():
                        yield Line(number, offset, text)
                offset += len(text) + 1 + cut
                cut = 0
            if len(rest) > MAX_LINE_BYTES + 1:
                # Keep just enough of an endless line for the parser to see that it is too long.
                cut += len(rest) - MAX_LINE_BYTES - 1
                rest = rest[: MAX_LINE_BYTES + 1]
        if rest and not rest.isspace() and offset >= self._begin:
            yield Line(number + 1, offset, rest)

    def close(self) -> None:
        """Close the file; standard input stays open."""
        self._bytes.close()
        self._counted.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _chunks(self) -> Iterator[bytes]:
        try:
            # read1: what a pipe has now is worth more than a full chunk later.
            while chunk := self._bytes.read1(CHUNK):
                yield chunk
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"cannot read {self.name} beyond byte {self.bytes_read:,}: {error}") from error


class _Counted(io.RawIOBase):
    """Counts what is read through it, and gives back the first two bytes, which tell gzip from text."""

    def __init__(self, raw: io.BufferedIOBase) -> None:
        self._raw = raw
        self.head = self._unread = raw.read(len(_GZIP_MAGIC))
        self.count = len(self.head)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._raw.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._unread = b""
        self.count = self._raw.seek(offset, whence)
        return self.count

    def tell(self) -> int:
        return self.count - len(self._unread)

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        if self._unread:
            taken, self._unread = self._unread, b""
        else:
            taken = self._raw.read1(len(view))
            self.count += len(taken)
        view[: len(taken)] = taken
        return len(taken)

    def close(self) -> None:
        self._raw.close()
        super().close()


def open_source(path: str | os.PathLike[str]) -> Source:
    """Open a file of events for reading; `-` is standard input, and gzip is known by its first two bytes.

    Raises:
        SourceError: there is no such file, or it may not be read; names it.
    """
    if os.fspath(path) == "-":
        return Source(os.fdopen(sys.stdin.fileno(), "rb", closefd=False), "standard input", None)
    try:
        with contextlib.ExitStack() as on_error:
            raw = on_error.enter_context(Path(path).open("rb"))
            status = os.fstat(raw.fileno())
            source = Source(raw, os.fspath(path), status.st_size if stat.S_ISREG(status.st_mode) else None)
            on_error.pop_all()
            return source
    except OSError as error:
        raise SourceError(f"cannot read {os.fspath(path)}: {error.strerror}") from error
