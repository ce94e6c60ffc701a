"""Upserts many rows into PostgreSQL at once: COPY into a table of the transaction, then one INSERT ... SELECT."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Table


def copy(connection: Connection, table: Table, schema: str | None, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows, or replace those that have the same keys.

    Args:
        connection: In a transaction; its driver is psycopg.
        table: Where.
        schema: In which schema it lies; `None` for the first of the search path.
        rows: A value for each column; no two with the same keys.
    """
    names = [column.name for column in table.c]
    keys = [column.name for column in table.primary_key]
    changed = ", ".join(f'"{name}" = excluded."{name}"' for name in names if name not in keys)
    target = f'"{table.name}"' if schema is None else f'"{schema}"."{table.name}"'
    incoming, columns = f'"incoming {table.name}"', _listed(names)
    driver: Any = connection.connection  # psycopg's, which knows more than other drivers
    with driver.cursor() as cursor:
        cursor.execute(f"CREATE TEMPORARY TABLE {incoming} (LIKE {target}) ON COMMIT DROP")
        with cursor.copy(f"COPY {incoming} ({columns}) FROM STDIN") as copying:
            values = itemgetter(*names)
            for row in rows:
                copying.write_row(values(row))
        # In the order of the index, which then is written front to back.
        cursor.execute(
            f"INSERT INTO {target} ({columns}) SELECT {columns} FROM {incoming} ORDER BY {_listed(keys)} "  # noqa: S608  # names of ours
            f"ON CONFLICT ({_listed(keys)}) DO UPDATE SET {changed}"
        )
        cursor.execute(f"DROP TABLE {incoming}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
