"""Dead letters: events of metrics that are not declared, their retry, and giving them up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.scenarios.move import Move
from tests.scenarios.moves.emit import EmitPlain
from tests.scenarios.script import Occurrence
from tests.scenarios.world import Mismatch

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class EmitUndeclared(EmitPlain, frozen=True):
    """Another client appends plain entries of a metric that is not declared: they are dead letters until a retry."""

    @classmethod
    def draw(cls, draft: Draft) -> EmitUndeclared | None:
        """Return one to three events of the metric `later`."""
        if "later" in draft.rules.metric:
            return None
        draft.done.add("undeclared")
        count = draft.number(1, 3)
        first = len(draft.events)
        at = draft.elapsed
        events = [
            Occurrence("later", draft.pick(["a", "b"]), 1, f"u{first + number}", at - number, f"l{first + number}")
            for number in range(count)
        ]
        return cls(events)


class ListDead(Move, frozen=True):
    """An operator lists the dead letters: they have every event that is dead and was not given up."""

    @classmethod
    def draw(cls, draft: Draft) -> ListDead | None:
        """Return a list, if there may be a dead letter."""
        return cls() if "undeclared" in draft.done else None

    def play(self, world: World) -> None:
        """Count what waits, and compare the number of events."""
        world.count()
        letters = world.command("dead", "list", "--json")
        found = sum(letter["events"] for letter in letters)
        model = world.model
        expected = len(model.dead - model.dropped)
        if found != expected:
            raise Mismatch(f"dead list: {found} events, expected {expected}: {letters}")


class RetryDead(Move, frozen=True):
    """An operator retries all dead letters."""

    @classmethod
    def draw(cls, draft: Draft) -> RetryDead | None:
        """Return a retry, if there may be a dead letter."""
        return cls() if "undeclared" in draft.done else None

    def play(self, world: World) -> None:
        """Count what waits, and retry."""
        world.count()
        world.command("dead", "retry", "--all", "--json", status=None)
        world.model.retry()


class DropDead(Move, frozen=True):
    """An operator gives all dead letters up."""

    @classmethod
    def draw(cls, draft: Draft) -> DropDead | None:
        """Return a drop, if there may be a dead letter."""
        return cls() if "undeclared" in draft.done else None

    def play(self, world: World) -> None:
        """Count what waits, and drop; that is refused while other counters are kept, which may have the events."""
        world.count()
        world.drop_old()
        world.command("dead", "drop", "--all", "--json", status=None)
        world.model.drop()
