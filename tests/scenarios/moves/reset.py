"""An operator brings the counters of a subject to 0."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tests.scenarios.known import Known, avoided
from tests.scenarios.move import Move

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class Reset(Move, frozen=True):
    """An operator resets a subject; everything is 0 afterwards, and later events count.

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
        """Return a reset of a metric whose events do not replace one another later."""
        names = [
            name
            for name, rule in draft.rules.metric.items()
            if rule.exact
            and rule.limit is None
            and rule.once in (None, "forever")
            and not (avoided(Known.RESETS) and (rule.ids is not None or rule.once or "minute" in rule.windows))
        ]
        if not names:
            return None
        twice = not avoided(Known.TWO_RESETS) and draft.chance(3)
        return cls(draft.pick(names), draft.pick(["a", "b", "c"]), twice)

    def play(self, world: World) -> None:
        """Count what waits, and reset."""
        if self.metric not in world.rules.metric:
            return
        world.count()
        now = world.now("reader")
        hosts = ("reader", "worker") if self.twice else ("reader",)
        with ThreadPoolExecutor(2) as operators:
            list(operators.map(lambda host: self._reset(world, host), hosts))
        world.model.reset(self.metric, self.subject, now)
        world.count()

    def _reset(self, world: World, host: str) -> None:
        world.command("reset", self.subject, self.metric, "--json", host=host)
