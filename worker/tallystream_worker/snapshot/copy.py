"""Upserts many rows into PostgreSQL at once: COPY into a temporary table, then one INSERT ... SELECT."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Table


def copy(connection: Connection, table: Table, schema: str | None, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows into a table of PostgreSQL, replacing rows that have the same primary keys.

    A temporary table is made for this, and removed again. The caller commits.

    Args:
        connection: A connection in a transaction; its driver is psycopg.
        table: The table to write.
        schema: The schema of the table; `None` if the search path finds the table.
        rows: The rows, each as a value by column name, for all columns; no two rows have the same primary keys.

    Raises:
        psycopg.Error: the database does not answer, or refuses a statement. It is no SQLAlchemyError.
    """
    names = [column.name for column in table.c]
    keys = [column.name for column in table.primary_key]
    changed = ", ".join(f'"{name}" = excluded."{name}"' for name in names if name not in keys)
    target = f'"{table.name}"' if schema is None else f'"{schema}"."{table.name}"'
    incoming, columns = f'"incoming {table.name}"', _listed(names)
    driver: Any = connection.connection  # psycopg's, which has COPY
    with driver.cursor() as cursor:
        cursor.execute(f"CREATE TEMPORARY TABLE {incoming} (LIKE {target}) ON COMMIT DROP")
        with cursor.copy(f"COPY {incoming} ({columns}) FROM STDIN") as copying:
            values = itemgetter(*names)
            for row in rows:
                copying.write_row(values(row))
        # In the order of the index, so that the index is written front to back.
        cursor.execute(
            f"INSERT INTO {target} ({columns}) SELECT {columns} FROM {incoming} ORDER BY {_listed(keys)} "  # noqa: S608  # names of ours
            f"ON CONFLICT ({_listed(keys)}) DO UPDATE SET {changed}"
        )
        cursor.execute(f"DROP TABLE {incoming}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
