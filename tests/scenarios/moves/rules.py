"""Changes of rules on a live deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.window import WINDOWS
from tests.scenarios.known import Known, avoided
from tests.scenarios.move import Move

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class ChangeFloor(Move, frozen=True, omit_defaults=False):
    """An operator changes the floor of a metric, which applies to every read at once.

    Attributes:
        metric: The metric.
        floor: Its new floor.
    """

    metric: str
    floor: int | None

    @classmethod
    def draw(cls, draft: Draft) -> ChangeFloor:
        """Return a new floor of a metric."""
        return cls(draft.pick(list(draft.rules.metric)), draft.pick([None, 0, 2]))

    def play(self, world: World) -> None:
        """Change the floor."""
        if self.metric in world.rules.metric:
            changed = replace(world.rules.metric[self.metric], floor=self.floor)
            world.declare(replace(world.rules, metric=world.rules.metric | {self.metric: changed}))


class ChangeTop(Move, frozen=True):
    """An operator makes the leaderboards of a metric longer, or adds them: their error covers what they do not list.

    Attributes:
        metric: The metric.
        top: The new length.
    """

    metric: str
    top: int

    @classmethod
    def draw(cls, draft: Draft) -> ChangeTop | None:
        """Return a longer leaderboard of a metric."""
        metric, top = draft.pick(list(draft.rules.metric)), draft.pick([3, 30])
        if avoided(Known.RULE_CHANGES) or draft.rules.metric[metric].top >= top:
            return None
        return cls(metric, top)

    def play(self, world: World) -> None:
        """Count what waits, and change the rules."""
        if self.metric in world.rules.metric:
            world.count()
            changed = replace(world.rules.metric[self.metric], top=self.top)
            world.declare(Rules(world.rules.metric | {self.metric: changed}, zone=world.rules.zone))


class AddWindow(Move, frozen=True):
    """An operator adds a window to a metric: events count as before, and the new buckets begin empty.

    Attributes:
        metric: The metric.
        window: The window.
    """

    metric: str
    window: str

    @classmethod
    def draw(cls, draft: Draft) -> AddWindow | None:
        """Return a window that a metric does not have."""
        metric = draft.pick(list(draft.rules.metric))
        rule = draft.rules.metric[metric]
        if avoided(Known.RULE_CHANGES) and (rule.once or rule.ids or rule.limit or rule.unique or rule.top):
            return None
        lacking = [window for window in WINDOWS if window not in rule.windows]
        if not lacking:
            return None
        move = cls(metric, draft.pick(lacking))
        return move if draft.changes_rules(move.added) else None

    def added(self, rules: Rules) -> Rules:
        """Return rules with the window."""
        rule = rules.metric[self.metric]
        changed = replace(rule, windows=(*rule.windows, self.window))
        return Rules(rules.metric | {self.metric: changed}, zone=rules.zone)

    def play(self, world: World) -> None:
        """Count what waits, and change the rules."""
        if self.metric in world.rules.metric and self.window not in world.rules.metric[self.metric].windows:
            world.count()
            world.declare(self.added(world.rules))


class Declare(Move, frozen=True):
    """An operator declares a metric whose events are dead letters so far.

    Attributes:
        metric: The name of the metric.
        rule: Its rules.
    """

    metric: str
    rule: Metric

    @classmethod
    def draw(cls, draft: Draft) -> Declare | None:
        """Return a declaration of the metric `later`, once."""
        if "later" in draft.rules.metric:
            return None
        rule = draft.pick([Metric(windows=("hour", "day")), Metric(once="forever"), Metric(limit=2, per="day")])
        draft.rules = Rules(draft.rules.metric | {"later": rule}, zone=draft.rules.zone)
        return cls("later", rule)

    def play(self, world: World) -> None:
        """Declare the metric."""
        world.count()
        world.declare(Rules(world.rules.metric | {self.metric: self.rule}, zone=world.rules.zone))


class StartWithFewer(Move, frozen=True):
    """An operator starts a worker whose configuration has only one of the metrics: the others are still counted.

    Attributes:
        metric: The metric that the configuration has.
    """

    metric: str

    @classmethod
    def draw(cls, draft: Draft) -> StartWithFewer | None:
        """Return a metric, if there are others."""
        metrics = list(draft.rules.metric)
        return cls(draft.pick(metrics)) if len(metrics) > 1 else None

    def play(self, world: World) -> None:
        """Publish a configuration that has one metric; the configuration for later commands is the whole one again."""
        if self.metric in world.rules.metric:
            whole = world.rules
            world.rules = Rules({self.metric: whole.metric[self.metric]}, zone=whole.zone)
            world.configure()
            world.rules = whole
            world.write_configuration()
