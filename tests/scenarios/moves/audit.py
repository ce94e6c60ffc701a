"""Operators' commands that check and rebuild the counters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.scenarios.move import Move
from tests.scenarios.world import Mismatch

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class Audit(Move, frozen=True):
    """An operator audits the counters: no counter may differ."""

    @classmethod
    def draw(cls, draft: Draft) -> Audit | None:
        """Return an audit, if the entries are still in the streams."""
        return cls() if draft.age == "forever" else None

    def play(self, world: World) -> None:
        """Count what waits, and audit."""
        world.count()
        world.archive()
        report = world.command("audit", "--json", *world.sources, status=None)
        if not isinstance(report, dict):
            raise Mismatch(f"audit: {report}")
        if report["differences"]:
            raise Mismatch(f"audit: {report['differences'][:5]}")


class Verify(Move, frozen=True):
    """An operator verifies everything: nothing may be wrong, and every check can be made."""

    @classmethod
    def draw(cls, draft: Draft) -> Verify | None:
        """Return a verification, unless entries were lost, which it would name."""
        return None if "lost" in draft.done else cls()

    def play(self, world: World) -> None:
        """Count and archive what waits, and verify."""
        world.count()
        world.archive()
        report = world.command("verify", "--json", *world.sources, status=None)
        if not isinstance(report, dict):
            raise Mismatch(f"verify: {report}")
        if report["findings"] or report["not_checked"]:
            raise Mismatch(f"verify: {report['findings'][:5]} {report['not_checked'][:5]}")


class Rebuild(Move, frozen=True):
    """An operator counts the history again; every answer must be the same afterwards."""

    @classmethod
    def draw(cls, draft: Draft) -> Rebuild | None:
        """Return a rebuild, if the entries are still in the streams."""
        return cls() if draft.age == "forever" else None

    def play(self, world: World) -> None:
        """Count what waits, and rebuild."""
        world.count()
        world.drop_old()
        world.command("rebuild", "--json", *world.sources)
        world.model.recount()
