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
from tallystream_worker.ingest.lines import MAX_LINE_BYTES, Block, Line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import WriteableBuffer

CHUNK: Final = 128 * 1024
"""Bytes taken from a file at a time; reading lines a chunk at once is what makes it cheap."""

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
        for block in self.blocks():
            yield from block.lines()

    def blocks(self, segment: int | None = None) -> Iterator[Block]:
        """Yield all lines in blocks of about `CHUNK` bytes; none has lines that begin in two segments.

        Args:
            segment: Bytes of text in a segment; `None` for one segment in all.

        Raises:
            SourceError: the file cannot be read on; all lines before that place have been yielded.
        """
        number = 1
        for piece in self._pieces():
            for offset, end, text in _at_borders(*piece, segment):
                yield Block(number, offset, end, text)
                number += text.count(b"\n")

    def _pieces(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield whole lines as they are read, from the first that begins where we do, with their begin and end."""
        # One byte early: whether a line starts at a byte, the one before it tells.
        offset = 0 if self.compressed else max(0, self._begin - 1)
        rest, cut = b"", 0
        for chunk in self._chunks():
            text = rest + chunk
            if cut and (end := text.find(b"\n") + 1):
                # The end of an endless line, which goes by itself: it is longer than its text.
                if offset >= self._begin:
                    yield offset, offset + end + cut, text[:end]
                offset, cut, text = offset + end + cut, 0, text[end:]
            end = 0 if cut else text.rfind(b"\n") + 1
            whole, rest = text[:end], text[end:]
            skipped = whole.find(b"\n", self._begin - 1 - offset) + 1 or end if offset < self._begin else 0
            if skipped < end:
                yield offset + skipped, offset + end, whole[skipped:]
            offset += end
            if len(rest) > MAX_LINE_BYTES + 1:
                # Just enough of an endless line for the parser to see that it is too long.
                cut += len(rest) - MAX_LINE_BYTES - 1
                rest = rest[: MAX_LINE_BYTES + 1]
        if rest and offset >= self._begin:
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
            # read1: what a pipe has now is worth more than a full chunk later.
            while chunk := self._bytes.read1(CHUNK):
                yield chunk
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"cannot read {self.name} beyond byte {self.bytes_read:,}: {error}") from error


def _at_borders(offset: int, end: int, text: bytes, segment: int | None) -> Iterator[tuple[int, int, bytes]]:
    """Cut lines where the first line of another segment begins; yield each part with its begin and end."""
    while segment is not None and end > (border := (offset // segment + 1) * segment):
        cut = text.find(b"\n", border - 1 - offset) + 1
        if not 0 < cut < len(text):
            break
        yield offset, offset + cut, text[:cut]
        offset, text = offset + cut, text[cut:]
    yield offset, end, text


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
