"""Events of files, and over HTTP."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.scenarios.move import Move
from tests.scenarios.script import Occurrence  # noqa: TC001  # msgspec reads the annotations
from tests.scenarios.world import Mismatch

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class Ingest(Move, frozen=True):
    """An operator ingests a file of events, sometimes twice: the second time nothing is new.

    Attributes:
        name: Name of the file; a second file of a name has another content.
        events: The events, one line each.
        again: Whether the file is ingested twice.
    """

    name: str
    events: list[Occurrence]
    again: bool = False

    @classmethod
    def draw(cls, draft: Draft) -> Ingest | None:
        """Return a file with some events of fixed times."""
        events = draft.dated_events()
        return cls(f"f{len(draft.events)}.ndjson", events, draft.chance(2)) if events else None

    def play(self, world: World) -> None:
        """Write and ingest the file."""
        now = world.now("reader")
        events = [
            event
            for event in self.events
            if event.metric in world.rules.metric and world.start + (event.at or 0) <= now + 3500
        ]
        events, tops = world.placed(events)
        lines = [json.dumps(event.fields(world.start)) + "\n" for event in events]
        (world.folder / self.name).write_text("".join(lines))
        world.command("ingest", str(world.folder / self.name), "--json")
        for event in events:
            world.record(event, world.start + (event.at or 0), tops, packed=True)
        if self.again:
            world.command("ingest", str(world.folder / self.name), "--json")
        world.count()


class PostEvents(Move, frozen=True):
    """A client sends a list of events over HTTP.

    Attributes:
        events: The events.
    """

    events: list[Occurrence]

    @classmethod
    def draw(cls, draft: Draft) -> PostEvents | None:
        """Return some events."""
        events = [event for _ in range(draft.number(1, 6)) if (event := draft.event()) is not None]
        return cls(events) if events else None

    def play(self, world: World) -> None:
        """Send the events, and count them."""
        now = world.now("reader")
        events = [
            event
            for event in self.events
            if event.metric in world.rules.metric and world.start + (event.at or 0) <= now + 3500
        ]
        events, tops = world.placed(events)
        if not events:
            return
        fields = [event.fields(world.start) for event in events]
        reply = world.ask("reader", "http", config=world.config, requests=[["POST", "/v1/events", fields]])
        ((status, answer),) = reply["answers"]
        if status != 202:
            raise Mismatch(f"POST /v1/events: status {status}: {answer}")
        for event, given in zip(events, fields, strict=True):
            world.record(event, given.get("at", now), tops, packed=True)
        world.count()
