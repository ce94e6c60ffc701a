"""A fault of an operator: an older RDB file is restored while producers and workers run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, ClassVar

import msgspec

from tests.scenarios.move import Move, fewer
from tests.scenarios.moves.decide import Decide
from tests.scenarios.moves.emit import EmitPlain
from tests.scenarios.script import Occurrence  # noqa: TC001  # msgspec reads the annotations
from tests.scenarios.world import Mismatch
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class OlderData(Move, frozen=True):
    """The server gets the data back that it had before some events; the producer, which runs, sends its events again.

    Entries of other clients and decisions are lost: nothing keeps them.

    Attributes:
        events: The events of the producer that the server loses.
        plain: The events of another client that it loses, one entry each.
        decided: The event of a lost decision; `None` for none.
        after: Events that the producer emits after the server has started again.
        count: Whether the events were counted before they were lost.
    """

    weight: ClassVar[int] = 1
    rows: ClassVar[tuple[int, ...]] = (38,)

    events: list[Occurrence]
    plain: list[Occurrence] = msgspec.field(default_factory=list)
    decided: Occurrence | None = None
    after: list[Occurrence] = msgspec.field(default_factory=list)
    count: bool = True

    @classmethod
    def draw(cls, draft: Draft) -> OlderData | None:
        """Return the move with some events of each kind, or `None` if the producer has none."""
        events, plain, after = (
            [event for _ in range(draft.number(0, 4)) if (event := draft.event()) is not None] for _ in range(3)
        )
        decided = Decide.draw(draft) if draft.chance(2) else None
        move = cls(events, plain, None if decided is None else decided.event, after, not draft.chance(3))
        return move if events else None

    def play(self, world: World) -> None:
        """Copy the data, let the events arrive, put the copy back, and wait until the producer has sent its events."""
        world.count()
        if world.model.latest > world.now() + 1:
            return  # IDs are ahead of the clock: it is not certain which ones the events get when they are sent again
        moment, kept = world.model.moment, world.keep()
        world.emit(self.events)
        own = len(world.model.log)
        if self.plain:
            EmitPlain(self.plain, wait=False).play(world)
        if self.count:
            world.count()
        if self.decided is not None:
            Decide(self.decided).play(world)
        before = self._sent(world)
        world.put_back(kept)
        world.lag_is_unknown()
        for logged in world.model.go_back(moment)[: own - moment.events]:
            world.model.append(logged.event, logged.at / 1000, world.now(), packed=True)
        world.emit(self.after)
        until(lambda: before <= self._sent(world), what="the lost entries of the producer")
        lost = world.ask("app", "lost", producer="p1")
        if lost:
            raise Mismatch(f"OlderData: the producer could not send {lost} entries again")
        world.count()

    def _sent(self, world: World) -> Counter[bytes]:
        """Return the packed events of each entry of a producer in the streams; an entry that is sent again has them."""
        entries = [entry for stream in world.streams() for entry in world.execute("XRANGE", stream, "-", "+")]
        return Counter(fields[b"b"] for _, fields in entries if b"q" in fields)

    def shorter(self) -> Iterator[Move]:
        """Yield the move with fewer events."""
        if self.plain or self.decided is not None or self.after:
            yield OlderData(self.events, count=self.count)
        for events in fewer(self.events):
            yield OlderData(events, self.plain, self.decided, self.after, self.count)
