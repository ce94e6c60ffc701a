"""A worker counts what waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tests.scenarios.move import Move

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class Count(Move, frozen=True):
    """A worker counts everything that waits.

    Attributes:
        consumer: The worker's name in the consumer groups.
        shuffle: Seed of the order in which the entries are counted; `None` for that of the stream.
    """

    weight: ClassVar[int] = 2

    consumer: str = "w1"
    shuffle: int | None = None

    @classmethod
    def draw(cls, draft: Draft) -> Count:
        """Return a count by one of two workers."""
        return cls(draft.pick(["w1", "w2"]), draft.pick([None, 1, 2]))

    def play(self, world: World) -> None:
        """Count."""
        world.count(self.shuffle, consumer=self.consumer)
