"""Reads over other surfaces than `Totals`: the command line and HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.scenarios.move import Move
from tests.scenarios.questions import questions
from tests.scenarios.world import Mismatch

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class ReadHttp(Move, frozen=True):
    """A client asks every question over HTTP."""

    @classmethod
    def draw(cls, _draft: Draft) -> ReadHttp:
        """Return the move."""
        return cls()

    def play(self, world: World) -> None:
        """Count what waits, and compare the answers with the model."""
        world.count()
        world.steady()
        asked = [question for question in questions(world.model, world.present()) if question.path]
        requests = [["GET", question.path, None] for question in asked]
        reply = world.ask("reader", "http", config=world.config, requests=requests)
        for question, (status, answer) in zip(asked, reply["answers"], strict=True):
            world.checks += 1
            if problem := question.judge(answer) if status == 200 else f"status {status}: {answer}":
                raise Mismatch(f"GET {question.path}: {problem}")


class ReadCommands(Move, frozen=True):
    """An operator asks some of the questions on the command line.

    Attributes:
        first: The first question, of those that the command line answers; then every 7th one.
    """

    first: int

    @classmethod
    def draw(cls, draft: Draft) -> ReadCommands:
        """Return the move."""
        return cls(draft.number(0, 6))

    def play(self, world: World) -> None:
        """Count what waits, and compare the answers with the model."""
        world.count()
        world.steady()
        asked = [question for question in questions(world.model, world.present()) if question.command]
        for question in asked[self.first :: 7]:
            world.checks += 1
            if problem := question.judge(world.command(*question.command)):
                raise Mismatch(f"tallystream {' '.join(question.command)}: {problem}")
