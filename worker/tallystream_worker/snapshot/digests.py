"""Digests of the tables of a snapshot: they show that a row was changed, removed or added by another program.

The digest of some rows is their number, and the sum of the hashes of all of them: it does not depend on their order, so
it can be continued when some rows are replaced, without the other rows. The rows of each partition in each table have
one digest. It is stored in the table `digests`, in the transaction that writes the rows.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from hashlib import blake2b
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import Connection, Table, select

from tallystream_worker.snapshot import schema
from tallystream_worker.snapshot.lookup import stored_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

OF_NO_PARTITION: Final = -1
"""The partition in the digest of `facts`, whose rows are of no partition."""

_encode: Final = msgspec.msgpack.Encoder().encode
_BITS: Final = 128


@dataclass
class Digest:
    """The digest of some rows of one table: `add` and `remove` rows in any order; equal rows give an equal `text`.

    Attributes:
        rows: The number of rows.
        sum: The sum of the hashes of all rows, modulo 2^128.
    """

    rows: int = 0
    sum: int = 0

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Add rows, each with the values of all columns in their order."""
        self._note(rows, 1)

    def remove(self, rows: Iterable[Sequence[Any]]) -> None:
        """Take rows out again; it is not checked that they were added, so `rows` may become negative."""
        self._note(rows, -1)

    def _note(self, rows: Iterable[Sequence[Any]], times: int) -> None:
        hashes = [blake2b(_encode(row), digest_size=_BITS // 8).digest() for row in rows]
        self.rows += times * len(hashes)
        self.sum = (self.sum + times * sum(int.from_bytes(each, "big") for each in hashes)) % 2**_BITS

    @property
    def text(self) -> str:
        """The digest as it is stored: the number of rows, a space, and the sum in 32 hexadecimal digits."""
        return f"{self.rows} {self.sum:032x}"


class TableDigests:
    """Computes the new digests of tables from the stored ones and from the rows that a transaction changes.

    The caller changes the rows, and at the end writes what the method `rows` returns. The argument `partition` of a
    method is `OF_NO_PARTITION` if the table has no partitions.

    Args:
        connection: A connection with an open transaction.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._changed: dict[tuple[int, str], Digest] = {}

    def emptied(self, table: Table, partition: int) -> None:
        """Note that all rows of a partition in a table were removed; the caller removes them.

        Everything that was noted about these rows before is dropped, so call this before `add`.
        """
        self._changed[partition, table.name] = Digest()

    def add(self, table: Table, partition: int, rows: Iterable[dict[str, Any]]) -> None:
        """Note rows of a partition that are inserted; each has the values of all columns by name.

        The caller inserts them. If they replace stored rows, call `remove_stored` before, or `emptied`.
        """
        self._of(table, partition).add(map(itemgetter(*(column.name for column in table.c)), rows))

    def remove(self, table: Table, rows: Iterable[Any]) -> None:
        """Note rows that are removed or replaced, as a query for all columns returns them.

        The caller must read the rows before it removes them from the table. They may be of several partitions.
        """
        found: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
        place = table.c.keys().index("partition") if "partition" in table.c else None
        for row in rows:
            found[OF_NO_PARTITION if place is None else row[place]].append(tuple(row))
        for partition, removed in found.items():
            self._of(table, partition).remove(removed)

    def remove_stored(self, table: Table, rows: Iterable[dict[str, Any]]) -> None:
        """Note that the stored rows with the same primary keys as the given ones are removed or replaced.

        This reads the stored rows from the database, so call it before they are changed. It changes no row. A key that
        is not stored is ignored.

        Args:
            table: The table.
            rows: The rows, each with the values of the primary key by name; other values are ignored. No two have the
                same primary key.
        """
        names = [column.name for column in table.primary_key]
        keys = (tuple(row[name] for name in names) for row in rows)
        self.remove(table, stored_rows(self._connection, table, keys))

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the table `digests` to write: one for each digest that may have changed.

        Nothing is written here.
        """
        return [
            {"partition": partition, "name": name, "value": digest.text}
            for (partition, name), digest in self._changed.items()
        ]

    def _of(self, table: Table, partition: int) -> Digest:
        if (partition, table.name) not in self._changed:
            stored = stored_digests(self._connection, partition).get(table.name)
            self._changed[partition, table.name] = Digest() if stored is None else parse_digest(stored)
        return self._changed[partition, table.name]


def stored_digests(connection: Connection, partition: int) -> dict[str, str]:
    """Return the stored digests of a partition, or of `OF_NO_PARTITION`, by table, in the form of `Digest.text`."""
    found = connection.execute(select(schema.digests).where(schema.digests.c.partition == partition))
    return {row.name: row.value for row in found}


def parse_digest(text: str) -> Digest:
    """Return the digest with this `text`; a digest of no rows if the text has another form."""
    number, _, hashed = text.partition(" ")
    try:
        return Digest(int(number), int(hashed, 16))
    except ValueError:  # another program wrote it: it agrees with no rows from now on
        return Digest()


def differing_digests(stored: Mapping[str, str], found: Mapping[str, Digest]) -> list[str]:
    """Return the names of the tables whose digest is not the stored one, sorted.

    A table that is missing in one of the arguments counts as one without rows there.

    Args:
        stored: The stored digests, by table.
        found: The digests of the rows that are there, by table.
    """
    names = stored.keys() | found.keys()
    return sorted(name for name in names if found.get(name, Digest()).text != stored.get(name, Digest().text))
