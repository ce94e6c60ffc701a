"""Lost replies: a producer does not learn that its entry was appended, and sends it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tests.proxy import Proxy
from tests.scenarios.move import Move
from tests.scenarios.script import Occurrence  # noqa: TC001  # msgspec reads the annotations

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class LoseReply(Move, frozen=True):
    """A producer loses the connection in the middle of the replies, at a drawn byte.

    Attributes:
        events: The events that it emits.
        reply_bytes: Bytes of replies after which the connection is cut.
    """

    rows: ClassVar[tuple[int, ...]] = (14, 16)

    events: list[Occurrence]
    reply_bytes: int

    @classmethod
    def draw(cls, draft: Draft) -> LoseReply | None:
        """Return some events and a byte."""
        events = [event for _ in range(draft.number(1, 4)) if (event := draft.event()) is not None]
        return cls(events, draft.number(0, 120)) if events else None

    def play(self, world: World) -> None:
        """Emit the events through a proxy, and count."""
        with Proxy(world.url) as proxy:
            world.emit_through(proxy.url, self.events[:1])
            proxy.cut_after(self.reply_bytes)
            if self.events[1:]:
                world.emit_through(proxy.url, self.events[1:])
            world.ask("app", "close", producer="proxied")
        world.count()
