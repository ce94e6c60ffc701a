"""Faults: processes and connections that end at a bad moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tests.scenarios.move import Move

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class KillServer(Move, frozen=True):
    """The server is killed with SIGKILL and started again; its data is on disk, as far as it confirmed it."""

    rows: ClassVar[tuple[int, ...]] = (6,)

    @classmethod
    def draw(cls, _draft: Draft) -> KillServer:
        """Return the move."""
        return cls()

    def play(self, world: World) -> None:
        """Kill the server and start it."""
        world.restart()


class KillWorker(Move, frozen=True):
    """A worker is killed with SIGKILL while it counts; another counts the rest.

    Attributes:
        milliseconds: When it is killed, after it began to count.
    """

    rows: ClassVar[tuple[int, ...]] = (1, 2, 3)

    milliseconds: float

    @classmethod
    def draw(cls, draft: Draft) -> KillWorker:
        """Return a kill after up to 20 ms."""
        return cls(draft.number(0, 40) / 2)

    def play(self, world: World) -> None:
        """Start and kill the worker, and count."""
        world.ask("worker", "count_and_die", url=world.url, consumer="w3", milliseconds=self.milliseconds)
        world.count()


class CutConnections(Move, frozen=True):
    """The server closes the connections of all clients."""

    @classmethod
    def draw(cls, _draft: Draft) -> CutConnections:
        """Return the move."""
        return cls()

    def play(self, world: World) -> None:
        """Cut the connections."""
        world.execute("CLIENT", "KILL", "TYPE", "normal")
