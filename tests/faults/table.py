"""The fault table: every row by its number, with its name, the checks it claims, and the scenario that tries it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
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
        needs: What not every machine has: `root` to mount a file system, `faketime` to turn a server's clock.
    """

    number: int
    name: str
    checks: str
    scenario: Callable[[World], None]
    needs: str = ""

    @property
    def lacks(self) -> str:
        """Why it cannot be tried here; empty where it can."""
        if self.needs == "root" and os.geteuid() != 0:
            return f"row {self.number} mounts a small file system: run it as root"
        if self.needs == "faketime" and faketime() is None:
            return f"row {self.number} turns a server's clock: install libfaketime (apt install faketime)"
        return ""


ROWS: Final[dict[int, Row]] = {}


def row(
    number: int, name: str, checks: str, *, needs: str = ""
) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Enter a scenario into the table."""

    def enter(scenario: Callable[[World], None]) -> Callable[[World], None]:
        assert number not in ROWS, f"row {number} is there twice"
        ROWS[number] = Row(number, name, checks, scenario, needs)
        return scenario

    return enter


def faketime() -> Path | None:
    """Return the library that gives a process another time, `None` where it is not installed."""
    return next(Path("/usr/lib").glob("**/faketime/libfaketime.so.1"), None)
