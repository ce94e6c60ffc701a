"""The fault table: every row by its number, with its name, the checks it claims, and the scenario that tries it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.world import World


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        number: In the table.
        name: The fault.
        checks: What must hold, in letters; see `failure.CHECKS`.
        scenario: Injects it into a world.
        needs_root: Whether it mounts a file system.
    """

    number: int
    name: str
    checks: str
    scenario: Callable[[World], None]
    needs_root: bool = False


ROWS: Final[dict[int, Row]] = {}

NOT_YET: Final[dict[int, str]] = {}
"""Rows that nothing can be tried of yet, and why: never a scenario that passes without trying."""


def row(
    number: int, name: str, checks: str, *, needs_root: bool = False
) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Enter a scenario into the table."""

    def enter(scenario: Callable[[World], None]) -> Callable[[World], None]:
        assert number not in ROWS, f"row {number} is there twice"
        ROWS[number] = Row(number, name, checks, scenario, needs_root)
        return scenario

    return enter
