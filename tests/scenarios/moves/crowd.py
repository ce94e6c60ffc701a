"""Many subjects at once: more than a leaderboard keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tests.scenarios.known import Known, avoided
from tests.scenarios.move import Move
from tests.scenarios.script import Occurrence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class Crowd(Move, frozen=True):
    """A producer emits an event of each of many subjects; subject number n has the amount `amount` + n * `slope`.

    Attributes:
        metric: The metric.
        first: Number of the first subject.
        subjects: The number of subjects.
        amount: The amount of subject 0.
        slope: How much more each subject has than the one before.
    """

    rows: ClassVar[tuple[int, ...]] = (30, 31)

    metric: str
    first: int
    subjects: int
    amount: int
    slope: int = 0

    @classmethod
    def draw(cls, draft: Draft) -> Crowd | None:
        """Return a crowd for a metric of plain sums."""
        names = [name for name, rule in draft.rules.metric.items() if rule.once is None and rule.limit is None]
        if not names:
            return None
        metric = draft.pick(names)
        rule = draft.rules.metric[metric]
        sinks = rule.exact
        sinks = sinks and not (rule.max_subjects is not None and avoided(Known.NEGATIVE_SKETCHES))
        amount = draft.pick([1, 5, 1000, *([-40, -1000] if sinks else [])])
        return cls(metric, draft.pick([0, 0, 10, 20]), draft.pick([5, 30, 60]), amount, draft.pick([0, 1]))

    def play(self, world: World) -> None:
        """Emit the events, and count them."""
        if self.metric not in world.rules.metric:
            return
        numbers = range(self.first, self.first + self.subjects)
        world.emit([Occurrence(self.metric, f"x{n}", self.amount + n * self.slope) for n in numbers])
        world.count()

    def shorter(self) -> Iterator[Move]:
        """Yield smaller crowds."""
        if self.subjects > 1:
            yield Crowd(self.metric, self.first, self.subjects // 2, self.amount, self.slope)
