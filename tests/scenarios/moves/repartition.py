"""An operator changes the number of partitions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.scenarios.move import Move

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class Repartition(Move, frozen=True):
    """An operator repartitions; every answer must be the same afterwards.

    Attributes:
        partitions: The new number of partitions.
    """

    partitions: int

    @classmethod
    def draw(cls, draft: Draft) -> Repartition | None:
        """Return a repartition, if all entries are still in the streams."""
        if draft.age != "forever" or "lost" in draft.done:
            return None
        return cls(draft.number(1, 4))

    def play(self, world: World) -> None:
        """Count what waits, and repartition, unless that is the number already."""
        world.count()
        if world.partitions != self.partitions:
            world.drop_old()
            world.command("rebuild", "--partitions", str(self.partitions), "--json")
            world.partitions = self.partitions
            world.model.repartition()
            world.configure()


class DropOld(Move, frozen=True):
    """An operator removes the generations and topics that are not live."""

    @classmethod
    def draw(cls, _draft: Draft) -> DropOld:
        """Return the move."""
        return cls()

    def play(self, world: World) -> None:
        """Count what waits, and drop."""
        world.count()
        world.drop_old()
