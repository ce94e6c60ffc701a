"""The server's clock jumps for a moment, and is right again."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from tests.scenarios.move import Move, fewer
from tests.scenarios.script import Occurrence  # noqa: TC001  # msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World

DAY: Final = 86_400


class Jump(Move, frozen=True):
    """The server's clock jumps while a worker makes its passes; events arrive before it is set right.

    Attributes:
        seconds: How far the clock is ahead meanwhile; if negative, it is late.
        events: Events that a producer emits while the clock is wrong.
        producer: The name of the producer.
        maintain: Whether a worker makes a pass of each service that keeps the streams within bounds.
    """

    rows: ClassVar[tuple[int, ...]] = (24,)

    seconds: float
    events: list[Occurrence]
    producer: str = "p1"
    maintain: bool = True

    @classmethod
    def draw(cls, draft: Draft) -> Jump:
        """Return a jump, with up to three events."""
        seconds = draft.pick([DAY, 8 * DAY, 31 * DAY, 400 * DAY, 5400, -600, -5400, -DAY, -40 * DAY])
        events = [event for _ in range(draft.number(0, 3)) if (event := draft.event()) is not None]
        return cls(seconds, events, draft.pick(["p1", "p2"]), draft.chance(2))

    def play(self, world: World) -> None:
        """Count what waits, let the clock jump, and set it right."""
        world.count()
        before = world.skew_of("server")
        world.skew("server", before + self.seconds)
        if self.events:
            world.emit(self.events, self.producer)
            world.count()
        if self.maintain:
            world.ask("worker", "maintain", config=world.config, consumer="w1")
        world.skew("server", before)

    def shorter(self) -> Iterator[Move]:
        """Yield the move with fewer events."""
        for events in fewer(self.events):
            yield Jump(self.seconds, events, self.producer, self.maintain)
        if self.events:
            yield Jump(self.seconds, [], self.producer, self.maintain)
