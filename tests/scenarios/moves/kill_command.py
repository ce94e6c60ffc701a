"""Commands of operators that are killed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from tests.scenarios.move import Move

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World

COMMANDS: Final = ("snapshot", "archive", "rebuild")


class KillCommand(Move, frozen=True):
    """A command of an operator is killed with SIGKILL, and given again.

    Attributes:
        command: The command.
        milliseconds: When it is killed, after its start.
    """

    rows: ClassVar[tuple[int, ...]] = (33,)

    command: str
    milliseconds: float

    @classmethod
    def draw(cls, draft: Draft) -> KillCommand | None:
        """Return a command that can be given now, and a moment in its first 300 ms."""
        commands = [name for name in COMMANDS if name != "rebuild" or draft.age == "forever"]
        return cls(draft.pick(commands), draft.number(0, 300))

    def play(self, world: World) -> None:
        """Count what waits, start and kill the command, and give it again."""
        world.count()
        if self.command == "rebuild":
            world.drop_old()
        arguments = self._arguments(world)
        world.ask("reader", "kill_command", config=world.config, arguments=arguments, milliseconds=self.milliseconds)
        if self.command == "rebuild":
            world.drop_old()
        world.command(*arguments)
        if self.command == "rebuild":
            world.model.recount()
        if self.command == "snapshot":
            world.model.snapshot()

    def _arguments(self, world: World) -> list[str]:
        places = {
            "snapshot": [str(world.folder / "snapshot.sqlite"), "--once"],
            "archive": [str(world.folder / "archive"), "--once"],
            "rebuild": world.sources,
        }
        return [self.command, *places[self.command], "--json"]
