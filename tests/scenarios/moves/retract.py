"""An operator takes events back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.scenarios.move import Move
from tests.scenarios.world import Mismatch

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class Retract(Move, frozen=True, omit_defaults=True):
    """An operator retracts the events that match all given fields, as if they had never happened.

    Attributes:
        metric: Metric of the events.
        subject: Subject of the events.
        actor: Actor of the events.
        id: Id of the events.
    """

    metric: str | None = None
    subject: str | None = None
    actor: str | None = None
    id: str | None = None

    @classmethod
    def draw(cls, draft: Draft) -> Retract | None:
        """Return a retraction of some events, if all are still in the streams."""
        if draft.age != "forever":
            return None
        draft.done.add("retracted")
        by = draft.pick(["subject", "actor", "actor", "id", "metric"])
        metric = draft.pick([None, *draft.rules.metric])
        match by:
            case "subject":
                return cls(metric=metric, subject=draft.pick(["a", "b", "c"]))
            case "actor":
                return cls(metric=metric, actor=draft.pick(["u1", "u2", "u3"]))
            case "id":
                ids = [event.id for event in draft.events if event.id is not None]
                return cls(id=draft.pick(ids)) if ids else None
        return cls(metric=draft.pick(list(draft.rules.metric)))

    def play(self, world: World) -> None:
        """Count what waits, and retract; the command states how many events it took back."""
        world.count()
        world.drop_old()
        world.model.recount()  # a retraction is a rebuild
        expected = world.model.retract(metric=self.metric, subject=self.subject, actor=self.actor, id=self.id)
        given = {"metric": self.metric, "subject": self.subject, "actor": self.actor, "id": self.id}
        options = [part for name, value in given.items() if value for part in (f"--{name}", value)]
        report = world.command("retract", "--json", *options, *world.sources)
        if report["events"] != expected:
            raise Mismatch(f"retract {options}: took back {report['events']} events, expected {expected}")
