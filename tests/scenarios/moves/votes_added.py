"""A metric that begins to count one vote for each actor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from tallystream.rules.metrics import Rules
from tests.scenarios.move import Move

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class AddVotes(Move, frozen=True):
    """An operator adds `once` to a metric: older events stay in its totals, and its votes state it.

    Attributes:
        metric: The metric.
    """

    metric: str

    @classmethod
    def draw(cls, draft: Draft) -> AddVotes | None:
        """Return a metric of sums."""
        unfit = {each.metric for each in draft.events if each.actor is None or each.amount not in (-1, 0, 1)}
        names = [
            name
            for name, rule in draft.rules.metric.items()
            if rule.once is None and rule.limit is None and name not in unfit
        ]
        if not names:
            return None
        move = cls(draft.pick(names))
        return move if draft.changes_rules(move.added) else None

    def added(self, rules: Rules) -> Rules:
        """Return rules with one vote for each actor."""
        changed = replace(rules.metric[self.metric], once="forever")
        return Rules(rules.metric | {self.metric: changed}, zone=rules.zone)

    def play(self, world: World) -> None:
        """Count what waits, and change the rules."""
        earlier = [logged.event for logged in world.model.log if logged.event.metric == self.metric]
        if any(event.actor is None or event.amount not in (-1, 0, 1) for event in earlier):
            return  # a rebuild would make dead letters of such events
        if self.metric in world.rules.metric and world.rules.metric[self.metric].once is None:
            world.count()
            world.declare(self.added(world.rules))
