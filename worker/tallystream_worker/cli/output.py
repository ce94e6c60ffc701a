"""Prints the output of commands: tables for people, JSON for programs.

Data goes to standard output, remarks to standard error.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

console: Final = Console(markup=False, emoji=False, highlight=False)
"""Prints data to standard output."""

error_console: Final = Console(stderr=True, markup=False, emoji=False, highlight=False)
"""Prints remarks and progress to standard error."""


def print_json(value: Any) -> None:
    """Print a value as one line of JSON on standard output."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table to standard output, with its first column left-aligned and all others right-aligned.

    A cell that is too long continues on the next line.
    """
    from rich.text import Text  # noqa: PLC0415

    table = Table(title=Text(title), title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
