"""Where the archive's files lie: a folder, or an object store by URL.

    <url>/_tallystream.json                                            whose archive this is
    <url>/day=2026-11-24/partition=p0.425/<first id>_<last id>.parquet
    <url>/namespace=shop/_tallystream.json, ...                        the same of another namespace
    <url>/log=2/_tallystream.json, ...                                 the same of a later log, of other partitions

A file's name says which entries are in it: all of its partition from the first to the last, both included. A file
is there complete or not at all, and whoever writes the same name writes the same rows.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from tallystream.errors import ConfigurationError, TallyError
from tallystream.storage.keys import FIRST_TOPIC, NAMESPACE, tag_of
from tallystream.wire.stream_id import StreamID, parse_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FORMAT: Final = "1"
_MANIFEST: Final = "_tallystream.json"
_NAME: Final = re.compile(r"([0-9]+-[0-9]+)_([0-9]+-[0-9]+)\.parquet")
_DAY: Final = re.compile(r"day=([0-9]{4}-[0-9]{2}-[0-9]{2})")
_DAY_MS: Final = 86_400_000


class ArchiveError(TallyError):
    """The archive cannot be read or written, or it is not the one of these streams."""


@dataclass(frozen=True, slots=True, order=True)
class File:
    """One file of a partition: the first and the last entry in it, and where it lies."""

    first: StreamID
    last: StreamID
    path: str


class Store:
    """The files under one URL.

    Args:
        url: A folder, or what `pyarrow.fs.FileSystem.from_uri` takes: `s3://bucket/path`, `gs://`, `abfs://`,
            `hdfs://`, `fsspec+<protocol>://`.
        namespace: Whose files: another than the one that the place belongs to has a folder of its own there.
        log: Of which log: a later one than the first has a folder of its own, since what was copied to it is in both.

    Raises:
        ConfigurationError: the URL cannot be used.
    """

    def __init__(self, url: str, namespace: str = NAMESPACE, log: int = FIRST_TOPIC) -> None:
        self.url = url
        self._below = "" if log == FIRST_TOPIC else f"/log={log}"
        self._namespace = namespace
        try:
            if "://" in url:
                self._fs, self._place = fs.FileSystem.from_uri(url)
            else:
                self._fs, self._place = fs.LocalFileSystem(), str(Path(url).expanduser().resolve())
        except (pa.ArrowException, OSError, ValueError, ImportError) as error:
            raise ConfigurationError(
                f"archive.url: {url!r} cannot be used: {error}. Write a folder, or a URL such as s3://BUCKET/PATH"
            ) from None

    @cached_property
    def _root(self) -> str:
        """The folder of this namespace: the place itself, where it was there first or is the usual one."""
        found = self._read(f"{self._place}/{_MANIFEST}")
        owner = NAMESPACE if found is None else msgspec.json.decode(found).get("namespace")
        own = self._place if owner == self._namespace else f"{self._place}/namespace={self._namespace}"
        return own + self._below

    def claim(self, namespace: str, partitions: int, epochs: tuple[str, ...]) -> None:
        """Mark the archive as the one of these streams, where nothing is yet; else see that it is.

        Args:
            namespace: The first part of every key.
            partitions: How many there are.
            epochs: The life of the data that is archived now, then the lives that it was restored from.

        Raises:
            ArchiveError: it is the archive of other data.
        """
        found = self._read(f"{self._root}/{_MANIFEST}")
        ours = {"format": FORMAT, "namespace": namespace, "partitions": partitions, "epoch": epochs[0]}
        if found is not None:
            theirs: dict[str, Any] = msgspec.json.decode(found)
            differing = [name for name in ("format", "namespace", "partitions") if theirs.get(name) != ours[name]]
            if differing or theirs.get("epoch") not in epochs:
                raise ArchiveError(
                    f"{self.url} is the archive of other data ({', '.join(differing) or 'another epoch'} differs): "
                    "entries of two would be counted as one. Name an empty folder in [archive] url"
                )
            if theirs["epoch"] == epochs[0]:
                return
        self._write(f"{self._root}/{_MANIFEST}", msgspec.json.encode(ours))

    def manifest(self) -> dict[str, Any] | None:
        """Return whose archive this is; `None` where there is none."""
        found = self._read(f"{self._root}/{_MANIFEST}")
        return None if found is None else msgspec.json.decode(found)

    def put(self, partition: int, after: str, first: str, last: str, table: pa.Table) -> None:
        """Write one file; at once, or not at all.

        Args:
            partition: Its number.
            after: The entry before the first: what readers tell a missing file by.
            first: The ID of the first entry.
            last: The ID of the last entry, of the same day.
            table: The rows.

        Raises:
            ArchiveError: it could not be written; says why.
        """
        path = f"{self._folder(day_of(parse_id(first)), partition)}/{first}_{last}.parquet"
        if self._fs.get_file_info(path).type == fs.FileType.File:
            return  # of a run that was killed before it could say so
        metadata = {**(table.schema.metadata or {}), b"tallystream.format": FORMAT, b"tallystream.after": after}
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata(metadata), sink, **_ENCODING)
        self._write(path, sink.getvalue())

    def newest(self, partition: int) -> File | None:
        """Return the file with the latest entries of a partition."""
        for day in reversed(self._days()):
            if files := self._files(day, partition):
                return files[-1]
        return None

    def beginning(self, partition: int) -> StreamID | None:
        """Return the ID of the entry before the first that is archived of a partition; `None` where none is.

        Raises:
            ArchiveError: the first file cannot be read.
        """
        first = next(self.files(partition), None)
        if first is None:
            return None
        try:
            with self._fs.open_input_file(first.path) as source:
                metadata = pq.read_schema(source).metadata or {}
        except (pa.ArrowException, OSError) as error:
            raise ArchiveError(f"{first.path} cannot be read: {error}") from error
        return parse_id(_before_the_first(metadata, first))

    def files(self, partition: int, after: StreamID = (0, 0)) -> Iterator[File]:
        """Yield the files that hold entries behind an ID, in order."""
        for day in self._days():
            if day >= day_of(after):
                yield from (file for file in self._files(day, partition) if file.last > after)

    def read(self, file: File) -> tuple[pa.Table, str]:
        """Return a file's rows, and the ID of the entry before its first.

        Raises:
            ArchiveError: it cannot be read.
        """
        try:
            with self._fs.open_input_file(file.path) as source:
                table = pq.read_table(source)
        except (pa.ArrowException, OSError) as error:
            raise ArchiveError(f"{file.path} cannot be read: {error}") from error
        return table, _before_the_first(table.schema.metadata or {}, file)

    def _folder(self, day: str, partition: int) -> str:
        return f"{self._root}/day={day}/partition={tag_of(partition)}"

    def _days(self) -> list[str]:
        names = (_DAY.fullmatch(info.base_name) for info in self._list(self._root))
        return sorted(name[1] for name in names if name is not None)

    def _files(self, day: str, partition: int) -> list[File]:
        infos = self._list(self._folder(day, partition))
        named = ((_NAME.fullmatch(info.base_name), info.path) for info in infos)
        return sorted(File(parse_id(name[1]), parse_id(name[2]), path) for name, path in named if name is not None)

    def _list(self, folder: str) -> list[fs.FileInfo]:
        try:
            return list(self._fs.get_file_info(fs.FileSelector(folder, allow_not_found=True)))
        except (pa.ArrowException, OSError) as error:
            raise ArchiveError(f"{folder} cannot be listed: {error}") from error

    def _read(self, path: str) -> bytes | None:
        try:
            if self._fs.get_file_info(path).type != fs.FileType.File:
                return None
            with self._fs.open_input_file(path) as source:
                return bytes(source.read())
        except (pa.ArrowException, OSError) as error:
            raise ArchiveError(f"{path} cannot be read: {error}") from error

    def _write(self, path: str, content: Any) -> None:
        try:
            if isinstance(self._fs, fs.LocalFileSystem):
                _write_whole(Path(path), content)
            else:
                # One put: an object store shows the object once it is complete.
                with self._fs.open_output_stream(path) as sink:
                    sink.write(content)
        except (pa.ArrowException, OSError) as error:
            raise ArchiveError(f"{path} cannot be written: {error}") from error


def _before_the_first(metadata: Mapping[bytes, bytes], file: File) -> str:
    if metadata.get(b"tallystream.format") != FORMAT.encode():
        raise ArchiveError(f"{file.path} is not a file of this release's archive format ({FORMAT})")
    return metadata[b"tallystream.after"].decode()


def day_of(stream_id: StreamID) -> str:
    """Return the UTC day of an entry, by its ID; of one behind every day, the last that there is."""
    day = min(stream_id[0] // _DAY_MS, _LAST_DAY)
    return (dt.date(1970, 1, 1) + dt.timedelta(days=day)).isoformat()


_LAST_DAY: Final = (dt.date.max - dt.date(1970, 1, 1)).days

# Found by trying: 1.35 bytes an event on the Zipf load, where a dictionary of subjects takes 1.98. Sorted by subject
# instead of by entry, the entries' numbers cost more than the subjects save (2.29).
_ENCODING: Final[dict[str, Any]] = {
    "compression": "zstd",
    "compression_level": 6,
    "use_dictionary": [
        *("received", "received_n", "kind", "metric", "amount", "events", "happened"),
        *("actor", "finest", "producer", "sequence"),
    ],
    "column_encoding": {"subject": "DELTA_BYTE_ARRAY", "id": "DELTA_BYTE_ARRAY"},
    "write_statistics": True,
    "row_group_size": 1 << 18,
}


def _write_whole(path: Path, content: Any) -> None:
    """Write beside, flush to disk, rename: a crash leaves the old file, or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*.part"):
        leftover.unlink(missing_ok=True)  # of a run that was killed in the middle
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with beside.open("wb") as sink:
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
        beside.replace(path)
    except FileNotFoundError:
        if not path.exists():  # else another archivist of the same entries was faster
            raise
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
