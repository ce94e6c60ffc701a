"""A worker's maintenance: trimming, losses, idle consumers and producers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.scenarios.move import Move

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class Maintain(Move, frozen=True):
    """A worker makes one pass of each service that keeps the streams within bounds.

    Attributes:
        consumer: The worker's name in the consumer groups.
    """

    consumer: str = "w1"

    @classmethod
    def draw(cls, draft: Draft) -> Maintain:
        """Return a pass by one of two workers."""
        return cls(draft.pick(["w1", "w2"]))

    def play(self, world: World) -> None:
        """Make the passes; what is not counted yet is counted first, so that it is certain what may be trimmed."""
        world.count()
        world.ask("worker", "maintain", config=world.config, consumer=self.consumer)
