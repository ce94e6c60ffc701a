"""The end of the process that has the producers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tests.scenarios.move import Move

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class KillProducers(Move, frozen=True):
    """The process of all producers is killed with SIGKILL; later ones use the same folder for their spool.

    Every event was confirmed before, so nothing may be lost or appended twice.
    """

    rows: ClassVar[tuple[int, ...]] = (5,)

    @classmethod
    def draw(cls, _draft: Draft) -> KillProducers:
        """Return the move."""
        return cls()

    def play(self, world: World) -> None:
        """Kill the process; the next move that needs it starts another."""
        world.hosts["app"].stop()
