"""A month or a year without an event of a producer, a spool and a worker, while the deployment runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from tests.scenarios.move import Move, fewer
from tests.scenarios.script import Occurrence  # noqa: TC001  # msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World

DAY: Final = 86_400
PRODUCERS: Final = ("p1", "p2", "spool")


class Idle(Move, frozen=True):
    """Producers and the worker `w2` are silent for many days, and then active again; the worker `w1` makes its passes.

    Attributes:
        days: The number of days.
        before: Events that every producer emits before it is silent.
        after: Events that every producer emits afterwards.
    """

    rows: ClassVar[tuple[int, ...]] = (35,)

    days: int
    before: list[Occurrence]
    after: list[Occurrence]

    @classmethod
    def draw(cls, draft: Draft) -> Idle | None:
        """Return a month or more, rarely more than a year, after which the records of spools are removed."""
        days = draft.pick([31, 31, 40, 400])
        before = [event for _ in range(draft.number(1, 2)) if (event := draft.event()) is not None]
        draft.elapsed += days * DAY
        after = [event for _ in range(draft.number(1, 2)) if (event := draft.event()) is not None]
        return cls(days, before, after) if before and after else None

    def play(self, world: World) -> None:
        """Emit, let the days pass with a pass of the reaper each day, and emit."""
        self._emit(world, self.before)
        world.count(consumer="w2")
        for _ in range(self.days):
            world.advance(DAY)
            world.ask("worker", "reap", url=world.url, consumer="w1", longest=DAY)
        self._emit(world, self.after)
        world.count(consumer="w2")

    def _emit(self, world: World, events: list[Occurrence]) -> None:
        for producer in PRODUCERS:
            spool = {"spool": str(world.folder / "spool")} if producer == "spool" else {}
            world.emit(events, producer, **spool)

    def shorter(self) -> Iterator[Move]:
        """Yield the move with fewer events."""
        for before in fewer(self.before):
            yield Idle(self.days, before, self.after)
        for after in fewer(self.after):
            yield Idle(self.days, self.before, after)
