"""Stores snapshots in SQLite or PostgreSQL; the snapshot of a partition is written in one transaction."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import Table, create_engine, delete, event, inspect, select, update
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.schema import CreateSchema, CreateTable, DropTable

from tallystream.client.connect import without_credentials
from tallystream.errors import ConfigurationError, TallyError
from tallystream.storage.keys import NAMESPACE
from tallystream_worker.process import failpoints
from tallystream_worker.snapshot import schema
from tallystream_worker.snapshot.digests import (
    OF_NO_PARTITION,
    Digest,
    TableDigests,
    differing_digests,
    stored_digests,
)
from tallystream_worker.snapshot.lookup import stored_rows
from tallystream_worker.snapshot.names import row_of
from tallystream_worker.snapshot.point_in_time import SnapshotPosition
from tallystream_worker.snapshot.write import CHUNK, PartitionWriter, Taken, partition_tables, upsert

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sqlalchemy import Connection

    from tallystream_worker.snapshot.changed_keys import Group


class SnapshotError(TallyError):
    """Raised if a snapshot cannot be taken or restored, because of the database or of entries that the server lacks.

    The database cannot be used, or contains no complete snapshot, or one of other data or another format; or another
    process has written one meanwhile.
    """


class Database:
    """The database of the snapshots of one namespace. It connects, and creates missing tables, when it is first used.

    With `is_there`, it creates nothing, and does not change how the database works.

    Args:
        url: A file for SQLite, or an SQLAlchemy URL: `postgresql://USER:PASSWORD@HOST/NAME`, `sqlite:///FILE`. The
            caller must make sure that it is not empty: an empty one is a database in memory.
        namespace: The namespace of the snapshots. If the database at the URL has snapshots of another namespace, a
            separate file (SQLite) or schema (PostgreSQL) next to it is used. An empty database belongs to the default
            namespace.
        is_there: Whether the snapshot must exist. If so, a missing SQLite file raises `ConfigurationError` at first
            use; otherwise it is created. A database without tables counts as one without a snapshot: `facts` and
            `position` return that, and other methods raise `SnapshotError`.

    Raises:
        ConfigurationError: the URL cannot be used, or the driver of the database is not installed; no connection is
            made to find out.

    Every method that reads or writes raises `SnapshotError` if the database cannot be used; until one has succeeded,
    each may raise the `ConfigurationError` of `is_there`. See `at_once` for errors in its context. `close` the database
    at the end.
    """

    def __init__(self, url: str, namespace: str = NAMESPACE, *, is_there: bool = False) -> None:
        self._url = self._place = url
        self._namespace = namespace
        self._is_there = is_there
        self.owner: str | None = None
        """The namespace of the snapshot at the URL itself; `None` before the first use, and if there is none."""
        if url.startswith(("postgres://", "postgresql://")):
            url = "postgresql+psycopg://" + url.partition("://")[2]
        elif "://" not in url:
            url = f"sqlite:///{url}"
        try:
            self._engine = self._at_url = create_engine(url)
        except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:  # ValueError: the port
            raise ConfigurationError(
                f"snapshot.url cannot be used: {error}. Write a file, or postgresql://USER:PASSWORD@HOST/NAME "
                "(that needs: pip install 'tallystream-worker[postgresql]')"
            ) from None
        self._schema: str | None = None
        self._is_ready = False
        self._open: Connection | None = None
        self._preparing = threading.Lock()

    @property
    def place(self) -> str:
        """The URL or file of the snapshots, without user and password, for messages.

        Before the first use, it is that of the given URL, even if the namespace has a separate file or schema.
        """
        return without_credentials(self._place)

    def close(self) -> None:
        """Close all connections; a later call of another method connects again."""
        self._engine.dispose()
        self._at_url.dispose()

    def facts(self) -> dict[str, str]:
        """Return the stored facts about the snapshot's deployment, by name; empty if there is no complete snapshot.

        Raises:
            SnapshotError: the database cannot be used.
            ConfigurationError: the database was opened with `is_there`, and its SQLite file does not exist.
        """
        with self._transaction() as connection:
            if self._has_no_tables(connection):
                return {}
            return {row.name: row.value for row in connection.execute(select(schema.facts))}

    def state(self, facts: Mapping[str, str], *, whole: bool = False) -> None:
        """Store facts about the snapshot's deployment, by name, in one transaction, or in that of `at_once`.

        Args:
            facts: The values, by name; each replaces the stored one.
            whole: Whether to remove all other stored facts, which stay otherwise.
        """
        with self._transaction() as connection:
            rows = [{"name": name, "value": value} for name, value in facts.items()]
            _lock_facts(connection)
            digests = TableDigests(connection)
            if whole:
                connection.execute(delete(schema.facts))
                digests.emptied(schema.facts, OF_NO_PARTITION)
            else:
                digests.remove_stored(schema.facts, rows)
            upsert(connection, schema.facts, rows, self._schema)
            digests.add(schema.facts, OF_NO_PARTITION, rows)
            upsert(connection, schema.digests, digests.rows(), self._schema)

    def settle(self) -> None:
        """Write everything that is committed into the file itself, so that a copy of this file alone is whole.

        With SQLite, commits may be in a second file (`-wal`) until then. If another connection still reads or writes
        after 5 seconds, return without an error, although the second file is still needed. Do nothing with PostgreSQL.
        Do not call it in a context of `at_once`, because SQLite refuses it in a transaction.
        """
        if self._engine.dialect.name == "sqlite":
            with self._transaction() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Return a context in which all writes, and the reads after the first write, are in one transaction.

        With SQLite, a read before the first write is not in it: another process may write between the two. With
        PostgreSQL, two reads may see different moments. For one thread; do not nest it.

        The end of the context commits it; an exception that leaves the context undoes all writes. If the database fails
        inside the context, a method raises SQLAlchemy's error, which becomes `SnapshotError` as it leaves the context.
        """
        with self._transaction() as connection:
            self._open = connection
            try:
                yield
            finally:
                self._open = None

    def clear(self) -> None:
        """Remove all rows of the snapshot in one transaction, or in that of `at_once`; the tables stay."""
        with self._transaction() as connection:
            for table in schema.metadata.sorted_tables:
                connection.execute(delete(table))

    def renew(self) -> None:
        """Replace each table that this release uses by an empty one, whatever columns the present one has.

        This is one transaction, or part of that of `at_once`. A table that only an earlier release has made stays.
        """
        with self._transaction() as connection:
            connection.execute(
                delete(schema.facts)
            )  # begins a transaction: SQLite begins none for the statements below
            for table in schema.metadata.sorted_tables:
                connection.execute(DropTable(table, if_exists=True))
                connection.execute(CreateTable(table))

    def position(self, partition: int) -> tuple[SnapshotPosition, int] | None:
        """Return the position and the generation of a partition's stored snapshot; `None` if there is none.

        Raises:
            SnapshotError: the database cannot be used, or its tables are those of another release.
            ConfigurationError: the database was opened with `is_there`, and its SQLite file does not exist.
            ValueError: another program has written a text in place of a number.
        """
        with self._transaction() as connection:
            if self._has_no_tables(connection):
                return None
            row = connection.execute(
                select(schema.positions).where(schema.positions.c.partition == partition)
            ).one_or_none()
        if row is None:
            return None
        pending = tuple(row.pending.split())
        position = SnapshotPosition(
            int(row.taken), row.delivered, row.generated, pending, row.mark, row.unsent, row.uncounted, row.dead
        )
        return position, int(row.generation)  # SQLite stores a text in any column

    def producers(self, partition: int) -> dict[str, str]:
        """Return, by producer, `<sequence> <stream ID>` of its last entry in the snapshot of a partition.

        The result also has the horizons, by name (`HORIZONS`): how far the server had removed records of silent
        producers. It is empty if there is no snapshot of the partition.
        """
        with self._transaction() as connection:
            found = connection.execute(select(schema.producers).where(schema.producers.c.partition == partition))
            return {row.producer: row.value for row in found}

    def records(self, group: Group, items: Iterable[str]) -> dict[str, str]:
        """Return the stored records of some votes or ids, by item; leave out items without a record.

        Args:
            group: A group of the table `votes` or `ids`; see `changed_keys.Group`.
            items: The items of the group to look up.
        """
        table = schema.COUNTERS[group[0]]
        names = [column.name for column in table.primary_key]
        rows = {row_of(group, item): item for item in items}
        with self._transaction() as connection:
            found = stored_rows(connection, table, rows)
            return {rows[tuple(getattr(row, name) for name in names)]: row.value for row in found}

    def put(self, partition: int, taken: Taken, before: SnapshotPosition | None) -> int:
        """Write a partition's snapshot in one transaction, or in that of `at_once`; return the number of its values.

        The number is that of the values of counters in `taken`, also of those that do not exist (their rows are
        removed).

        Args:
            partition: The number of the partition.
            taken: The snapshot that was read. The mark in its position must be in the partition already (`put_mark`);
                this is not checked.
            before: The position of the stored snapshot that it changes or replaces; `None` if there is none.

        Raises:
            SnapshotError: the snapshot could not be written, or the stored one is not that of `before`, because another
                process has written one meanwhile (the moments `taken` of the two are compared). In a context of
                `at_once`, a database that fails raises SQLAlchemy's error instead.
        """
        with self._transaction() as connection:
            _lock(connection, partition)
            held = select(schema.positions).where(schema.positions.c.partition == partition)
            found = connection.execute(held).one_or_none()
            if (found.taken if found else None) != (before.taken if before else None):
                raise SnapshotError(
                    f"{self.place}: another process, such as a worker, has written a later snapshot meanwhile. This "
                    "one is discarded, and nothing need be done"
                )
            writer = PartitionWriter(connection, partition, self._schema)
            rows = writer.write(taken)
            position = taken.position
            row = {
                "partition": partition, "taken": position.taken, "delivered": position.delivered,
                "generated": position.generated, "pending": " ".join(position.pending),
                "generation": taken.generation, "mark": position.mark, "unsent": position.unsent,
                "uncounted": position.uncounted, "dead": position.dead,
            }  # fmt: skip
            writer.finish(row)
            failpoints.reach("before-commit")
        failpoints.reach("after-commit")
        return rows

    def ledger(self, partition: int) -> dict[str, int]:
        """Return the ledger of a partition in the snapshot, by field; empty if there is no snapshot of it."""
        with self._transaction() as connection:
            rows = connection.execute(select(schema.ledger).where(schema.ledger.c.partition == partition))
            return {row.field: row.value for row in rows}

    def forgotten(self, partition: int) -> dict[str, str]:
        """Return the fields of `PartitionKeys.forgotten` of a partition in the snapshot, by name, all but `DUE`.

        Empty if there is no snapshot of the partition, or if there were no such fields.
        """
        alerts = schema.alerts.c
        with self._transaction() as connection:
            found = select(alerts.value).where(alerts.partition == partition, alerts.name == "forgotten")
            value = connection.execute(found).scalar()
            return {} if value is None else msgspec.json.decode(value, type=dict[str, str])

    def buckets(self, partition: int) -> list[Any]:
        """Return the buckets of a partition in the snapshot, in any order; empty if there are none.

        Each is a row with `name` and `expires`: the millisecond since 1970 until which its keys are needed; 0 for
        forever.
        """
        with self._transaction() as connection:
            return list(connection.execute(select(schema.buckets).where(schema.buckets.c.partition == partition)))

    def read(self, partition: int) -> Iterator[tuple[Table, list[Any]]]:
        """Yield pairs: a table, and up to 20,000 of a partition's rows in it.

        The tables are those of `partition_tables`, then `positions`. A table with more rows is in several pairs, one
        without rows in none. If another snapshot is written meanwhile, the rows may be of both: compare `position`
        before and after.
        """
        with self._transaction() as connection:
            for table in (*partition_tables(), schema.positions):
                query = select(table).where(table.c.partition == partition)
                result = connection.execution_options(yield_per=CHUNK).execute(query)
                for rows in result.partitions():
                    yield table, list(rows)

    def damaged(self, partition: int | None = None) -> list[str]:
        """Return the names of the tables in which another program has changed rows of a partition, sorted.

        Rows that it has removed or added count too. All rows are read, at one moment, also if a snapshot is written
        meanwhile. Do not call it in a context of `at_once`.

        Args:
            partition: The number of the partition; `None` for the facts, which are of no partition.
        """
        number = OF_NO_PARTITION if partition is None else partition
        tables = (schema.facts,) if partition is None else (*partition_tables(), schema.positions)
        with self._moment() as connection:
            stored = stored_digests(connection, number)
            found = {table.name: Digest() for table in tables}
            for table in tables:
                query = select(table) if partition is None else select(table).where(table.c.partition == partition)
                for rows in connection.execution_options(yield_per=CHUNK).execute(query).partitions():
                    found[table.name].add(map(tuple, rows))
        return differing_digests(stored, found)

    def digests(self, partition: int) -> dict[str, str]:
        """Return the stored digests of a partition's rows, by table, as `Digest.text`; empty if there are none."""
        with self._transaction() as connection:
            return stored_digests(connection, partition)

    @contextmanager
    def _moment(self) -> Iterator[Connection]:
        """Return a context with a connection whose reads are all of one moment; it writes nothing.

        It cannot be in a context of `at_once`, because it begins a transaction.
        """
        with self._transaction() as connection:
            if self._engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN")  # the driver begins no transaction for a SELECT
            else:
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        if self._open is not None:
            yield self._open
            return
        try:
            with self._preparing:
                if not self._is_ready:
                    try:
                        self._prepare()
                    except OSError as error:
                        raise SnapshotError(f"{self.place} cannot be used: {error.strerror}") from error
                    self._is_ready = True
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            problem = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
            raise SnapshotError(f"{self.place} cannot be used: {problem}") from error

    def _prepare(self) -> None:
        """Choose the file or schema of this namespace, set `owner`, and create missing tables unless `is_there`.

        After a failure, call it again: it chooses again, by the snapshot at the URL itself.

        Raises:
            ConfigurationError: `is_there` is true, and the SQLite file does not exist.
            SQLAlchemyError: the database cannot be used.
            OSError: the folder of the SQLite file cannot be read.
        """
        engine, schema_ = self._at_url, None
        is_sqlite = engine.dialect.name == "sqlite"
        self.owner = self._owner()
        if (self.owner or NAMESPACE) != self._namespace:
            engine.dispose()
            if is_sqlite:
                self._place = f"{_beside(Path(engine.url.database or ''), self._namespace)}"
                engine = create_engine(engine.url.set(database=self._place))
            else:
                schema_ = f"tally_{self._namespace}"[:_LONGEST_NAME]
                self._place = f"{self._url} (schema {schema_})"
                engine = engine.execution_options(schema_translate_map={None: schema_})
        if is_sqlite:
            if self._is_there and not Path(engine.url.database or "").exists():
                raise ConfigurationError(f"{engine.url.database}: there is no such snapshot")
            if not self._is_there and not event.contains(engine, "connect", _prepare_sqlite):
                event.listen(engine, "connect", _prepare_sqlite)
        if not self._is_there:
            with engine.begin() as connection:
                if schema_ is not None:
                    connection.execute(CreateSchema(schema_, if_not_exists=True))
                for table in schema.metadata.sorted_tables:  # create_all() checks first: no atomic step
                    connection.execute(CreateTable(table, if_not_exists=True))
        self._engine, self._schema = engine, schema_

    def _has_no_tables(self, connection: Connection) -> bool:
        """Return whether the database may have no tables, and has none; without `is_there`, they were created."""
        return self._is_there and not inspect(connection).has_table(schema.facts.name, self._schema)

    def _owner(self) -> str | None:
        """Return the namespace of the snapshot at the URL itself; `None` if there is none."""
        file = self._at_url.url.database
        if self._at_url.dialect.name == "sqlite" and not (file and Path(file).exists()):
            return None  # connecting would create the file
        with self._at_url.connect() as connection:
            if not inspect(connection).has_table(schema.facts.name):
                return None
            found = select(schema.facts.c.value).where(schema.facts.c.name == "namespace")
            return connection.execute(found).scalar_one_or_none()


