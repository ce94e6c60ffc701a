"""Writes the snapshot of one partition into the tables of a database, in an open transaction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Table, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from tallystream_worker.snapshot import schema
from tallystream_worker.snapshot.copy import copy
from tallystream_worker.snapshot.digests import TableDigests
from tallystream_worker.snapshot.lookup import remove_rows
from tallystream_worker.snapshot.names import row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import ColumnElement

    from tallystream_worker.snapshot.changed_keys import Group
    from tallystream_worker.snapshot.point_in_time import SnapshotPosition
    from tallystream_worker.snapshot.values import Values

CHUNK: Final = 20_000
"""The number of rows that are written or read at a time."""

_MANY: Final = 200
"""The number of rows from which PostgreSQL gets a COPY; an upsert of each row takes ten times as long."""

_OF_BUCKET: Final = {"limit": schema.limits, "once": schema.votes, "seen": schema.ids, "unique": schema.uniques}


@dataclass(frozen=True)
class Taken:
    """The snapshot of one partition, read and not written yet.

    Attributes:
        position: The position of the snapshot.
        generation: The generation of the counters.
        values: By group and item, the value; `None` if it does not exist.
        expires: By bucket, the millisecond since 1970 until which the log needs its keys; 0 for forever.
        ledger: The ledger, by field.
        producers: By producer, `<sequence> <stream ID>` of its last entry, and the horizons by name (see `HORIZONS`).
            Unless `whole`, only the producers of entries since the last snapshot.
        whole: Whether all counters were read, so that stored rows of others are removed.
        dead: By ID in the dead stream, the new dead letters since the last snapshot, as `schema.dead` stores them; all
            of them if `whole` or `dead_anew`.
        dead_anew: Whether stored dead letters that are not in `dead` are removed.
        alerts: The states of alerts and the other records of `schema.alerts`, by key without prefix: as JSON, and the
            millisecond since 1970 at which each expires, 0 for never.
        forgotten: A bucket whose `expires` is above 0 and at most this millisecond since 1970 may have been removed; 0
            if none was.
        was_removed: Returns whether the bucket with this name counts as removed; `expires` alone does not show this.
    """

    position: SnapshotPosition
    generation: int
    values: Mapping[Group, Values]
    expires: Mapping[str, int]
    ledger: Mapping[str, int]
    producers: Mapping[str, str]
    whole: bool
    alerts: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    forgotten: int = 0
    dead: Mapping[str, bytes] = field(default_factory=dict)
    dead_anew: bool = False
    was_removed: Callable[[str], bool] = field(kw_only=True)


class PartitionWriter:
    """Writes one snapshot of one partition: call `write`, then `finish`; the caller commits.

    Args:
        connection: A connection with an open transaction.
        partition: The number of the partition.
        schema_name: The PostgreSQL schema of the tables, `None` for the default one.
    """

    def __init__(self, connection: Connection, partition: int, schema_name: str | None) -> None:
        self._connection = connection
        self._partition = partition
        self._schema = schema_name
        self._digests = TableDigests(connection)
        self._whole = False

    def write(self, taken: Taken) -> int:
        """Write all that was taken; return the number of values of counters, also of those that do not exist.

        The rows of counters that do not exist are deleted. If the snapshot is whole, all other rows of the partition
        are deleted too, and not counted. If not, they stay; but the alerts replace all stored ones, and so do the dead
        letters if `dead_anew` is set. Rows of buckets that were removed (by both `forgotten` and `was_removed` of
        `taken`) are deleted. The position and the digests are not written: see `finish`.
        """
        self._whole = taken.whole
        if taken.whole:
            for table in partition_tables():
                self._empty(table)
        rows = self._put_values(taken)
        self._put_named(schema.buckets, "name", "expires", taken.expires)
        self._empty(schema.ledger)  # it is read as a whole each time
        self._put_named(schema.ledger, "field", "value", taken.ledger)
        self._put_named(schema.producers, "producer", "value", taken.producers)
        self._put_alerts(taken.alerts)
        if taken.dead_anew:
            self._empty(schema.dead)
        self._put_named(schema.dead, "id", "value", taken.dead)
        self._remove_buckets(taken.forgotten, taken.was_removed)
        return rows

    def finish(self, position: dict[str, Any]) -> None:
        """Write the row of the position, and the new digests of the changed tables; call `write` first.

        Args:
            position: The values of all columns of `schema.positions`, by name.
        """
        self._empty(schema.positions)
        self._upsert(schema.positions, [position])
        upsert(self._connection, schema.digests, self._digests.rows(), self._schema)

    def _empty(self, table: Table) -> None:
        self._connection.execute(delete(table).where(table.c.partition == self._partition))
        self._digests.emptied(table, self._partition)

    def _upsert(self, table: Table, rows: list[dict[str, Any]]) -> None:
        if not self._whole and table not in (
            schema.positions,
            schema.alerts,
            schema.ledger,
        ):  # else the table was emptied
            self._digests.remove_stored(table, rows)
        upsert(self._connection, table, rows, self._schema)
        self._digests.add(table, self._partition, rows)

    def _put_values(self, taken: Taken) -> int:
        count = 0
        by_table: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
        for group, values in taken.values.items():
            there, gone = by_table.setdefault(group[0], ([], []))
            table = schema.COUNTERS.get(group[0], schema.structures)
            names = [column.name for column in table.primary_key if column.name != "partition"]
            text = isinstance(table.c.value.type, type(schema.votes.c.value.type))
            number = table.c.value.type.python_type is int
            for item, value in values.items():
                row: dict[str, Any] = dict(zip(names, row_of(group, item), strict=True))
                row["partition"] = self._partition
                if value is None:
                    gone.append(row)
                else:
                    row["value"] = int(value) if number else value.decode() if text else value
                    there.append(row)
        for name, (there, gone) in by_table.items():
            table = schema.COUNTERS.get(name, schema.structures)
            self._upsert(table, there)
            if gone and not taken.whole:
                self._remove(table, gone)
            count += len(there) + len(gone)
        return count

    def _put_named(self, table: Table, name: str, value: str, rows: Mapping[str, Any]) -> None:
        found = [{"partition": self._partition, name: key, value: each} for key, each in rows.items()]
        self._upsert(table, found)

    def _put_alerts(self, found: Mapping[str, tuple[str, int]]) -> None:
        self._empty(schema.alerts)
        rows = [
            {"partition": self._partition, "name": name, "value": value, "expires": expires}
            for name, (value, expires) in found.items()
        ]
        self._upsert(schema.alerts, rows)

    def _remove(self, table: Table, rows: list[dict[str, Any]]) -> None:
        self._digests.remove_stored(table, rows)
        names = [column.name for column in table.primary_key]
        remove_rows(self._connection, table, (tuple(row[name] for name in names) for row in rows))

    def _remove_buckets(self, forgotten: int, was_removed: Callable[[str], bool]) -> None:
        connection, partition, buckets = self._connection, self._partition, schema.buckets
        over = (buckets.c.partition == partition) & (buckets.c.expires > 0) & (buckets.c.expires <= forgotten)
        removed = [row for row in connection.execute(select(buckets.c.name).where(over)).all() if was_removed(row.name)]
        for row in removed:
            kind, metric, label = row.name.split(":", 2)
            structures = schema.structures
            self._delete(structures, (structures.c.name == row.name) & (structures.c.partition == partition))
            table = _OF_BUCKET.get(kind, schema.windows)
            of_bucket = (table.c.partition == partition) & (table.c.metric == metric) & (table.c.label == label)
            if table is schema.windows:
                of_bucket &= table.c.window == kind
            self._delete(table, of_bucket)
        self._remove(buckets, [{"partition": partition, "name": row.name} for row in removed])

    def _delete(self, table: Table, which: ColumnElement[bool]) -> None:
        for rows in self._connection.execute(select(table).where(which)).partitions(CHUNK):
            self._digests.remove(table, rows)
        self._connection.execute(delete(table).where(which))


def upsert(connection: Connection, table: Table, rows: list[dict[str, Any]], schema_name: str | None) -> None:
    """Insert rows into a table, replacing rows that have the same primary keys.

    Args:
        connection: A connection with an open transaction.
        table: The table to write.
        rows: The rows, each as a value by column name, for all columns; no two rows have the same primary keys.
        schema_name: The PostgreSQL schema of the table, `None` for the default one.

    Raises:
        SQLAlchemyError: the database cannot be used.
    """
    if len(rows) >= _MANY and connection.dialect.name == "postgresql":
        copy(connection, table, schema_name, rows)
        return
    insert = (sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert)(table)
    keys = [column.name for column in table.primary_key]
    changed = {column.name: insert.excluded[column.name] for column in table.c if column.name not in keys}
    statement = insert.on_conflict_do_update(index_elements=keys, set_=changed)
    for first in range(0, len(rows), CHUNK):
        connection.execute(statement, rows[first : first + CHUNK])


def partition_tables() -> tuple[Table, ...]:
    """Return the tables that have rows for each partition, except `positions` and `digests`."""
    others = (schema.structures, schema.buckets, schema.ledger, schema.producers, schema.alerts, schema.dead)
    return (*schema.COUNTERS.values(), *others)
