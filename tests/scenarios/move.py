"""Moves: one kind of step of a scenario each. A file in `moves/` declares a move by its class alone."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


T = TypeVar("T")


class Move(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step of a scenario. Its fields are all that it needs, so that a script can be played without what drew it.

    A move must make sense alone, because shortening a script removes others before it. Times are in seconds since the
    start of the scenario.

    Attributes:
        weight: How often the move is drawn, compared with others; 0 if it is only written by hand.
        rows: The rows of the fault table that the move plays.
    """

    weight: ClassVar[int] = 1
    rows: ClassVar[tuple[int, ...]] = ()

    @classmethod
    def draw(cls, draft: Draft) -> Self | None:
        """Return a move for the end of a draft, or `None` if none makes sense there."""
        raise NotImplementedError

    def play(self, world: World) -> None:
        """Do the move in the world, and tell the model.

        Raises:
            Mismatch: an answer differs from the model's.
        """
        raise NotImplementedError

    def shorter(self) -> Iterator[Move]:
        """Yield simpler moves of the same kind, the simplest first; none by default."""
        return iter(())


def fewer(events: list[T]) -> Iterator[list[T]]:
    """Yield lists with some of the events left out, but never all, the shortest lists first."""
    size = len(events) // 2
    while size >= 1:
        for first in range(0, len(events), size):
            if rest := events[:first] + events[first + size :]:
                yield rest
        size //= 2


@cache
def kinds() -> dict[str, type[Move]]:
    """Return the moves by name: the name of a move is that of its class."""
    for file in sorted((Path(__file__).parent / "moves").glob("*.py")):
        importlib.import_module(f"tests.scenarios.moves.{file.stem}")
    return {kind.__name__: kind for kind in _below(Move) if kind.__module__.startswith("tests.scenarios.moves.")}


ELSEWHERE: Final = {
    7: "the model cannot know which confirmed writes the server loses",
    8: "the model cannot know which confirmed writes the server loses",
    9: "the model cannot know which confirmed writes the server loses",
    11: "the model cannot know which confirmed writes the server loses",
    12: "it is about limits of time and memory, not about figures",
    13: "it is about limits of time and memory, not about figures",
    17: "it needs a small disk",
    22: "a rebuild could not count the lost entries again",
    29: "the model has no answer for sums near 2^53",
    32: "it needs a cluster",
    34: "it replaces a part of the worker",
    36: "the model cannot know which confirmed writes the server loses",
    37: "the model cannot know which confirmed writes the server loses",
    39: "moves change rules when no event waits; the fault suite changes them while events arrive",
    40: "it needs processes that emit, decide and count at the same time",
    41: "it needs a server with a replica",
    42: "it needs a cluster",
}
"""The rows of the fault table that no move plays, and why; the fault suite plays them."""


def encode(move: Move) -> dict[str, Any]:
    """Return a move as an object of a script."""
    fields: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(move))  # as they are read from a file: no tuples
    return {"move": type(move).__name__} | fields


def decode(step: dict[str, Any]) -> Move:
    """Return the move that an object of a script describes."""
    fields = {name: value for name, value in step.items() if name != "move"}
    return msgspec.convert(fields, kinds()[step["move"]])


def _below(kind: type[Move]) -> Iterator[type[Move]]:
    for one in kind.__subclasses__():
        yield one
        yield from _below(one)
