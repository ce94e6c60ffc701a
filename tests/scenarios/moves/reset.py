"""An operator brings the counters of a subject to 0."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tests.scenarios.move import Move

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class Reset(Move, frozen=True):
    """An operator sets the counters of a subject to 0; later events count.

    Attributes:
        metric: The metric.
        subject: The subject.
        twice: Whether two operators do it at the same time.
    """

    metric: str
    subject: str
    twice: bool = False

    @classmethod
    def draw(cls, draft: Draft) -> Reset | None:
        """Return a reset of a subject of a metric with exact counters."""
        names = [name for name, rule in draft.rules.metric.items() if rule.exact]
        return cls(draft.pick(names), draft.pick(["a", "b", "c"]), draft.chance(3)) if names else None

    def play(self, world: World) -> None:
        """Count what waits, and reset."""
        if self.metric not in world.rules.metric:
            return
        world.count()
        hosts = ("reader", "worker") if self.twice else ("reader",)
        with ThreadPoolExecutor(2) as operators:
            list(operators.map(lambda host: self._reset(world, host), hosts))
        world.model.reset(self.metric, self.subject)
        world.count()  # the worker acknowledges the entry

    def _reset(self, world: World, host: str) -> None:
        world.command("reset", self.subject, self.metric, "--json", host=host)
