"""Lists of events over HTTP of which some are invalid."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from tests.scenarios.known import Known, avoided
from tests.scenarios.move import Move
from tests.scenarios.script import Occurrence  # noqa: TC001  # msgspec reads the annotations
from tests.scenarios.world import Mismatch

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World

FAULTS: Final[dict[str, dict[str, Any]]] = {
    "metric": {"metric": "nobody.declared"},
    "subject": {"subject": ""},
    "amount": {"amount": "many"},
    "fraction": {"amount": 0.5},
    "actor": {"actor": 7},
    "at": {"at": 1e18},
    "unknown": {"colour": "red"},
    "half": {"subject": "title \ud83d"},  # half an emoji, as JavaScript cuts texts
}
"""By name, the fields that make a valid event invalid."""


class PostPartial(Move, frozen=True):
    """A client sends a list of events with invalid ones among them, and asks that the valid ones are appended.

    Attributes:
        events: The valid events.
        faults: Names of `FAULTS`; of each, the list has an invalid copy of the first event.
        place: Place of the first invalid event in the list.
    """

    events: list[Occurrence]
    faults: list[str]
    place: int = 0

    @classmethod
    def draw(cls, draft: Draft) -> PostPartial | None:
        """Return some events and one or two faults."""
        events = [event for _ in range(draft.number(1, 4)) if (event := draft.event()) is not None]
        names = [name for name in FAULTS if name != "half" or not avoided(Known.HALF_CHARACTERS)]
        faults = [draft.pick(names) for _ in range(draft.number(1, 2))]
        return cls(events, faults, draft.number(0, len(events))) if events else None

    def play(self, world: World) -> None:
        """Send the list, and count the valid events."""
        now = world.now("reader")
        events = world.acceptable(self.events, now)
        if not events:
            return
        fields = [event.fields(world.start) for event in events]
        body = [*fields]
        body[self.place : self.place] = [fields[0] | FAULTS[name] for name in self.faults]
        reply = world.ask(
            "reader", "http", config=world.config, requests=[["POST", "/v1/events?partial=true", json.dumps(body)]]
        )
        ((status, answer),) = reply["answers"]
        expected = {"appended": len(events), "at_fault": len(self.faults)}
        if status != 202 or {name: answer.get(name) for name in expected} != expected:
            raise Mismatch(f"POST /v1/events?partial=true with {self.faults}: status {status}: {answer}")
        for event, given in zip(events, fields, strict=True):
            world.model.append(event, given.get("at", now), world.now(), packed=True)
        world.count()
