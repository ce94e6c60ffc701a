"""Events of producers: threads, asyncio, a spool, and plain entries of another client."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tests.scenarios.move import Move, fewer
from tests.scenarios.script import Occurrence  # noqa: TC001  # msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class Emit(Move, frozen=True):
    """A producer emits events; the worker counts them at once, in some order, or later.

    Attributes:
        events: The events.
        producer: The name of the producer, which lives until the end of the scenario; or `asyncio`.
        spool: Whether the producer has a spool.
        shuffle: Seed of the order in which the worker counts the entries; `None` for that of the stream.
        wait: Whether the worker counts at once.
    """

    weight: ClassVar[int] = 4

    events: list[Occurrence]
    producer: str = "p1"
    spool: bool = False
    shuffle: int | None = None
    wait: bool = True

    @classmethod
    def draw(cls, draft: Draft) -> Emit | None:
        """Return some events of a producer that lives already, or of a new one."""
        events = [event for _ in range(draft.number(1, 8)) if (event := draft.event()) is not None]
        producer = draft.pick(["p1", "p1", "p2", "spool", "asyncio"])
        shuffle = draft.pick([None, 1, 2, 3])
        return cls(events, producer, producer == "spool", shuffle, not draft.chance(4)) if events else None

    def play(self, world: World) -> None:
        """Emit the events, and count them."""
        spool = str(world.folder / "spool") if self.spool else None
        world.emit(self.events, self.producer, **({"spool": spool} if spool else {}))
        if self.wait:
            world.count(self.shuffle)

    def shorter(self) -> Iterator[Move]:
        """Yield the move with fewer events, and with the plainest producer."""
        for events in fewer(self.events):
            yield Emit(events, self.producer, self.spool, self.shuffle, self.wait)
        if (self.producer, self.spool, self.shuffle, self.wait) != ("p1", False, None, True):
            yield Emit(self.events)


class EmitPlain(Move, frozen=True):
    """Another client appends plain entries with XADD.

    Attributes:
        events: The events; one entry each.
        wait: Whether the worker counts at once.
    """

    events: list[Occurrence]
    wait: bool = True

    @classmethod
    def draw(cls, draft: Draft) -> EmitPlain | None:
        """Return one to three events."""
        events = [event for _ in range(draft.number(1, 3)) if (event := draft.event()) is not None]
        return cls(events, not draft.chance(4)) if events else None

    def play(self, world: World) -> None:
        """Append the entries, and count them."""
        fields = [{name: str(value) for name, value in event.fields(world.start).items()} for event in self.events]
        ids = world.ask("app", "plain", url=world.url, fields=fields)
        for event, id_ in zip(self.events, ids, strict=True):
            received = int(id_.partition("-")[0]) / 1000
            at = received if event.at is None else world.start + event.at
            world.model.append(event, at, received, packed=False)
        if self.wait:
            world.count()

    def shorter(self) -> Iterator[Move]:
        """Yield the move with fewer events."""
        for events in fewer(self.events):
            yield EmitPlain(events, self.wait)
