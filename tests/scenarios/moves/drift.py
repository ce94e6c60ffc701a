"""Clocks that are slow or fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.scenarios.known import Known, avoided
from tests.scenarios.move import Move
from tests.scenarios.moves.pass_time import is_forgetful

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class Drift(Move, frozen=True):
    """The clock of one host, or of the server, is slow or fast from now on, and goes wrong as time passes.

    Attributes:
        of: The host, or `server`.
        rate: The seconds by which it advances in each second.
    """

    of: str
    rate: float

    @classmethod
    def draw(cls, draft: Draft) -> Drift | None:
        """Return a rate; that of the producers' host is right as long as decisions look at it."""
        of = draft.pick(["server", "server", "worker", "reader", "app"])
        if of == "app" and avoided(Known.CALLER_CLOCK):
            return None
        fast = [] if is_forgetful(draft) else [1.01, 1.001]
        return cls(of, draft.pick([1, 0.5, 0.99, 0.999, *fast]))

    def play(self, world: World) -> None:
        """Set the rate."""
        world.set_rate(self.of, self.rate)
