"""The fault table: every row by its number, with its name, the checks it must pass, and its scenario."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.clock import faketime

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.world import World


@dataclass(frozen=True)
class Row:
    """One row of the fault table.

    Attributes:
        number: The number of the row in the table.
        name: The fault.
        checks: The letters of the checks that must pass; see `failure.CHECKS`.
        scenario: The function that injects the fault into a world.
        needs: A requirement that not every machine meets: `root` to mount a file system, or `faketime` to set a
            server's clock; empty if there is none.
    """

    number: int
    name: str
    checks: str
    scenario: Callable[[World], None]
    needs: str = ""

    @property
    def lacks(self) -> str:
        """The reason that the row cannot run on this machine; empty if it can."""
        if self.needs == "root" and os.geteuid() != 0:
            return f"row {self.number} mounts a small file system: run it as root"
        if self.needs == "faketime" and faketime() is None:
            return f"row {self.number} changes a server's clock: install libfaketime (apt install faketime)"
        return ""


ROWS: Final[dict[int, Row]] = {}


def row(
    number: int, name: str, checks: str, *, needs: str = ""
) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Return a decorator that adds a scenario to the table as the row with this number."""

    def enter(scenario: Callable[[World], None]) -> Callable[[World], None]:
        assert number not in ROWS, f"row {number} is in the table twice"
        ROWS[number] = Row(number, name, checks, scenario, needs)
        return scenario

    return enter
