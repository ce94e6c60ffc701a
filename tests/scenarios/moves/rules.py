"""Changes of rules on a live deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.window import WINDOWS
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
    """An operator adds, removes or changes the leaderboards of a metric: their error covers what they do not list.

    Attributes:
        metric: The metric.
        top: The new length.
    """

    metric: str
    top: int

    @classmethod
    def draw(cls, draft: Draft) -> ChangeTop | None:
        """Return another length of the leaderboards of a metric; 0 removes them."""
        metric, top = draft.pick(list(draft.rules.metric)), draft.pick([0, 3, 30])
        if draft.rules.metric[metric].top == top:
            return None
        move = cls(metric, top)
        draft.changes_rules(move.changed)
        return move

    def changed(self, rules: Rules) -> Rules:
        """Return rules with leaderboards of this length."""
        rule = replace(rules.metric[self.metric], top=self.top)
        return replace(rules, metric=rules.metric | {self.metric: rule})

    def play(self, world: World) -> None:
        """Count what waits, and change the rules."""
        if self.metric in world.rules.metric:
            world.count()
            world.declare(self.changed(world.rules))


class AddWindow(Move, frozen=True):
    """An operator adds a window to a metric: events count as before, and the buckets before are missing.

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


class RemoveWindow(Move, frozen=True):
    """An operator removes a window of a metric; if it is added again, the buckets before are missing.

    Attributes:
        metric: The metric.
        window: The window.
    """

    metric: str
    window: str

    @classmethod
    def draw(cls, draft: Draft) -> RemoveWindow | None:
        """Return a window that a metric has."""
        found = [(name, window) for name, rule in draft.rules.metric.items() for window in rule.windows]
        if not found:
            return None
        move = cls(*draft.pick(found))
        return move if draft.changes_rules(move.removed) else None

    def removed(self, rules: Rules) -> Rules:
        """Return rules without the window."""
        rule = rules.metric[self.metric]
        kept = {name: length for name, length in rule.retention.items() if name != self.window}
        windows = tuple(window for window in rule.windows if window != self.window)
        return replace(rules, metric=rules.metric | {self.metric: replace(rule, windows=windows, retention=kept)})

    def play(self, world: World) -> None:
        """Count what waits, and change the rules."""
        if self.metric in world.rules.metric and self.window in world.rules.metric[self.metric].windows:
            world.count()
            world.declare(self.removed(world.rules))


class ChangeUniques(Move, frozen=True, omit_defaults=False):
    """An operator adds, changes or removes the unique actors of a metric.

    Attributes:
        metric: The metric.
        unique: The new window, or `None`.
    """

    metric: str
    unique: str | None

    @classmethod
    def draw(cls, draft: Draft) -> ChangeUniques | None:
        """Return a window of unique actors that a metric does not have."""
        metric = draft.pick(list(draft.rules.metric))
        move = cls(metric, draft.pick([None, "hour", "day", "month"]))
        if draft.rules.metric[metric].unique == move.unique:
            return None
        return move if draft.changes_rules(move.changed) else None

    def changed(self, rules: Rules) -> Rules:
        """Return rules with these uniques."""
        rule = replace(rules.metric[self.metric], unique=self.unique)
        return replace(rules, metric=rules.metric | {self.metric: rule})

    def play(self, world: World) -> None:
        """Count what waits, and change the rules."""
        if self.metric in world.rules.metric:
            world.count()
            world.declare(self.changed(world.rules))


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