_SQLITE_PATIENCE: Final = 5.0
"""Most seconds to wait until a new SQLite file can be changed to WAL."""

_SQLITE_AGAIN: Final = 0.02

_LONGEST_NAME: Final = 63
"""Maximum bytes of a name in PostgreSQL."""


def _beside(file: Path, namespace: str) -> Path:
    return file.with_name(f"{file.stem}.{namespace}{file.suffix}")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # With WAL, a person's query does not block a snapshot, and a snapshot does not block a query. Another process may
    # change the mode of a new file at this moment: SQLite then fails at once, and does not wait as it does for rows.
    until = time.monotonic() + _SQLITE_PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(_SQLITE_AGAIN)
    connection.execute("PRAGMA synchronous = FULL")


def _lock(connection: Connection, partition: int) -> None:
    """Make other processes that write a snapshot of the same partition wait until the transaction ends.

    Call this before the transaction reads a row: a row that was read earlier may have changed. With SQLite, all writers
    wait, for at most 5 seconds. With PostgreSQL, no process waits if neither a snapshot of the partition nor facts are
    stored yet.

    Raises:
        SQLAlchemyError: the database cannot be used, or stays locked for too long.
    """
    positions = schema.positions
    held = update(positions).where(positions.c.partition == partition).values(taken=positions.c.taken)
    if not connection.execute(held).rowcount:
        _lock_facts(connection)  # the partition has no row that can be locked


def _lock_facts(connection: Connection) -> None:
    """Make other processes that store facts wait until the transaction ends.

    With SQLite, all writers wait, for at most 5 seconds. With PostgreSQL, no process waits if no facts are stored yet.
    """
    digests = schema.digests
    held = update(digests).where(digests.c.partition == OF_NO_PARTITION).values(value=digests.c.value)
    connection.execute(held)
