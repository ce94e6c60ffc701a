"""The database that snapshots lie in: one transaction for each partition, so no moment is ever half there."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Table, create_engine, delete, event, inspect, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.schema import CreateSchema, CreateTable

from tallystream.errors import ConfigurationError, TallyError
from tallystream.storage.keys import NAMESPACE
from tallystream_worker.process import failpoints
from tallystream_worker.snapshot import schema
from tallystream_worker.snapshot.copy import copy
from tallystream_worker.snapshot.names import row_of
from tallystream_worker.snapshot.point_in_time import SnapshotPosition

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sqlalchemy import Connection

    from tallystream_worker.snapshot.changed_keys import Group
    from tallystream_worker.snapshot.values import Values

_CHUNK: Final = 20_000
_LOOKUP: Final = 300
"""Rows of one question: SQLite takes 999 parameters where it is old."""


_MANY: Final = 200
"""Rows for which PostgreSQL is sent a COPY: an upsert for each takes ten times as long."""


class SnapshotError(TallyError):
    """The database cannot be used, or holds the snapshot of other data."""


@dataclass(frozen=True)
class Taken:
    """A partition's snapshot as it is read, for the database.

    Attributes:
        position: Its moment.
        generation: Of the counters.
        values: By group and item; `None` for what is not there.
        expires: By bucket, when it expires.
        ledger: The books.
        producers: By producer, `<sequence> <stream ID>`.
        whole: It is everything that there is: what is not among it is not there.
        alerts: What alerts remember: by name, as JSON, and when it expires.
    """

    position: SnapshotPosition
    generation: int
    values: Mapping[Group, Values]
    expires: Mapping[str, int]
    ledger: Mapping[str, int]
    producers: Mapping[str, str]
    whole: bool
    alerts: Mapping[str, tuple[str, int]] = field(default_factory=dict)


class Database:
    """Where snapshots are kept.

    Args:
        url: A file for SQLite, or an SQLAlchemy URL: `postgresql://USER:PASSWORD@HOST/NAME`, `sqlite:///FILE`.
        namespace: Whose snapshot: another than the one that the place belongs to has a file (SQLite) or a schema
            (PostgreSQL) of its own beside it.
        is_there: It is only read, so a file that is missing is an error, when it is first used, and not made.

    Raises:
        ConfigurationError: the URL cannot be used.
    """

    def __init__(self, url: str, namespace: str = NAMESPACE, *, is_there: bool = False) -> None:
        self._url = self._place = url
        self._namespace = namespace
        self._is_there = is_there
        self.owner: str | None = None
        """Whose the place itself is, once that was asked."""
        if url.startswith(("postgres://", "postgresql://")):
            url = "postgresql+psycopg://" + url.partition("://")[2]
        elif "://" not in url:
            url = f"sqlite:///{url}"
        try:
            self._engine = create_engine(url)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise ConfigurationError(
                f"snapshot.url cannot be used: {error}. Write a file, or postgresql://USER:PASSWORD@HOST/NAME "
                "(that needs: pip install 'tallystream-worker[postgresql]')"
            ) from None
        self._upsert = sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert
        self._schema: str | None = None
        self._is_ready = False
        self._open: Connection | None = None
        self._preparing = threading.Lock()

    @property
    def place(self) -> str:
        """The URL, without a password."""
        return _without_password(self._place)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def facts(self) -> dict[str, str]:
        """Return what the snapshot is of; nothing where there is none."""
        with self._transaction() as connection:
            return {row.name: row.value for row in connection.execute(select(schema.facts))}

    def state(self, facts: Mapping[str, str]) -> None:
        """Note what the snapshot is of."""
        with self._transaction() as connection:
            self._put(connection, schema.facts, [{"name": name, "value": value} for name, value in facts.items()])

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Write everything that is written in the context, or nothing. For one thread."""
        with self._transaction() as connection:
            self._open = connection
            try:
                yield
            finally:
                self._open = None

    def clear(self) -> None:
        """Remove everything."""
        with self._transaction() as connection:
            for table in schema.metadata.sorted_tables:
                connection.execute(delete(table))

    def position(self, partition: int) -> tuple[SnapshotPosition, int] | None:
        """Return the moment of a partition's rows and the generation that they are of; `None` before the first."""
        with self._transaction() as connection:
            row = connection.execute(
                select(schema.positions).where(schema.positions.c.partition == partition)
            ).one_or_none()
        if row is None:
            return None
        return SnapshotPosition(row.taken, row.delivered, row.generated, tuple(row.pending.split())), row.generation

    def records(self, group: Group, items: Iterable[str]) -> dict[str, str]:
        """Return the standing votes or events among some of a group, by item."""
        table = schema.COUNTERS[group[0]]
        names = [column.name for column in table.primary_key]
        columns = tuple_(*(table.c[name] for name in names))
        rows = {row_of(group, item): item for item in items}
        found: dict[str, str] = {}
        remaining = iter(rows)
        with self._transaction() as connection:
            while chunk := list(islice(remaining, _LOOKUP // len(names))):
                query = select(table).where(columns.in_(chunk))
                for row in connection.execute(query).mappings():
                    found[rows[tuple(row[name] for name in names)]] = row["value"]
        return found

    def put(self, partition: int, taken: Taken, before: SnapshotPosition | None) -> int:
        """Write a partition's snapshot: all of it, or nothing; return the number of rows.

        Args:
            partition: Its number.
            taken: What was read.
            before: The moment that it builds on.

        Raises:
            SnapshotError: it could not be written, or somebody else has written one meanwhile.
        """
        with self._transaction() as connection:
            held = select(schema.positions).where(schema.positions.c.partition == partition).with_for_update()
            row = connection.execute(held).one_or_none()
            if (row.taken if row else None) != (before.taken if before else None):
                raise SnapshotError(f"{self.place}: another snapshot was written meanwhile; this one is left")
            if taken.whole:
                for table in metadata_of_partition():
                    connection.execute(delete(table).where(table.c.partition == partition))
            rows = self._put_values(connection, partition, taken)
            self._put_named(connection, partition, schema.buckets, "name", "expires", taken.expires)
            self._put_named(connection, partition, schema.ledger, "field", "value", taken.ledger)
            self._put_named(connection, partition, schema.producers, "producer", "value", taken.producers)
            self._put_alerts(connection, partition, taken.alerts)
            self._forget_expired(connection, partition, taken.position.taken)
            position = taken.position
            self._put(
                connection,
                schema.positions,
                [
                    {
                        "partition": partition, "taken": position.taken, "delivered": position.delivered,
                        "generated": position.generated, "pending": " ".join(position.pending),
                        "generation": taken.generation,
                    }
                ],
            )  # fmt: skip
            failpoints.reach("before-commit")
        failpoints.reach("after-commit")
        return rows

    def buckets(self, partition: int) -> list[Any]:
        """Return the buckets of a partition, each with `name` and `expires`."""
        with self._transaction() as connection:
            return list(connection.execute(select(schema.buckets).where(schema.buckets.c.partition == partition)))

    def read(self, partition: int) -> Iterator[tuple[Table, list[Any]]]:
        """Yield a partition's rows, table by table, some thousands at a time."""
        with self._transaction() as connection:
            for table in metadata_of_partition():
                query = select(table).where(table.c.partition == partition)
                result = connection.execution_options(yield_per=_CHUNK).execute(query)
                for rows in result.partitions():
                    yield table, list(rows)

    def _put_values(self, connection: Connection, partition: int, taken: Taken) -> int:
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
                row["partition"] = partition
                if value is None:
                    gone.append(row)
                else:
                    row["value"] = int(value) if number else value.decode() if text else value
                    there.append(row)
        for name, (there, gone) in by_table.items():
            table = schema.COUNTERS.get(name, schema.structures)
            self._put(connection, table, there)
            if gone and not taken.whole:
                self._remove(connection, table, gone)
            count += len(there) + len(gone)
        return count

    def _put_named(
        self, connection: Connection, partition: int, table: Table, name: str, value: str, rows: Mapping[str, Any]
    ) -> None:
        self._put(connection, table, [{"partition": partition, name: key, value: each} for key, each in rows.items()])

    def _put_alerts(self, connection: Connection, partition: int, found: Mapping[str, tuple[str, int]]) -> None:
        connection.execute(delete(schema.alerts).where(schema.alerts.c.partition == partition))
        rows = [
            {"partition": partition, "name": name, "value": value, "expires": expires}
            for name, (value, expires) in found.items()
        ]
        self._put(connection, schema.alerts, rows)

    def _put(self, connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
        if len(rows) >= _MANY and connection.dialect.name == "postgresql":
            copy(connection, table, self._schema, rows)
            return
        insert = self._upsert(table)
        keys = [column.name for column in table.primary_key]
        changed = {column.name: insert.excluded[column.name] for column in table.c if column.name not in keys}
        upsert = insert.on_conflict_do_update(index_elements=keys, set_=changed)
        for first in range(0, len(rows), _CHUNK):
            connection.execute(upsert, rows[first : first + _CHUNK])

    def _remove(self, connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
        names = [column.name for column in table.primary_key]
        columns = tuple_(*(table.c[name] for name in names))
        step = _LOOKUP // len(names)
        for first in range(0, len(rows), step):
            keys = [tuple(row[name] for name in names) for row in rows[first : first + step]]
            connection.execute(delete(table).where(columns.in_(keys)))

    def _forget_expired(self, connection: Connection, partition: int, now: int) -> None:
        """Remove the rows of buckets that have expired: a restore must not bring them back."""
        buckets = schema.buckets
        over = (buckets.c.partition == partition) & (buckets.c.expires > 0) & (buckets.c.expires <= now)
        for row in connection.execute(select(buckets.c.name).where(over)).all():
            kind, metric, label = row.name.split(":", 2)
            connection.execute(
                delete(schema.structures).where(
                    (schema.structures.c.name == row.name) & (schema.structures.c.partition == partition)
                )
            )
            table = _OF_BUCKET.get(kind, schema.windows)
            of_bucket = (table.c.partition == partition) & (table.c.metric == metric) & (table.c.label == label)
            if table is schema.windows:
                of_bucket &= table.c.window == kind
            connection.execute(delete(table).where(of_bucket))
        connection.execute(delete(buckets).where(over))

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        if self._open is not None:
            yield self._open
            return
        try:
            with self._preparing:
                if not self._is_ready:
                    self._prepare()
                    self._is_ready = True
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            problem = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
            raise SnapshotError(f"{self.place} cannot be used: {problem}") from error

    def _prepare(self) -> None:
        """Make the tables where they are not there: those of this namespace."""
        is_sqlite = self._engine.dialect.name == "sqlite"
        self.owner = self._owner()
        if (self.owner or NAMESPACE) != self._namespace:
            if is_sqlite:
                self._place = f"{_beside(Path(self._engine.url.database or ''), self._namespace)}"
                self._engine.dispose()
                self._engine = create_engine(self._engine.url.set(database=self._place))
            else:
                self._schema = f"tally_{self._namespace}"[:_LONGEST_NAME]
                self._place = f"{self._url} (schema {self._schema})"
                self._engine = self._engine.execution_options(schema_translate_map={None: self._schema})
        if is_sqlite:
            if self._is_there and not Path(self._engine.url.database or "").exists():
                raise ConfigurationError(f"{self._engine.url.database}: there is no such snapshot")
            event.listen(self._engine, "connect", _prepare_sqlite)
        with self._engine.begin() as connection:
            if self._schema is not None:
                connection.execute(CreateSchema(self._schema, if_not_exists=True))
            for table in schema.metadata.sorted_tables:  # create_all() asks first, and two may ask at once
                connection.execute(CreateTable(table, if_not_exists=True))

    def _owner(self) -> str | None:
        """Return whose snapshot lies at the place itself; `None` where none does."""
        file = self._engine.url.database
        if self._engine.dialect.name == "sqlite" and not (file and Path(file).exists()):
            return None  # to connect would make it
        with self._engine.connect() as connection:
            if not inspect(connection).has_table(schema.facts.name):
                return None
            found = select(schema.facts.c.value).where(schema.facts.c.name == "namespace")
            return connection.execute(found).scalar_one_or_none()


_LONGEST_NAME: Final = 63
"""Bytes of a name in PostgreSQL; namespaces are short."""

_OF_BUCKET: Final = {"limit": schema.limits, "once": schema.votes, "seen": schema.ids, "unique": schema.uniques}


def metadata_of_partition() -> tuple[Table, ...]:
    """Return the tables whose rows belong to a partition, but its position."""
    others = (schema.structures, schema.buckets, schema.ledger, schema.producers, schema.alerts)
    return (*schema.COUNTERS.values(), *others)


def _beside(file: Path, namespace: str) -> Path:
    return file.with_name(f"{file.stem}.{namespace}{file.suffix}")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # A reader (a person with a question) does not stop a snapshot, nor the other way round.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.rpartition("@")[2]
