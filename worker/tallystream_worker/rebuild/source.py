"""Yields the entries of a partition in the order of their IDs: from the archive, then from the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from tallystream.client.replies import is_key_missing
from tallystream.errors import KeyLost, StreamError
from tallystream.wire.stream_id import parse_id
from tallystream_worker.counting.entry import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import redis

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import PartitionKeys

_PAGE: Final = 500


class EntriesTrimmed(StreamError):
    """Raised if entries were trimmed from a stream before they were read; the message states which.

    Only `number` is an attribute.

    Args:
        stream: The stream.
        after: The ID of the last entry that was read; `""` if none was.
        before: The ID of the first entry that is left; `""` if none is.
        number: How many entries were trimmed; `None`, 0 or less if this is not known.
    """

    def __init__(self, stream: str, after: str, before: str, number: int | None) -> None:
        self.number = number if number is not None and number > 0 else None
        """How many entries were trimmed; `None` if this is not known."""
        missing = "entries" if self.number is None else f"{self.number:,} entries"
        super().__init__(
            f"{stream}: {missing} after {after or 'the beginning'} and before {before or 'the end'} were trimmed "
            "before they were read. Run the command again; if you have an archive, name it (--archive URL)"
        )


def stream_entries(
    client: redis.Redis,
    keys: PartitionKeys,
    after: str = "",
    until: str = "+",
    *,
    count: int = _PAGE,
    first: tuple[str, int] | None = None,
) -> Iterator[Entry]:
    """Yield the entries of a stream after the ID `after` (`""`: all) up to and with the ID `until` (`+`: all).

    They are read `count` at a time while the caller iterates, so with `until` `+` also entries that are appended
    meanwhile.

    `first` is the ID of the entry that was the first in the stream at an earlier time, and how many entries the stream
    had lost then. If it is not given, a stream that does not exist has no entries, and entries that are trimmed
    before the first page is read are missing, without an error.

    Raises:
        EntriesTrimmed: entries were trimmed before they were read, after the first page was, or since the first entry
            was `first`.
        KeyLost: the stream was deleted while entries of it were still to be read, or, with `first`, does not exist.
        StreamError: the stream was replaced by one that had, or has lost, fewer entries; no other one is noticed.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    # Of the next entry: its ID, and its position among all entries that the stream ever had.
    following, position = (None, None) if first is None else first
    known = (0, 0 if position is None else position)
    while True:
        with client.pipeline(transaction=True) as pipeline:
            pipeline.execute_command("XRANGE", keys.stream, f"({after}" if after else "-", until, "COUNT", count + 1)
            pipeline.xinfo_stream(keys.stream)
            page, about = pipeline.execute(raise_on_error=False)
        if isinstance(page, Exception):
            raise page
        if isinstance(about, Exception):
            if not (isinstance(about, RedisError) and is_key_missing(about)):
                raise about
            if following is not None:
                raise KeyLost(keys.stream)
            return
        added = int(about["entries-added"])
        held, gone = _beginning(about) or ("", added)
        if added < known[0] or gone < known[1]:
            raise StreamError(f"{keys.stream}: the stream was replaced while it was read. Run the command again")
        if following is not None and _is_past(held, following):
            raise EntriesTrimmed(keys.stream, after, held, None if position is None else gone - position)
        if page and held == page[0][0].decode():
            position = gone
        for id_, fields in page[:count]:
            yield Entry(id_.decode(), _named(fields))
        if len(page) <= count:
            return
        after, following = page[count - 1][0].decode(), page[count][0].decode()
        position = None if position is None else position + count
        known = (added, gone)


def _beginning(about: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return the ID of the first entry of a stream, and how many entries the stream has lost; `None` if it is empty.

    `about` is the reply of XINFO STREAM.
    """
    first = about["first-entry"]
    return None if first is None else (first[0].decode(), int(about["entries-added"]) - int(about["length"]))


def _is_past(held: str, id_: str) -> bool:
    """Return whether the first entry of a stream, with the ID `held`, is after the ID `id_`.

    `held` is empty if the stream has no entry; then the result is `True`.
    """
    return not held or parse_id(held) > parse_id(id_)


def ensure_of_this_data(url: str, deployment: Deployment) -> None:
    """Raise an `ArchiveError` if the archive of the live topic at a URL is of other data than the deployment.

    An archive without a manifest, or whose manifest has no epoch, is accepted.

    Raises:
        ArchiveError: as above, or the manifest of the archive cannot be read.
        ConfigurationError: the URL of the archive cannot be used.
        ImportError: the package pyarrow is not installed.
    """
    from tallystream_worker.archive.store import Store  # noqa: PLC0415  # pyarrow is an extra

    Store(url, deployment.layout.namespace, deployment.layout.topic).ensure_of(deployment.epoch)


def archived_entries(url: str, keys: PartitionKeys, partition: int, after: str, before: str | None) -> Iterator[Entry]:
    """Yield the archived entries of a partition after the ID `after` and before the ID `before`.

    If `after` is empty, they begin with the first; if `before` is `None`, they end with the last.

    Entries that are missing at the end, or, if `after` is empty, at the beginning, are not noticed.

    Raises:
        ArchiveError: the archive cannot be read; a file of it is missing between two others; or, if `after` is not
            empty, a file is missing after `after`, or the archive begins later.
        CodecError: a file has a damaged row.
        ConfigurationError: the URL of the archive cannot be used.
        ImportError: the package pyarrow is not installed.
    """
    from tallystream_worker.archive.entries import entries  # noqa: PLC0415  # pyarrow is an extra
    from tallystream_worker.archive.store import Store  # noqa: PLC0415

    yield from entries(Store(url, keys.namespace, keys.topic), partition, after or "0-0", before)


def entries(
    client: redis.Redis, keys: PartitionKeys, archive: str, partition: int, until: str = "+"
) -> Iterator[Entry]:
    """Yield each entry of a partition once: from the archive those that its stream lacks, then those in the stream.

    `archive` is the URL of the archive; if it is `""`, only the stream is read. `until` is the last ID that is read
    from the stream; it does not limit the archived entries. Entries that are trimmed from the stream meanwhile are read
    from the archive. Entries that were trimmed before the iteration began are left out, without an error, if there is
    no archive, or if they are before its first entry or after its last one.

    Raises:
        ArchiveError, CodecError: the archive cannot be read, a file between two others is missing, or a row is damaged.
        EntriesTrimmed: entries were trimmed from the stream during the iteration, and the archive lacks them.
        KeyLost, StreamError: the stream was deleted or replaced before all its entries were read.
        ConfigurationError: the URL of the archive cannot be used.
        ImportError: an archive is named, and the package pyarrow is not installed.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    after = ""
    held: tuple[str, int] | None = None
    trimmed: EntriesTrimmed | None = None
    while True:
        if archive:
            held, found = _beginning(client.xinfo_stream(keys.stream)) if client.exists(keys.stream) else None, 0
            for entry in archived_entries(archive, keys, partition, after, held and held[0]):
                after, found = entry.id, found + 1
                yield entry
            if trimmed is not None and found < (trimmed.number or 1):
                raise trimmed
        try:
            for entry in stream_entries(client, keys, after, until, first=held):
                after = entry.id
                yield entry
        except EntriesTrimmed as error:
            if not archive:
                raise
            trimmed = error
        else:
            return


def _named(fields: Any) -> dict[bytes, bytes]:
    return fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
