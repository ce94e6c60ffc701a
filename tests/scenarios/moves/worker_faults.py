"""Faults of workers: lost replies, frozen and stopped processes, and two processes with one name."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tests.proxy import Proxy
from tests.scenarios.move import Move

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class LoseApplyReply(Move, frozen=True):
    """A worker loses the connection in the middle of the replies, at a drawn byte; another counts the rest.

    Attributes:
        reply_bytes: Bytes of replies after which the connection is cut.
    """

    rows: ClassVar[tuple[int, ...]] = (15,)

    reply_bytes: int

    @classmethod
    def draw(cls, draft: Draft) -> LoseApplyReply:
        """Return the move with a random cut; most cuts are after the entries were read."""
        return cls(draft.number(0, 3000))

    def play(self, world: World) -> None:
        """Count through a proxy, and then count the rest."""
        with Proxy(world.url) as proxy:
            proxy.cut_after(self.reply_bytes)
            world.try_count(proxy.url)
        world.count(consumer="w2")


class FreezeWorker(Move, frozen=True):
    """A worker is frozen while it counts; another claims its entries, and then the first continues.

    Attributes:
        milliseconds: When it is frozen, after it began to count.
    """

    rows: ClassVar[tuple[int, ...]] = (26,)

    milliseconds: float

    @classmethod
    def draw(cls, draft: Draft) -> FreezeWorker:
        """Return a freeze after up to 20 ms."""
        return cls(draft.number(0, 40) / 2)

    def play(self, world: World) -> None:
        """Freeze a worker, count, let it continue, and count the rest."""
        world.ask("worker", "count_beside_frozen", url=world.url, consumer="w3", milliseconds=self.milliseconds)
        world.count()


class ShareName(Move, frozen=True):
    """Two workers with one name count at the same time."""

    rows: ClassVar[tuple[int, ...]] = (25,)

    @classmethod
    def draw(cls, _draft: Draft) -> ShareName:
        """Return the move."""
        return cls()

    def play(self, world: World) -> None:
        """Let both count, and count the rest."""
        world.ask("worker", "count_beside", url=world.url, consumer="w1")
        world.count()


class StopWorker(Move, frozen=True):
    """A whole worker process counts, and gets SIGTERM; it ends with exit status 0, and another counts the rest.

    Attributes:
        milliseconds: When it gets the signal, after it joined the consumer groups.
    """

    rows: ClassVar[tuple[int, ...]] = (4,)

    milliseconds: float

    @classmethod
    def draw(cls, draft: Draft) -> StopWorker:
        """Return a signal after up to 50 ms."""
        return cls(draft.number(0, 50))

    def play(self, world: World) -> None:
        """Run and stop the worker, and count the rest."""
        world.ask("worker", "run_worker", config=world.config, milliseconds=self.milliseconds)
        world.count()
