"""Snapshots, the archive, and the restore of everything from them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, ClassVar

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream_worker.process.partition_names import partition_names
from tests.scenarios.move import Move
from tests.scenarios.world import Mismatch

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
        world.model.snapshot()


class LoseAndRestore(Move, frozen=True):
    """The server loses everything just after a snapshot, and an operator restores it.

    Attributes:
        force: Whether producers run meanwhile.
        fresh: Whether a snapshot was taken just before; else an older one is used, and the archive has the rest;
            not if the rules were changed since.
    """

    rows: ClassVar[tuple[int, ...]] = (21,)

    force: bool = False
    fresh: bool = True

    @classmethod
    def draw(cls, draft: Draft) -> LoseAndRestore:
        """Return the move."""
        draft.done.add("lost")
        return cls(draft.chance(2), draft.chance(2))

    def play(self, world: World) -> None:
        """Count what waits, archive, take a snapshot, lose everything, and restore."""
        world.count()
        archive, snapshot = str(world.folder / "archive"), str(world.folder / "snapshot.sqlite")
        world.command("archive", archive, "--once", "--json")
        if self.fresh or world.model.is_behind:
            world.command("snapshot", snapshot, "--once", "--json")
            world.model.snapshot()
        if not self.force:
            world.ask("app", "forget")
            world.ask("reader", "forget")
        world.execute("FLUSHALL")
        _restore(world, archive, snapshot, *(["--force"] if self.force else []))


class RestoreInPlace(Move, frozen=True):
    """An operator restores the last snapshot, and the server is not empty: its rules stay, also if they are newer."""

    @classmethod
    def draw(cls, draft: Draft) -> RestoreInPlace:
        """Return the move."""
        draft.done.add("lost")
        return cls()

    def play(self, world: World) -> None:
        """Count what waits, archive, and restore."""
        world.count()
        archive, snapshot = str(world.folder / "archive"), str(world.folder / "snapshot.sqlite")
        world.command("archive", archive, "--once", "--json")
        if not world.model.has_snapshot:
            world.command("snapshot", snapshot, "--once", "--json")
            world.model.snapshot()
        _restore(world, archive, snapshot, "--force", is_emptied=False)


def _restore(world: World, archive: str, snapshot: str, *options: str, is_emptied: bool = True) -> None:
    """Restore as an operator does, and count again if the snapshot lacks retractions."""
    report = world.command("restore", snapshot, "--archive", archive, "--json", *options, status=None)
    if not isinstance(report, dict):
        raise Mismatch(f"restore: {report}")
    world.model.lose(is_emptied=is_emptied)
    if report["lacking"]:
        world.command("rebuild", "--archive", archive, "--json")
        world.model.recount()


class LosePartition(Move, frozen=True):
    """A partition loses all its keys just after a snapshot: nothing is counted there until an operator restores it.

    Attributes:
        partition: The number of the partition, modulo the number of partitions.
    """

    weight: ClassVar[int] = 1

    partition: int = 0

    @classmethod
    def draw(cls, draft: Draft) -> LosePartition:
        """Return the move."""
        draft.done.add("lost")
        return cls(draft.number(0, 7))

    def play(self, world: World) -> None:
        """Count what waits, archive, take a snapshot, delete the keys of a partition, and restore."""
        world.count()
        archive, snapshot = str(world.folder / "archive"), str(world.folder / "snapshot.sqlite")
        world.command("archive", archive, "--once", "--json")
        world.command("snapshot", snapshot, "--once", "--json")
        world.model.snapshot()
        with contextlib.closing(connect(world.url)) as client:
            layout = Deployment.find(client).layout
            keys = layout.keys[self.partition % layout.partitions]
            for name, below in list(partition_names(client, keys)):
                if below not in (b"files", b"meta", b"rules"):
                    client.delete(name)
        found = world.try_count()
        if found != "KeyLost":
            raise Mismatch(f"without the keys of a partition, a worker that counts raised {found}")
        _restore(world, archive, snapshot, "--force")


class Drill(Move, frozen=True):
    """An operator tests the backup: it must be right."""

    @classmethod
    def draw(cls, draft: Draft) -> Drill | None:
        """Return a drill, if no entry was trimmed or lost."""
        return cls() if draft.age == "forever" and "lost" not in draft.done else None

    def play(self, world: World) -> None:
        """Count what waits, archive, take a snapshot, and test it."""
        world.count()
        archive, snapshot = str(world.folder / "archive"), str(world.folder / "snapshot.sqlite")
        world.command("archive", archive, "--once", "--json")
        world.command("snapshot", snapshot, "--once", "--json")
        world.model.snapshot()
        world.command("drill", snapshot, "--archive", archive, "--json")
