"""A backup that lacks rows: a test of the backup must notice that."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

from tests.scenarios.move import Move
from tests.scenarios.world import Mismatch

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World

TABLES: Final = ("totals", "windows", "upvotes", "votes", "ids")
"""Tables of a snapshot of which each row is needed: without it, a restore gives other answers, at once or later."""


class SpoilSnapshot(Move, frozen=True):
    """Rows of a snapshot are lost, and an operator tests the backup: the drill must fail.

    Attributes:
        table: The table.
        part: Every so many rows are lost; 1 for all rows.
    """

    table: str
    part: int = 1

    @classmethod
    def draw(cls, draft: Draft) -> SpoilSnapshot | None:
        """Return a loss of rows of some table, if no entry was trimmed or lost."""
        if draft.age != "forever" or "lost" in draft.done:
            return None
        return cls(draft.pick(list(TABLES)), draft.pick([1, 2]))

    def play(self, world: World) -> None:
        """Count what waits, take a snapshot, delete the rows, and test it."""
        world.count()
        snapshot = world.folder / "spoilt.sqlite"
        snapshot.unlink(missing_ok=True)
        world.command("snapshot", str(snapshot), "--once", "--json")
        with closing(sqlite3.connect(snapshot)) as database, database:
            lost = database.execute(f"DELETE FROM {self.table} WHERE value <> 0 AND rowid % {self.part} = 0").rowcount  # noqa: S608
        if lost:
            report = world.command("drill", str(snapshot), "--json", status=None)
            if not isinstance(report, dict) or not report["differing"]:
                raise Mismatch(f"drill: {lost} rows of {self.table} are missing from the snapshot, found {report}")
