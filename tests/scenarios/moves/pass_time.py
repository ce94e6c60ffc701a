"""Time passes everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from tests.scenarios.known import Known, avoided
from tests.scenarios.move import Move

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World

MINUTE: Final = 60
DAY: Final = 86_400
SPANS: Final = (1, 20, 40, 60, 180, 12 * 60, 24 * 60, 25 * 60, 3 * 1440, 8 * 1440, 31 * 1440, 62 * 1440, 401 * 1440)
"""Minutes that pass at once."""


class PassTime(Move, frozen=True):
    """Time passes: on the clocks of the server and of all hosts.

    Attributes:
        minutes: Whole minutes.
    """

    weight: ClassVar[int] = 3

    minutes: int

    @classmethod
    def draw(cls, draft: Draft) -> PassTime:
        """Return a span of time."""
        minutes = draft.pick(SPANS)
        draft.elapsed += minutes * MINUTE
        return cls(minutes)

    def play(self, world: World) -> None:
        """Let the time pass."""
        world.advance(self.minutes * MINUTE)


def is_forgetful(draft: Draft) -> bool:
    """Return whether a server's clock that is days ahead for more than an hour removes state of limits and votes.

    This is a limit of the product (decision 0039): later events of the removed periods are late.
    """
    return any(rule.remembers for rule in draft.rules.metric.values())


class Skew(Move, frozen=True):
    """The clock of one host, or of the server, is wrong from now on.

    Attributes:
        of: The host, or `server`.
        seconds: How far it is ahead; 0 sets it right.
    """

    of: str
    seconds: float

    @classmethod
    def draw(cls, draft: Draft) -> Skew:
        """Return a wrong clock; hosts by up to half an hour, so that no producer emits events from the far future."""
        of = draft.pick(["worker", "app", "reader", "server", "server"])
        if of == "server":
            ahead = [] if is_forgetful(draft) else [8 * DAY, 31 * DAY]
            return cls(of, draft.pick([0, 0, *ahead, -DAY, 5400, -5400, 2, -2]))
        if of == "app" and avoided(Known.CALLER_CLOCK):
            return cls(of, draft.pick([0, 1, -1]))
        return cls(of, draft.pick([0, 1500, -1500, -40 * DAY if of == "worker" else -90, 3]))

    def play(self, world: World) -> None:
        """Set the clock."""
        world.skew(self.of, self.seconds)
