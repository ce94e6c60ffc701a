"""Buckets close and expire in the middle of a read."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from tests.scenarios.move import Move
from tests.scenarios.questions import Present, questions
from tests.scenarios.world import Mismatch

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World

STEP: Final = 600
"""Seconds by which the clock moves at once: less than the hour for which the keys of a closed bucket stay."""


class ReadWhileTimePasses(Move, frozen=True):
    """Readers ask every question while the server's clock moves on, so that buckets close between two replies.

    Attributes:
        steps: How often the clock moves.
    """

    steps: int

    @classmethod
    def draw(cls, draft: Draft) -> ReadWhileTimePasses:
        """Return some steps."""
        steps = draft.pick([1, 3, 6])
        draft.elapsed += steps * STEP
        return cls(steps)

    def play(self, world: World) -> None:
        """Count what waits, read meanwhile, and compare the answers with the model."""
        world.count()
        world.steady()
        for _ in range(self.steps):
            began = world.now()
            asked = list(questions(world.model, Present(began, began + STEP)))
            methods = [list(question.method) for question in asked]
            replies: list[dict[str, Any]] = []

            def read(methods: list[Any] = methods, replies: list[dict[str, Any]] = replies) -> None:
                replies.append(world.ask("reader", "read", url=world.url, questions=methods))

            reader = threading.Thread(target=read)
            reader.start()
            reader.join(0.01)
            world.lead(STEP)  # not the reader's clock: a reader remembers for a second how far its clock is off
            reader.join()
            world.follow(STEP)
            for question, answer in zip(asked, replies[0]["answers"], strict=True):
                world.checks += 1
                if problem := question.problem(answer):
                    raise Mismatch(f"{question} while time passed from {began:.0f}: {problem}: {answer}")
