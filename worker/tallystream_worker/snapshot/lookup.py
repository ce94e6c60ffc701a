"""Reads and removes stored rows by their primary keys, many in one statement, through the index of the table."""

from __future__ import annotations

from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ColumnElement, Connection, Delete, Select, Table, and_, bindparam, delete, or_, select

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MOST: Final = 300
"""The maximum number of key values in one statement: old releases of SQLite accept 999 parameters."""


def stored_rows(connection: Connection, table: Table, keys: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """Yield the stored rows with the given primary keys, with all columns, in any order.

    Args:
        connection: A connection with an open transaction.
        table: The table.
        keys: Values of the columns of the primary key, in their order; each key only once.
    """
    for parameters, number in _chunks(table, keys):
        yield from connection.execute(_selected(table, number), parameters)


def remove_rows(connection: Connection, table: Table, keys: Iterable[tuple[Any, ...]]) -> None:
    """Remove the stored rows with the given primary keys; a key that is not stored is ignored.

    Args:
        connection: A connection with an open transaction.
        table: The table.
        keys: Values of the columns of the primary key, in their order; each key only once.
    """
    for parameters, number in _chunks(table, keys):
        connection.execute(_deleted(table, number), parameters)


def _chunks(table: Table, keys: Iterable[tuple[Any, ...]]) -> Iterator[tuple[dict[str, Any], int]]:
    names = [column.name for column in table.primary_key]
    remaining = iter(keys)
    while chunk := list(islice(remaining, _MOST // len(names))):
        yield (
            {f"{name}_{i}": value for i, key in enumerate(chunk) for name, value in zip(names, key, strict=True)},
            len(chunk),
        )


@lru_cache(maxsize=512)
def _selected(table: Table, number: int) -> Select[Any]:
    return select(table).where(_is_one_of(table, number))


@lru_cache(maxsize=512)
def _deleted(table: Table, number: int) -> Delete:
    return delete(table).where(_is_one_of(table, number))


def _is_one_of(table: Table, number: int) -> ColumnElement[bool]:
    """Return the condition that a row has one of `number` primary keys; the values are parameters.

    The parameters of the first key are named `<column>_0`, those of the second `<column>_1`, and so on. It is no IN of
    rows, for which SQLite reads the whole table.
    """
    columns = list(table.primary_key)
    return or_(*(and_(*(each == bindparam(f"{each.name}_{i}") for each in columns)) for i in range(number)))
