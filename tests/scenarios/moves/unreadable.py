"""Entries that this release cannot read."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from tests.scenarios.move import Move
from tests.scenarios.script import Occurrence

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World

EVENTS: Final = 2
"""The number of events that the entry states."""


class UnreadableEntry(Move, frozen=True):
    """An entry of a later release, or one with broken bytes, is appended: it is a dead letter for good.

    Attributes:
        version: The wire version that it states.
        subject: The subject, which decides about the partition.
    """

    rows: ClassVar[tuple[int, ...]] = (27, 28)

    version: str
    subject: str

    @classmethod
    def draw(cls, draft: Draft) -> UnreadableEntry:
        """Return an entry of either kind."""
        draft.done.add("undeclared")
        return cls(draft.pick(["1", "99"]), draft.pick(["a", "b", "c"]))

    def play(self, world: World) -> None:
        """Append the entry, and count."""
        world.ask("app", "append_unreadable", url=world.url, subject=self.subject, version=self.version, events=EVENTS)
        for _ in range(EVENTS):
            world.model.append(Occurrence("no.metric", self.subject), world.now(), world.now(), packed=True)
        world.count()
