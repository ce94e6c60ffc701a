"""The machine: draws a script from a seed, plays it against a real server, and shortens it if it fails."""

from __future__ import annotations

import re
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from tests.scenarios import drawn_rules
from tests.scenarios.draft import Draft, moment
from tests.scenarios.move import encode, kinds
from tests.scenarios.questions import questions
from tests.scenarios.script import Script
from tests.scenarios.world import Mismatch, World

if TYPE_CHECKING:
    from hypothesis.strategies import DataObject

    from tests.scenarios.move import Move
    from tests.scenarios.world import Hosts

STEPS: Final = (4, 20)
"""The least and the most moves of a drawn script."""

_TRIES: Final = 2
"""Examples that hypothesis draws for a seed: it always begins with the simplest one, so the last one is used."""


@dataclass(frozen=True)
class Failure:
    """The failure of a scenario.

    Attributes:
        step: The number of the step that failed, from 0; -1 if the world did not start.
        problem: What was wrong.
    """

    step: int
    problem: str

    @property
    def kind(self) -> str:
        """The first word of the problem: the read or the command that was wrong."""
        return re.split(r"[ (:]", self.problem, maxsplit=1)[0]


@dataclass(frozen=True)
class Played:
    """The result of a scenario.

    Attributes:
        script: The scenario.
        failure: Its failure; `None` if every answer was right.
        checks: The number of answers that were compared.
        seconds: The seconds that it took.
    """

    script: Script
    failure: Failure | None
    checks: int
    seconds: float


def draw(
    seed: int,
    steps: tuple[int, int] = STEPS,
    without: frozenset[str] = frozenset(),
    only: tuple[str, ...] = (),
) -> Script:
    """Return the script of a seed; the same seed gives the same script at one commit.

    Args:
        seed: The seed.
        steps: The least and the most moves.
        without: What is left out: names of moves, settings of metrics, fields of events and zones; `doubles` for
            windows that are listed twice.
        only: Names of the moves that the script may have, and the staples; empty for all.
    """
    drawn: list[Script] = []

    @seeded(seed)
    @settings(
        max_examples=_TRIES,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def choose(data: DataObject) -> None:
        drawn.append(_script(seed, data, steps, without, only))

    choose()
    return drawn[-1]


def _script(
    seed: int, data: DataObject, lengths: tuple[int, int], without: frozenset[str], only: tuple[str, ...]
) -> Script:
    zone, start = drawn_rules.beginning(data, without)
    rules = drawn_rules.rules(data, zone, without)
    age = data.draw(st.sampled_from(["forever", "forever", "7d"]))
    draft = Draft(data, rules, moment(start), age, without=without)
    steps = []
    # A script has some kinds of moves only, and so more of each: features meet that would be rare together.
    some = st.lists(st.sampled_from(_weighted()), min_size=3, max_size=12, unique_by=lambda one: one)
    names = [*(only * 3 or data.draw(some)), *_STAPLES]
    for _ in range(data.draw(st.integers(*lengths))):
        name = data.draw(st.sampled_from(names))
        move = None if name in without else kinds()[name].draw(draft)
        if move is not None:
            steps.append(encode(move))
    return Script(
        seed,
        data.draw(st.sampled_from(["valkey", "redis"])),
        start,
        data.draw(st.sampled_from([1, 2, 3])),
        draft.age,
        rules,
        steps,
    )


_STAPLES: Final = ("Emit", "Emit", "PassTime", "Emit", "Decide", "PassTime", "Maintain")
"""Moves that every script may have, repeated by weight."""


def _weighted() -> list[str]:
    return [name for name, kind in kinds().items() for _ in range(kind.weight)]


def play(script: Script, hosts: Hosts) -> Played:
    """Play a script on a new server, and compare every answer with the model after each step."""
    began = time.monotonic()
    step, failure, checks = -1, None, 0
    try:
        with World(script, hosts) as world:
            for step, move in enumerate(script.moves()):  # noqa: B007  # used after the loop
                play_step(world, move)
                checks = world.checks
    except AssertionError as error:  # a mismatch, or an exception in a host
        failure = Failure(step, str(error))
    except Exception:  # noqa: BLE001  # one broken scenario must not end a run of hundreds
        failure = Failure(step, traceback.format_exc())
    return Played(script, failure, checks, time.monotonic() - began)


def play_step(world: World, move: Move) -> None:
    """Play one move, and check every answer if nothing waits to be counted."""
    world.steady()
    move.play(world)
    if not world.model.waiting:
        check(world)


def check(world: World) -> None:
    """Compare every answer of `Totals` with the model.

    Raises:
        Mismatch: an answer is wrong.
    """
    world.steady()
    asked = list(questions(world.model, world.present()))
    reply = world.ask("reader", "read", url=world.url, questions=[list(question.method) for question in asked])
    wrong = []
    for question, answer in zip(asked, reply["answers"], strict=True):
        world.checks += 1
        if problem := question.problem(answer):
            wrong.append(f"{question}: {problem}\n    answer: {msgspec.json.encode(answer).decode()}")
    if wrong:
        raise Mismatch("\n".join([*wrong[:5], *_dead_letters(world)]))


def _dead_letters(world: World) -> list[str]:
    """Return the dead letters, one line each, because they explain most events that are missing."""
    letters = world.command("dead", "list", "--json", status=None)
    return [f"dead letters: {letters}"] if letters else []
