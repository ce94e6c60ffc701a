"""Faults of the server: it refuses writes, lost its scripts or a consumer group, or a replica takes over."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tests.scenarios.move import Move, fewer
from tests.scenarios.script import Occurrence  # noqa: TC001  # msgspec reads the annotations
from tests.scenarios.world import Mismatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class FlushScripts(Move, frozen=True):
    """The server forgets all scripts."""

    rows: ClassVar[tuple[int, ...]] = (20,)

    @classmethod
    def draw(cls, _draft: Draft) -> FlushScripts:
        """Return the move."""
        return cls()

    def play(self, world: World) -> None:
        """Flush the scripts."""
        world.execute("SCRIPT", "FLUSH")


class WithEvents(Move, frozen=True):
    """Base of moves that first emit events.

    Attributes:
        events: The events.
    """

    weight: ClassVar[int] = 0  # the bases are not drawn

    events: list[Occurrence]

    @classmethod
    def draw(cls, draft: Draft) -> WithEvents | None:
        """Return the move with one to four events, or `None` if none was drawn."""
        events = [event for _ in range(draft.number(1, 4)) if (event := draft.event()) is not None]
        return cls(events) if events else None

    def shorter(self) -> Iterator[Move]:
        """Yield the move with fewer events."""
        for events in fewer(self.events):
            yield type(self)(events)


class Refusing(WithEvents, frozen=True):
    """Base of moves in which the server refuses to count for a while; reads continue."""

    begin: ClassVar[tuple[str, ...]]
    end: ClassVar[tuple[str, ...]]
    error: ClassVar[str]

    def play(self, world: World) -> None:
        """Emit events, make the server refuse, check that counting fails and a read succeeds, then count."""
        world.emit(self.events)
        if not world.model.waiting:
            return  # every event was refused by its producer, so nothing needs to be counted
        world.execute(*self.begin)
        try:
            found = world.try_count()
            answer = world.ask("reader", "read", url=world.url, questions=[["ledger"]])["answers"][0]
        finally:
            world.execute(*self.end)
        if found != self.error or "refused" in answer:
            raise Mismatch(f"{type(self).__name__}: counting raised {found}, the ledger is {answer}")
        world.count()


class FillMemory(Refusing, frozen=True):
    """The server's memory is full."""

    weight: ClassVar[int] = 1
    rows: ClassVar[tuple[int, ...]] = (18,)

    begin = ("CONFIG", "SET", "maxmemory", "1")
    end = ("CONFIG", "SET", "maxmemory", "0")
    error = "OutOfMemoryError"


class RefuseWrites(Refusing, frozen=True):
    """The server is a replica for a while, so it refuses writes."""

    weight: ClassVar[int] = 1
    rows: ClassVar[tuple[int, ...]] = (19,)

    begin = ("REPLICAOF", "127.0.0.1", "1")
    end = ("REPLICAOF", "NO", "ONE")
    error = "ReadOnlyError"


class DestroyGroup(WithEvents, frozen=True):
    """A client destroys the consumer groups; nothing is counted until an operator creates them again."""

    weight: ClassVar[int] = 1
    rows: ClassVar[tuple[int, ...]] = (23,)

    def play(self, world: World) -> None:
        """Destroy the groups, emit events, let a worker try to count them, and create the groups."""
        world.count()
        groups = [
            (stream, group[b"name"], group[b"last-delivered-id"])
            for stream in world.streams()
            for group in world.execute("XINFO", "GROUPS", stream)
        ]
        for stream, group, _ in groups:
            world.execute("XGROUP", "DESTROY", stream, group)
        world.emit(self.events)
        found = world.try_count() if groups else None
        for stream, group, position in groups:
            world.execute("XGROUP", "CREATE", stream, group, position)
        if groups and found is None and world.model.waiting:
            raise Mismatch("a worker counted without its consumer group")
        world.lag_is_unknown()
        world.count()


class LoseKey(WithEvents, frozen=True):
    """A client renames a key of every partition; nothing is counted until the key is back.

    Attributes:
        key: The end of the name of the key.
    """

    weight: ClassVar[int] = 1

    key: str = "seq"

    @classmethod
    def draw(cls, draft: Draft) -> LoseKey | None:
        """Return the move with one of the keys without which nothing may be counted."""
        drawn = WithEvents.draw(draft)
        return None if drawn is None else cls(drawn.events, draft.pick(["seq", "ledger", "live"]))

    def shorter(self) -> Iterator[Move]:
        """Yield the move with fewer events."""
        for events in fewer(self.events):
            yield LoseKey(events, self.key)

    def play(self, world: World) -> None:
        """Emit events, rename the keys, let a worker try to count them, and rename the keys back."""
        world.emit(self.events)
        if not world.model.waiting:
            return  # every event was refused by its producer, so nothing needs to be counted
        keys = [stream.removesuffix("stream") + self.key for stream in world.streams()]
        keys = [key for key in keys if world.execute("EXISTS", key)]
        for key in keys:
            world.execute("RENAME", key, f"{key}-away")
        found = world.try_count()
        for key in keys:
            world.execute("RENAME", f"{key}-away", key)
        if found != "KeyLost":
            raise Mismatch(f"without {self.key}, a worker that counts raised {found}")
        world.count()


class FailOver(Move, frozen=True):
    """A replica that has every write takes over."""

    rows: ClassVar[tuple[int, ...]] = (10,)

    @classmethod
    def draw(cls, _draft: Draft) -> FailOver:
        """Return the move."""
        return cls()

    def play(self, world: World) -> None:
        """Start a replica, kill the primary, and let the replica's data take its place."""
        world.fail_over()
