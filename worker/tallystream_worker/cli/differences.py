"""Prints the counters that differ as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream_worker.cli.output import print_table
from tallystream_worker.rebuild.values import by_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tallystream_worker.rebuild.values import Difference

_SHOWN: Final = 50


def print_differences(
    differences: Sequence[Difference], columns: tuple[str, str, str] = ("expected", "found", "difference")
) -> None:
    """Print a table of the 50 largest differences, the largest first; print nothing if there are none.

    Args:
        differences: The differences.
        columns: The names of the columns of `Difference.expected`, `found` and `difference`.
    """
    if differences:
        print_table(
            "differences" if len(differences) <= _SHOWN else f"the {_SHOWN} largest differences",
            ["counter", *columns],
            [
                [row.counter, *map(_text, (row.expected, row.found, row.difference))]
                for row in by_size(differences)[:_SHOWN]
            ],
        )


def _text(value: int | str | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else value
