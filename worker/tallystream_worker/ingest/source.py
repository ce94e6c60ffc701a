"""Reads files as numbered lines: plain or gzip, from disk or a pipe, with a few chunks in memory at a time."""

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
from tallystream_worker.ingest.lines import MAX_LINE_BYTES, Block, Line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import WriteableBuffer

CHUNK: Final = 128 * 1024
"""The number of bytes that one read asks for; the lines of a chunk are found together, which is fast."""

_GZIP_MAGIC: Final = b"\x1f\x8b"


class SourceError(TallyError):
    """Raised if a file cannot be opened or read to its end, or is not of its format; the message names the file."""


class Source:
    """An open file, plain or gzip: iterate over it for its lines that are not blank (`Line`). See `open_source`.

    `bytes_read` and `total` give the progress. A source is a context manager that closes the file. The constructor
    reads the first two bytes, to find out whether the file is gzip; an `OSError` of this read is raised.

    Args:
        raw: The file, opened for reading; `close` closes it.
        name: The name of the file in messages.
        total: The size of the file on disk in bytes; `None` if it is not a regular file (a pipe).

    Attributes:
        name: The name of the file in messages.
        total: The size of the file on disk in bytes; `None` if it is not a regular file (a pipe).
        compressed: Whether the file is gzip.
        begin: The offset of `seek`; 0 before.
    """

    def __init__(self, raw: io.BufferedIOBase, name: str, total: int | None) -> None:
        self.name = name
        self.total = total
        self._counted = _Counted(raw)
        self.begin = 0
        self._end: int | None = None
        self.compressed = self._counted.head == _GZIP_MAGIC
        self._bytes: gzip.GzipFile | io.BufferedReader = io.BufferedReader(self._counted)
        if self.compressed:
            self._bytes = gzip.GzipFile(fileobj=self._bytes)

    def head(self, size: int) -> bytes:
        """Return the first bytes of the (decompressed) text, `size` bytes or fewer if the text is shorter.

        The next read begins at the beginning of the text again. Call this for regular files only, before other reads.

        Raises:
            OSError, EOFError, zlib.error: the file cannot be read, or is damaged gzip.
        """
        found = self._bytes.read(size)
        self._bytes.seek(0)
        return found

    def seek(self, offset: int, end: int | None = None) -> None:
        """Let the reading begin at the first line that starts at or after an offset in bytes; that line has number 1.

        The offset is one of the (decompressed) text. A compressed file is read from its beginning all the same. Call
        this before the lines are read, and for regular files only.

        Args:
            offset: The offset, in bytes.
            end: The offset at which the caller stops, above 0; `bytes_read` of a file that is not compressed does not
                count bytes after it. `None` for no bound.

        Raises:
            OSError: the file is not compressed, and cannot be sought in, such as a pipe.
        """
        self.begin = offset
        self._end = end
        if not self.compressed:
            self._bytes.seek(max(0, offset - 1))

    @property
    def bytes_read(self) -> int:
        """How many bytes on disk were read; of a file that is not compressed, only those in the bounds of `seek`."""
        if self.compressed:
            return self._counted.count
        return max(0, min(self._counted.count, self._end or self._counted.count) - self.begin)

    def __iter__(self) -> Iterator[Line]:
        """Yield the lines that are not blank, from the line of `seek` on, or else from the beginning.

        The `end` of `seek` does not end the iteration.

        Raises:
            SourceError: the file cannot be read to its end; the lines before the error were yielded.
        """
        for block in self.blocks():
            yield from block.lines()

    def blocks(self, segment: int | None = None) -> Iterator[Block]:
        """Yield all lines, blank ones included, in blocks of up to about `CHUNK` bytes that do not cross segments.

        The first line is that of `seek`, if it was called. A line belongs to the segment in which it begins. The `end`
        of `seek` does not end the iteration.

        Args:
            segment: The number of bytes of text in a segment; `None` if the file is one segment.

        Raises:
            SourceError: the file cannot be read to its end; the lines before the error were yielded.
        """
        number = 1
        for piece in self._pieces():
            for offset, end, text in _at_borders(*piece, segment):
                yield Block(number, offset, end, text)
                number += text.count(b"\n")

    def _pieces(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield pieces of one or more whole lines: the offset of their begin, that of their end, and their text.

        The first line is that of `seek`, if it was called. Offsets are in bytes of the (decompressed) text. The text
        has the line ends; a last line without one is yielded too. A line that was cut off because it is too long is a
        piece by itself, whose text is shorter than its offsets say.

        Raises:
            SourceError: the file cannot be read to its end; the whole lines before the error were yielded.
        """
        # Begin one byte early: a line starts at a byte only if the byte before it is a line end.
        offset = 0 if self.compressed else max(0, self.begin - 1)
        rest, cut = b"", 0
        for chunk in self._chunks():
            text = rest + chunk
            if cut and (end := text.find(b"\n") + 1):
                # The end of a line that was cut off. Yield it alone, because it is longer than its text.
                if offset >= self.begin:
                    yield offset, offset + end + cut, text[:end]
                offset, cut, text = offset + end + cut, 0, text[end:]
            end = 0 if cut else text.rfind(b"\n") + 1
            whole, rest = text[:end], text[end:]
            skipped = whole.find(b"\n", self.begin - 1 - offset) + 1 or end if offset < self.begin else 0
            if skipped < end:
                yield offset + skipped, offset + end, whole[skipped:]
            offset += end
            if len(rest) > MAX_LINE_BYTES + 1:
                # Keep one byte more of the line than is allowed, so that the parser finds it too long.
                cut += len(rest) - MAX_LINE_BYTES - 1
                rest = rest[: MAX_LINE_BYTES + 1]
        if rest and offset >= self.begin:
            yield offset, offset + len(rest) + cut, rest

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
            # read1 returns the bytes that a pipe has now, instead of waiting for a full chunk.
            while chunk := self._bytes.read1(CHUNK):
                yield chunk
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"cannot read {self.name} beyond byte {self._counted.count:,}: {error}") from error


def _at_borders(offset: int, end: int, text: bytes, segment: int | None) -> Iterator[tuple[int, int, bytes]]:
    """Split whole lines at the first line of each next segment; yield the begin, the end and the text of each part."""
    while segment is not None and end > (border := (offset // segment + 1) * segment):
        cut = text.find(b"\n", border - 1 - offset) + 1
        if not 0 < cut < len(text):
            break
        yield offset, offset + cut, text[:cut]
        offset, text = offset + cut, text[cut:]
    yield offset, end, text


class _Counted(io.RawIOBase):
    """A raw file that counts the bytes read from it; `head` has its first two bytes, which distinguish gzip from text.

    `count` is the offset in bytes up to which the file was read. The first read returns the first two bytes again.
    """

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
    """Open a file of events, plain or gzip, for reading; `-` is standard input.

    The first two bytes are read at once, to find out whether the file is gzip: this waits if it is an empty pipe.

    Raises:
        SourceError: the file does not exist, or cannot be opened or read; the message names it.
        OSError: standard input cannot be read.
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
