"""Writes and reads the files of the archive, in a folder or in an object store.

    <url>/_tallystream.json                                            the manifest: the data that is archived here
    <url>/_rules.json                                                  the changes of the rules
    <url>/_files.json                                                  what ingested files were identified by
    <url>/day=2026-11-24/partition=p0.425/<first id>_<last id>.parquet
    <url>/day=2026-11-24/partition=p0.425/<first id>_<last id>.replaced-<digits>   what others replace: see `retire`
    <url>/lost/partition=p0.425/<first id>_<last id>.parquet.lost      entries that the server has lost
    <url>/lost/partition=p0.425/<first id>_<last id>.parquet.counted   such entries that count: see `put_counted`
    <url>/namespace=shop/_tallystream.json, ...                        the same for another namespace
    <url>/log=2/_tallystream.json, ...                                 the same for a later topic, after a repartition

A file contains all entries of its partition from the first to the last ID in its name, both included. A file is
complete or does not exist, and two files of the same name have the same rows.
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
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, TypedDict, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from tallystream.client.connect import without_credentials
from tallystream.errors import ConfigurationError, TallyError
from tallystream.rules.retraction import Retraction
from tallystream.storage.keys import FIRST_TOPIC, MAX_PARTITIONS, NAMESPACE, tag_of
from tallystream.wire.stream_id import StreamID, parse_id
from tallystream_worker.archive.rows import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_T = TypeVar("_T")

FORMAT: Final = "4"
"""The version of the files, stored in the manifest and in each file."""

_MANIFEST: Final = "_tallystream.json"
_RETRACTED: Final = "retracted"
_RULES: Final = "_rules.json"
_FILES: Final = "_files.json"
_NAME: Final = re.compile(r"([0-9]+-[0-9]+)_([0-9]+-[0-9]+)\.parquet")
_DAY: Final = re.compile(r"day=([0-9]{4}-[0-9]{2}-[0-9]{2})")
_TOPIC: Final = re.compile(r"log=([1-9][0-9]*)")
_AFTER: Final = b"tallystream.after"
_COUNTED_ONLY: Final = b"tallystream.lost"
_LOST: Final = "lost"
_SET_ASIDE: Final = ".parquet.lost"
_IN_COUNTERS: Final = ".parquet.counted"
_MISSING: Final = b"tallystream.missing"
_SNAPSHOT: Final = b"tallystream.snapshot"
_DAY_MS: Final = 86_400_000


class _Manifest(TypedDict, total=False):
    format: str
    namespace: str
    partitions: Annotated[int, msgspec.Meta(ge=1, le=MAX_PARTITIONS)]
    epoch: str
    retracted: list[Any]


class ArchiveError(TallyError):
    """Raised if the archive cannot be read or written, lacks entries, or is of other data than this deployment."""


@dataclass(frozen=True, slots=True, order=True)
class File:
    """One file of a partition; files are ordered by their first ID.

    Attributes:
        first: The ID of the first entry in it, as two numbers.
        last: The ID of the last entry in it, as two numbers.
        path: The path in the file system of the archive.
    """

    first: StreamID
    last: StreamID
    path: str


@dataclass(frozen=True, slots=True)
class Join:
    """How a file joins the one before.

    Attributes:
        before: The ID of the last entry in the file before. Of the first file, the ID after which the archive begins;
            `(0, 0)` if it begins with the first entry that was ever appended.
        lost: If entries between `before` and the first one of the file may be lost, an ID up to which they are; else
            `None`. A restored snapshot was newer than the archive, so only the counters may have their events.
    """

    before: StreamID
    lost: StreamID | None


class Store:
    """The files of one topic's archive, under one URL.

    `claim` checks or writes the manifest, `put` writes a file, `files` lists the files of a partition, and `read`
    returns the rows of one.

    Args:
        url: A folder (an empty text is the working directory), or a URL that `pyarrow.fs.FileSystem.from_uri` accepts:
            `s3://bucket/path`, `gs://`, `abfs://`, `hdfs://`, `fsspec+<protocol>://`.
        namespace: The namespace of the deployment. A subfolder is used if the manifest at the URL names another one, or
            if there is no manifest and this is not the default one.
        log: The number of the topic. Later topics than the first have subfolders, because the entries that a
            repartition copied are in both topics.

    Raises:
        ConfigurationError: the URL cannot be used, or a package that it needs is not installed. No file is read or
            written to find out.
    """

    def __init__(self, url: str, namespace: str = NAMESPACE, log: int = FIRST_TOPIC) -> None:
        self.url = url
        """The URL or folder that was given."""
        self._below = "" if log == FIRST_TOPIC else f"/log={log}"
        self._namespace = namespace
        self._missing: dict[str, int] = {}  # by path
        self._epoch: str | None = None  # of the data that this archive was found to be of
        try:
            if "://" in url:
                self._fs, self._place = fs.FileSystem.from_uri(url)
            else:
                self._fs, self._place = fs.LocalFileSystem(), str(Path(url).expanduser().resolve())
        except (pa.ArrowException, OSError, ValueError, ImportError) as error:
            raise ConfigurationError(
                f"archive.url: {self.place!r} cannot be used: {error}. Write a folder, or a URL such as "
                "s3://BUCKET/PATH"
            ) from None

    @property
    def place(self) -> str:
        """The URL or folder that was given, without user and password, for messages."""
        return without_credentials(self.url)

    @cached_property
    def _root(self) -> str:
        """The folder of this namespace and topic.

        A namespace has a subfolder unless the manifest at the URL names this namespace, or there is no manifest and it
        is the default namespace. The manifest is read only at the first use.

        Raises:
            ArchiveError: the manifest cannot be read.
        """
        found = self._read(f"{self._place}/{_MANIFEST}")
        owner = NAMESPACE if found is None else _decoded(f"{self._place}/{_MANIFEST}", found).get("namespace")
        own = self._place if owner == self._namespace else f"{self._place}/namespace={self._namespace}"
        return own + self._below

    def later_topics(self) -> list[int]:
        """Return the numbers of the later topics that have a folder in the archive, in ascending order.

        Call it on the store of the first topic.

        Raises:
            ArchiveError: the archive cannot be listed.
        """
        names = (_TOPIC.fullmatch(info.base_name) for info in self._list(self._root))
        return sorted(int(name[1]) for name in names if name is not None)

    def claim(self, namespace: str, partitions: int, epochs: tuple[str, ...]) -> None:
        """Write the manifest if there is none, whatever files there are; else check that the archive is of this data.

        If the epoch of the manifest is one of `epochs` but not the first, the manifest is written with the first one,
        and loses its retractions.

        Args:
            namespace: The namespace of the deployment.
            partitions: The number of partitions.
            epochs: The epoch of the data, then the epochs that it was restored from.

        Raises:
            ArchiveError: the archive is of other data or of another format, or the manifest cannot be read or written.
        """
        found = self._read(f"{self._root}/{_MANIFEST}")
        ours = {"format": FORMAT, "namespace": namespace, "partitions": partitions, "epoch": epochs[0]}
        if found is not None:
            theirs = _decoded(f"{self._root}/{_MANIFEST}", found)
            differing = [name for name in ("format", "namespace", "partitions") if theirs.get(name) != ours[name]]
            if differing or theirs.get("epoch") not in epochs:
                raise ArchiveError(
                    f"{self.place} is the archive of other data (different {', '.join(differing) or 'epoch'}): "
                    "archiving there would mix both. Name an empty folder in [archive] url"
                )
            if theirs["epoch"] == epochs[0]:
                return
        self._write(f"{self._root}/{_MANIFEST}", msgspec.json.encode(ours))

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest (`format`, `namespace`, `partitions`, `epoch`, and `retracted` if any); `None` if none.

        A damaged manifest may lack some of these.

        Raises:
            ArchiveError: the manifest cannot be read, is not JSON, or has a value of another type.
        """
        found = self._read(f"{self._root}/{_MANIFEST}")
        return None if found is None else _decoded(f"{self._root}/{_MANIFEST}", found, _Manifest)

    def is_of(self, epoch: str) -> bool:
        """Return whether the manifest names the epoch `epoch`; also `True` without a manifest, or if it has no epoch.

        Raises:
            ArchiveError: the manifest cannot be read.
        """
        return bool((self.manifest() or {}).get("epoch", epoch) == epoch)

    def ensure_of(self, epoch: str) -> None:
        """Raise an `ArchiveError` unless the archive is of the epoch `epoch`, that of the data to read: see `is_of`.

        The manifest is read only once for an epoch that is not refused: an audit calls this for each partition.

        Raises:
            ArchiveError: the archive is of other data, or the manifest cannot be read.
        """
        if self._epoch == epoch:
            return
        if not self.is_of(epoch):
            raise ArchiveError(
                f"{self.place} is the archive of other data (different epoch), so its events are not those of the "
                "streams. Name the archive of this data (--archive URL, or [archive] url)"
            )
        self._epoch = epoch

    def note(self, retracted: Sequence[Retraction]) -> None:
        """Replace the retractions in the manifest by `retracted`, those that are live now.

        Do nothing if there is no manifest, or if it has the same ones already.

        Raises:
            ArchiveError: the manifest cannot be read or written.
        """
        found = self.manifest()
        if found is not None and self.retracted() != list(retracted):
            self._write(f"{self._root}/{_MANIFEST}", msgspec.json.encode(found | {_RETRACTED: retracted}))

    def retracted(self) -> list[Retraction]:
        """Return the retractions in the manifest; empty if there are none, or no manifest.

        Raises:
            ArchiveError: the manifest cannot be read.
        """
        found = (self.manifest() or {}).get(_RETRACTED, [])
        try:
            return msgspec.convert(found, list[Retraction])
        except msgspec.ValidationError as error:
            raise _damaged(f"{self._root}/{_MANIFEST}", error) from None

    def add_rules(self, changes: Mapping[str, Mapping[str, str]]) -> None:
        """Add changes of the rules to those that the archive has, which stay. Write nothing if it has all of them.

        Args:
            changes: By ID, the fields of the recorded changes; they replace the fields of a stored change with that ID.

        Raises:
            ArchiveError: the changes cannot be read or written.
        """
        present = self.rules()
        if any(present.get(name) != fields for name, fields in changes.items()):
            self._write(f"{self._root}/{_RULES}", msgspec.json.encode(present | dict(changes)))

    def rules(self) -> dict[str, dict[str, str]]:
        """Return the changes of the rules: the recorded fields of each change by its ID, as `1764540000000-0`.

        The first number of an ID is the server's time in milliseconds. Empty if none were added.

        Raises:
            ArchiveError: the changes cannot be read.
        """
        found = self._read(f"{self._root}/{_RULES}")
        return {} if found is None else _decoded(f"{self._root}/{_RULES}", found, dict[str, dict[str, str]])

    def add_files_ingested(self, sizes: Mapping[str, int]) -> None:
        """Add identities of ingested files to those that the archive has, which stay. Write nothing if it has all.

        Args:
            sizes: By identity, the number of bytes that it was made from (see `Layout.files`); it replaces the stored
                number of this identity.

        Raises:
            ArchiveError: the identities cannot be read or written.
        """
        present = self.files_ingested()
        if not sizes.items() <= present.items():
            self._write(f"{self._root}/{_FILES}", msgspec.json.encode(present | dict(sizes), order="sorted"))

    def files_ingested(self) -> dict[str, int]:
        """Return, by identity of each ingested file, the number of bytes that the identity was made from.

        This is not the size of the file: see `Layout.files`. Empty if none were added.

        Raises:
            ArchiveError: the identities cannot be read.
        """
        found = self._read(f"{self._root}/{_FILES}")
        return {} if found is None else _decoded(f"{self._root}/{_FILES}", found, dict[str, int])

    def put(
        self, partition: int, after: str, first: str, last: str, table: pa.Table, *, lost: str = "", again: bool = False
    ) -> None:
        """Write one file atomically; do nothing if a file of the same name exists, unless `again` is set.

        Args:
            partition: The number of the partition.
            after: The ID of the archived entry before the first, by which readers notice a missing file; in the first
                file, the ID after which the archive begins.
            first: The ID of the first entry.
            last: The ID of the last entry, of the same day.
            table: The rows, as `Rows.table` returns them.
            lost: If entries between `after` and the first one may be lost, so that only the counters have their events:
                an ID that is not before the last of them; else empty.
            again: Whether to replace a file of the same name, which has the same rows.

        Raises:
            ArchiveError: the file could not be written; the message contains the reason.
        """
        if lost:
            table = table.replace_schema_metadata({**(table.schema.metadata or {}), _COUNTED_ONLY: lost})
        path = f"{self._folder(day_of(parse_id(first)), partition)}/{first}_{last}.parquet"
        self._put(path, after, table, again=again)

    def put_lost(self, partition: int, after: str, first: str, file: File, table: pa.Table, missing: int) -> None:
        """Write the rows of a file that the server has lost to a file in the folder `lost`, which no reader finds.

        Its name has the ID `first` and the last ID of `file`, and ends in `.parquet.lost`. Do nothing if there is a
        file of this name.

        Args:
            partition: The number of the partition.
            after: The ID of the archived entry before the first lost one, or the ID after which the archive begins.
            first: The ID of the first lost entry.
            file: The file that has the entries.
            table: The rows of the lost entries.
            missing: How many of the lost entries were not sent again; the method `missing` returns the sum of these.

        Raises:
            ArchiveError: the file could not be written; the message contains the reason.
        """
        path = f"{self._lost_folder(partition)}/{first}_{file.last[0]}-{file.last[1]}{_SET_ASIDE}"
        self._put(path, after, table, {_MISSING: str(missing)})

    def put_counted(self, partition: int, after: str, first: str, file: File, table: pa.Table, mark: str) -> None:
        """Write, as `put_lost`, entries that the server has lost, and whose events are in its counters.

        The name of the file ends in `.parquet.counted`. `mark` is that of the restored snapshot with these counters.

        Raises:
            ArchiveError: the file could not be written; the message contains the reason.
        """
        path = f"{self._lost_folder(partition)}/{first}_{file.last[0]}-{file.last[1]}{_IN_COUNTERS}"
        self._put(path, after, table, {_SNAPSHOT: mark})

    def missing(self, partition: int | None = None) -> int:
        """Return how many of the entries in the files of `put_lost` were not sent again, as those files state.

        0 if there are no such files. With `partition`, only the files of this partition count.

        Raises:
            ArchiveError: the folder cannot be listed, or a file in it cannot be read.
        """
        folder = f"{self._root}/{_LOST}" if partition is None else self._lost_folder(partition)
        found = 0
        for info in self._list(folder, recursive=True):
            if info.base_name.endswith(_SET_ASIDE):
                if info.path not in self._missing:
                    self._missing[info.path] = _parsed(self._metadata(info.path), _MISSING, info.path, int)
                found += self._missing[info.path]
        return found

    def set_aside(self, partition: int) -> list[File]:
        """Return the files of `put_lost` of a partition, in the order of their first IDs; `columns` reads their rows.

        `File.last` is the last ID of the file that had the entries; it may be after the last entry of this one.

        Raises:
            ArchiveError: the folder cannot be listed.
        """
        return self._in_lost_folder(partition, _SET_ASIDE)

    def counted(self, partition: int) -> list[File]:
        """Return the files of `put_counted` of a partition, in the order of `set_aside`; `columns` reads their rows.

        For `File.last`, see `set_aside`.

        Raises:
            ArchiveError: the folder cannot be listed.
        """
        return self._in_lost_folder(partition, _IN_COUNTERS)

    def snapshot_of(self, file: File) -> str:
        """Return the mark of the snapshot whose counters have the entries of a file of `put_counted`.

        Raises:
            ArchiveError: the file cannot be read.
        """
        return _parsed(self._metadata(file.path), _SNAPSHOT, file.path, str)

    def _in_lost_folder(self, partition: int, ending: str) -> list[File]:
        infos = [info for info in self._list(self._lost_folder(partition)) if info.base_name.endswith(ending)]
        named = ((_NAME.fullmatch(info.base_name.removesuffix(ending) + ".parquet"), info) for info in infos)
        return sorted(File(parse_id(name[1]), parse_id(name[2]), info.path) for name, info in named if name is not None)

    def retire(self, file: File) -> None:
        """Give a file, which others replace, a new name that no reader finds; do nothing if there is no such file.

        The name ends in `.replaced-` and eight digits that no other one has: so also a file that another archiver has
        written under the old name meanwhile stays in the archive's folder.

        Raises:
            ArchiveError: the file cannot be renamed.
        """
        try:
            if self._is_there(file.path):
                self._fs.move(file.path, f"{file.path.removesuffix('.parquet')}.replaced-{uuid.uuid4().hex[:8]}")
        except FileNotFoundError:
            pass  # another archiver was faster
        except (pa.ArrowException, OSError) as error:
            raise ArchiveError(f"{file.path} cannot be renamed: {error}") from error

    def remove(self, file: File) -> None:
        """Remove a file; do nothing if there is no such file.

        Raises:
            ArchiveError: the file cannot be removed.
        """
        try:
            if self._is_there(file.path):
                self._fs.delete_file(file.path)
        except FileNotFoundError:
            pass  # another archiver of the same entries was faster
        except (pa.ArrowException, OSError) as error:
            raise ArchiveError(f"{file.path} cannot be removed: {error}") from error

    def _put(
        self,
        path: str,
        after: str,
        table: pa.Table,
        more: Mapping[bytes, str] = MappingProxyType({}),
        *,
        again: bool = False,
    ) -> None:
        if not again and self._is_there(path):
            return  # written by a run that was killed before it moved the group
        metadata = {**(table.schema.metadata or {}), b"tallystream.format": FORMAT, _AFTER: after, **more}
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata(metadata), sink, **_ENCODING)
        self._write(path, sink.getvalue())

    def refresh(self) -> None:
        """Forget which files were found before: an `fsspec` file system may keep lists of files, others do not."""
        handler = getattr(self._fs, "handler", None)
        if isinstance(handler, fs.FSSpecHandler):
            handler.fs.invalidate_cache()

    def newest(self, partition: int, until: StreamID | None = None) -> File | None:
        """Return the file with the latest entries of a partition, `None` if there is no file.

        Args:
            partition: The number of the partition.
            until: An ID: files that begin after it are passed over. The file may also have later entries. `None` for no
                limit.

        Raises:
            ArchiveError: the archive cannot be listed.
        """
        for day in reversed(self._days()):
            if until is not None and day > day_of(until):
                continue
            if files := [file for file in self._files(day, partition) if until is None or file.first <= until]:
                return files[-1]
        return None

    def neighbours(self, partition: int, id_: StreamID) -> tuple[StreamID | None, StreamID | None]:
        """Return the ID of the last archived entry up to an ID, and of the first one after it; `None` for no entry.

        If each archived entry is after `id_`, the first result is the ID after which the archive begins, but at most
        `id_`. If no entry is archived, both are `None`.

        Raises:
            ArchiveError: the archive cannot be listed, or a file cannot be read.
        """
        last: StreamID | None = None
        for file in self.files(partition):
            if file.first > id_:
                return min(self.join(file).before, id_) if last is None else last, file.first
            if file.last > id_:
                table = self.columns(file, ["received", "received_n"])
                numbers = table.column("received_n").to_pylist()
                ids = list(zip(table.column("received").cast("int64").to_pylist(), numbers, strict=True))
                later = (each for each in ids if each > id_)
                return max(each for each in ids if each <= id_), min(later, default=file.last)
            last = file.last
        return last, None

    def beginning(self, partition: int) -> StreamID | None:
        """Return the ID after which the archive of a partition has every entry up to its last one, as two numbers.

        It is the end of the last range of lost entries (see `join`), or else the ID after which the archive begins:
        `(0, 0)` if it begins with the first entry that was ever appended. `None` if no entry is archived. A file that
        was removed between two others is not noticed here.

        Raises:
            ArchiveError: a file cannot be read, or has another format, or the archive cannot be listed.
        """
        join = None
        for file in reversed(list(self.files(partition))):
            join = self.join(file)
            if join.lost is not None:
                return join.lost
        return None if join is None else join.before

    def join(self, file: File) -> Join:
        """Return how a file joins the one before; no row is read.

        Raises:
            ArchiveError: the file cannot be read, or has another format.
        """
        metadata = self._metadata(file.path)
        before = parse_id(_before_the_first(metadata, file))
        lost = _parsed(metadata, _COUNTED_ONLY, file.path, parse_id) if _COUNTED_ONLY in metadata else None
        return Join(before, lost)

    def files(self, partition: int, after: StreamID = (0, 0)) -> Iterator[File]:
        """Yield the files of a partition that contain entries after the ID `after`, in the order of their IDs.

        A file may also contain earlier entries. The files of a day are listed when the first of them is asked for.

        Raises:
            ArchiveError: the archive cannot be listed.
        """
        for day in self._days():
            if day >= day_of(after):
                yield from (file for file in self._files(day, partition) if file.last > after)

    def read(self, file: File) -> tuple[pa.Table, str]:
        """Return the rows of a file, and, as text, the ID `before` of its `Join`.

        Raises:
            ArchiveError: the file cannot be read, or has another format or other columns.
        """
        table = self._rows(file, None)
        before = _before_the_first(table.schema.metadata or {}, file)
        _check_columns(table, SCHEMA.names, file)
        return table, before

    def columns(self, file: File, names: list[str]) -> pa.Table:
        """Return some columns of a file; the others are not read, and the format of the file is not checked.

        Raises:
            ArchiveError: the file cannot be read, or lacks one of the columns, or has another type of it.
        """
        table = self._rows(file, names)
        _check_columns(table, names, file)
        return table

    def _rows(self, file: File, names: list[str] | None) -> pa.Table:
        try:
            with self._fs.open_input_file(file.path) as source:
                return pq.read_table(source, columns=names, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(file.path, error) from error

    def _folder(self, day: str, partition: int) -> str:
        return f"{self._root}/day={day}/partition={tag_of(partition)}"

    def _lost_folder(self, partition: int) -> str:
        return f"{self._root}/{_LOST}/partition={tag_of(partition)}"

    def _days(self) -> list[str]:
        names = (_DAY.fullmatch(info.base_name) for info in self._list(self._root))
        return sorted(name[1] for name in names if name is not None)

    def _files(self, day: str, partition: int) -> list[File]:
        infos = self._list(self._folder(day, partition))
        named = ((_NAME.fullmatch(info.base_name), info.path) for info in infos)
        return sorted(File(parse_id(name[1]), parse_id(name[2]), path) for name, path in named if name is not None)

    def _metadata(self, path: str) -> Mapping[bytes, bytes]:
        try:
            with self._fs.open_input_file(path) as source:
                return pq.read_schema(source).metadata or {}
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error

    def _is_there(self, path: str) -> bool:
        try:
            return bool(self._fs.get_file_info(path).type == fs.FileType.File)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error

    def _list(self, folder: str, *, recursive: bool = False) -> list[fs.FileInfo]:
        try:
            return list(self._fs.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=recursive)))
        except (pa.ArrowException, OSError) as error:
            raise ArchiveError(f"{folder} cannot be listed: {error}") from error

    def _read(self, path: str) -> bytes | None:
        if not self._is_there(path):
            return None
        try:
            with self._fs.open_input_file(path) as source:
                return bytes(source.read())
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error

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
        found = metadata.get(b"tallystream.format", b"none").decode(errors="replace")
        raise ArchiveError(
            f"{file.path} has archive format {found}, but this release reads and writes {FORMAT}: read it with the "
            "release that wrote it, and set another folder in [archive] url for this one"
        )
    _parsed(metadata, _AFTER, file.path, parse_id)
    return metadata[_AFTER].decode()


