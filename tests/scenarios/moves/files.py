"""Files that grow, and files of which one begins like another."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.scenarios.known import Known, avoided
from tests.scenarios.move import Move
from tests.scenarios.script import Occurrence  # noqa: TC001  # msgspec reads the annotations

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class IngestTwo(Move, frozen=True):
    """An operator ingests a file, and one that begins with the same rows: the file itself later, or another file.

    If the file has grown, only the new rows count. If both files are there, all rows of both count.

    Attributes:
        name: Name of the file.
        first: The events of the first file; it may be empty.
        more: The events after them in the second file.
        grows: Whether the second file is the first one later.
    """

    name: str
    first: list[Occurrence]
    more: list[Occurrence]
    grows: bool = False

    @classmethod
    def draw(cls, draft: Draft) -> IngestTwo | None:
        """Return two files of events of fixed times."""
        events = draft.dated_events()
        cut = draft.number(0, max(0, len(events) - 1))
        if not events:
            return None
        return cls(f"two{len(draft.events)}", events[:cut], events[cut:], avoided(Known.LIKE_FILES) or draft.chance(2))

    def play(self, world: World) -> None:
        """Write and ingest the files, and count."""
        now = world.now("reader")
        first, more = world.acceptable(self.first, now), world.acceptable(self.more, now)
        self._ingest(world, f"{self.name}.ndjson", first)
        if self.grows:
            self._ingest(world, f"{self.name}.ndjson", first + more, new=len(more))
        else:
            self._ingest(world, f"{self.name}-more.ndjson", first + more)
        world.count()

    def _ingest(self, world: World, name: str, events: list[Occurrence], new: int | None = None) -> None:
        lines = [json.dumps(event.fields(world.start)) + "\n" for event in events]
        (world.folder / name).write_text("".join(lines))
        world.command("ingest", str(world.folder / name), "--json", status=None)  # 1 if the file is empty
        for event in events[len(events) - new :] if new is not None else events:
            world.model.append(event, world.start + (event.at or 0), world.now(), packed=True)
