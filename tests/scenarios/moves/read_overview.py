"""The overview: the sum of all totals of each metric."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar, Final

from tests.scenarios.known import Known, avoided
from tests.scenarios.move import Move
from tests.scenarios.script import Occurrence
from tests.scenarios.world import Mismatch

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


_TRIES: Final = 15
_PAUSE: Final = 0.2  # the read service computes the overview once a second


class ReadOverview(Move, frozen=True):
    """Someone opens the overview."""

    weight: ClassVar[int] = 2

    @classmethod
    def draw(cls, _draft: Draft) -> ReadOverview:
        """Return the move."""
        return cls()

    def play(self, world: World) -> None:
        """Count what waits, and compare the total of each metric with the model."""
        world.count()
        if world.model.changed:
            return
        metrics = list(world.rules.metric)
        world.checks += len(metrics)
        expected = {metric: world.model.books.ledger[f"total@{metric}"] for metric in metrics}
        for _ in range(_TRIES):
            found = self._totals(world)
            if found == expected:
                return
            time.sleep(_PAUSE)
        raise Mismatch(f"GET /v1/overview: the totals are {found}, expected {expected}")

    def _totals(self, world: World) -> dict[str, int]:
        reply = world.ask("reader", "http", config=world.config, requests=[["GET", "/v1/overview", None]])
        ((status, answer),) = reply["answers"]
        if status != 200:
            raise Mismatch(f"GET /v1/overview: status {status}: {answer}")
        return {each["metric"]: each["total"] for each in answer["overview"]["metrics"]}


class EmitLarge(Move, frozen=True):
    """A producer emits an event of almost the largest amount for each of some subjects; no total becomes too large.

    Attributes:
        metric: The metric.
        subjects: The numbers of the subjects; no other move has them, and none comes twice.
        less: How much less each amount is than the largest one.
    """

    metric: str
    subjects: list[int]
    less: int

    @classmethod
    def draw(cls, draft: Draft) -> EmitLarge | None:
        """Return some subjects of a metric of exact sums."""
        names = [
            name
            for name, rule in draft.rules.metric.items()
            if rule.once is None and rule.limit is None and rule.exact and rule.max_subjects is None
        ]
        if avoided(Known.LARGE_TOTALS) or not names:
            return None
        first, number = len(draft.events), draft.number(1, 5)
        draft.events.extend(Occurrence("", "") for _ in range(number))  # so that no subject comes twice
        return cls(draft.pick(names), list(range(first, first + number)), draft.number(0, 9))

    def play(self, world: World) -> None:
        """Emit the events, and count them."""
        world.emit([Occurrence(self.metric, f"large{n}", 2**53 - 1 - self.less) for n in self.subjects])
        world.count()