def _parsed(metadata: Mapping[bytes, bytes], name: bytes, path: str, parse: Callable[[str], _T]) -> _T:
    """Return a value that this module wrote into the metadata of a file.

    Args:
        metadata: The metadata of the file.
        name: The name of the value in it.
        path: The path of the file, for the error.
        parse: Makes the value from its text; raises `ValueError` for another form.

    Raises:
        ArchiveError: the value is missing, or has another form.
    """
    try:
        return parse(metadata[name].decode())
    except (KeyError, ValueError):
        raise _damaged(path, f"the field {name.decode()} of its metadata is missing or has another form") from None


def _check_columns(table: pa.Table, names: Sequence[str], file: File) -> None:
    for name in names:
        if name not in table.schema.names or table.schema.field(name).type != SCHEMA.field(name).type:
            raise _damaged(file.path, f"the column {name} is missing or has another type")


def _decoded(path: str, content: bytes, kind: Any = dict[str, Any]) -> Any:
    """Return the content of a JSON file as a value of the type `kind`.

    Raises:
        ArchiveError: the content is not JSON, or of another type.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, error) from None


def _unreadable(path: str, error: Exception) -> ArchiveError:
    return ArchiveError(f"{path} cannot be read: {error}")


def _damaged(path: str, fault: object) -> ArchiveError:
    return ArchiveError(f"{path} is damaged: {fault}. Restore this file from a copy of the archive")


def day_of(stream_id: StreamID) -> str:
    """Return the UTC day of an entry by its ID, as `2026-11-24`; at most `9999-12-31`."""
    day = min(stream_id[0] // _DAY_MS, _LAST_DAY)
    return (dt.date(1970, 1, 1) + dt.timedelta(days=day)).isoformat()


_LAST_DAY: Final = (dt.date.max - dt.date(1970, 1, 1)).days

# Found by measuring: 1.35 bytes an event on the Zipf load; a dictionary of subjects takes 1.98. Sorting by subject
# instead of by entry takes 2.29, because the numbers of the entries cost more than the subjects save.
_ENCODING: Final[dict[str, Any]] = {
    "compression": "zstd",
    "compression_level": 6,
    "use_dictionary": [
        *("received", "received_n", "kind", "metric", "amount", "events", "happened"),
        *("actor", "finest", "producer", "sequence"),
    ],
    "column_encoding": {"subject": "DELTA_BYTE_ARRAY", "id": "DELTA_BYTE_ARRAY"},
    "write_statistics": True,
    "write_page_checksum": True,
    "row_group_size": 1 << 18,
}


def _write_whole(path: Path, content: Any) -> None:
    """Write a file, and create its folder if necessary; after a crash, the file has the old content or the new one.

    The content is written to a temporary file, which is flushed to disk and renamed.

    All other temporary files for this path are removed: those that killed runs left, and those of other processes that
    write the file at the same time. Such a process returns without an error, and the content written here stays. So
    writers of one path must write the same content.

    Raises:
        OSError: the file or its folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with beside.open("wb") as sink:
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
        beside.replace(path)
    except FileNotFoundError:
        if not path.exists():  # else another archiver of the same entries was faster
            raise
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise
    # After the rename: one may be of another archiver that writes the same entries now, and then finds them written.
    for leftover in path.parent.glob(f".{path.name}.*.part"):
        leftover.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
