"""Yields the entries of a partition in the order of their IDs: from the archive, then from the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tallystream_worker.counting.entry import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from tallystream.storage.keys import PartitionKeys

_PAGE: Final = 500


def stream_entries(
    client: redis.Redis, keys: PartitionKeys, after: str = "", until: str = "+", *, count: int = _PAGE
) -> Iterator[Entry]:
    """Yield the entries of a stream after the ID `after` (`""`: all) up to and with the ID `until` (`+`: all).

    They are read `count` at a time while the caller iterates, so with `until` `+` also entries that are appended
    meanwhile. Entries that are trimmed before they are read are missing, without an error. A stream that does not exist
    has no entries.
    """
    while True:
        page: list[Any] = client.execute_command(
            "XRANGE", keys.stream, f"({after}" if after else "-", until, "COUNT", count
        )
        for id_, fields in page:
            yield Entry(id_.decode(), _named(fields))
        if len(page) < count:
            return
        after = page[-1][0].decode()


def archived_entries(url: str, keys: PartitionKeys, partition: int, after: str, before: str | None) -> Iterator[Entry]:
    """Yield the archived entries of a partition after the ID `after` and before the ID `before`.

    If `after` is empty, they begin with the first; if `before` is `None`, they end with the last.

    Raises:
        ArchiveError: the archive cannot be read, or a file of it is missing.
    """
    from tallystream_worker.archive.entries import entries  # noqa: PLC0415  # pyarrow is an extra
    from tallystream_worker.archive.store import Store  # noqa: PLC0415

    yield from entries(Store(url, keys.namespace, keys.topic), partition, after or "0-0", before)


def entries(
    client: redis.Redis, keys: PartitionKeys, archive: str, partition: int, until: str = "+"
) -> Iterator[Entry]:
    """Yield the entries of a partition: the archived ones (none if `archive` is `""`), then those in its stream.

    `archive` is the URL of the archive. `until` is the last ID that is read from the stream; it does not limit the
    archived entries, which end before the entry that was the first in the stream when the iteration began. Entries that
    are trimmed from the stream while the archive is read are missing, without an error.

    Raises:
        ArchiveError: the archive cannot be read, or a file of it is missing.
    """
    if archive:
        held = next(stream_entries(client, keys), None)
        yield from archived_entries(archive, keys, partition, "0-0", None if held is None else held.id)
    yield from stream_entries(client, keys, until=until)


def _named(fields: Any) -> dict[bytes, bytes]:
    return fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
