"""Snapshots, the archive, and the restore of everything from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.scenarios.move import Move

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class Snapshot(Move, frozen=True):
    """An operator archives every entry and takes a snapshot of the counters.

    Attributes:
        archive: Whether the entries are archived as well.
    """

    archive: bool = True

    @classmethod
    def draw(cls, draft: Draft) -> Snapshot:
        """Return a snapshot."""
        return cls(not draft.chance(3))

    def play(self, world: World) -> None:
        """Take the snapshot; events that wait are not in it."""
        if self.archive:
            world.command("archive", str(world.folder / "archive"), "--once", "--json")
        world.command("snapshot", str(world.folder / "snapshot.sqlite"), "--once", "--json")


class LoseAndRestore(Move, frozen=True):
    """The server loses everything just after a snapshot, and an operator restores it.

    Attributes:
        force: Whether producers run meanwhile.
    """

    force: bool = False

    @classmethod
    def draw(cls, draft: Draft) -> LoseAndRestore:
        """Return the move."""
        draft.done.add("lost")
        return cls(draft.chance(2))

    def play(self, world: World) -> None:
        """Count what waits, archive, take a snapshot, lose everything, and restore."""
        world.count()
        archive, snapshot = str(world.folder / "archive"), str(world.folder / "snapshot.sqlite")
        world.command("archive", archive, "--once", "--json")
        world.command("snapshot", snapshot, "--once", "--json")
        if not self.force:
            world.ask("app", "forget")
            world.ask("reader", "forget")
        world.execute("FLUSHALL")
        force = ["--force"] if self.force else []
        world.command("restore", snapshot, "--archive", archive, "--json", *force)
