"""Scenarios drawn from seeds: every answer equals the model's after every step, whatever meets what."""

from __future__ import annotations

import pytest

from tests.faults.rows import ROWS
from tests.faults.table import faketime
from tests.scenarios import machine
from tests.scenarios.move import ELSEWHERE, kinds
from tests.scenarios.script import parse
from tests.scenarios.world import Hosts
from tests.servers import missing

SEEDS = range(1, 7)
STEPS = (4, 8)
"""The least and the most moves of a scenario, so that one takes some seconds; `make scenarios` draws longer ones."""


@pytest.fixture(scope="module")
def hosts():
    """Provide the hosts that all scenarios of this module play on."""
    if faketime() is None:
        missing("no libfaketime (apt install faketime)", unless="CI")
    with Hosts() as lane:
        yield lane


@pytest.mark.parametrize("seed", SEEDS)
def test_every_answer_equals_the_models(hosts, seed):
    """A scenario of a fixed seed gives no wrong answer; `make scenarios` plays more of them."""
    played = machine.play(machine.draw(seed, STEPS), hosts)
    assert played.failure is None, played.failure
    assert played.checks


def test_each_row_of_the_fault_table_is_a_move():
    """Every fault is played among all other moves, or it is stated why not."""
    played = {row for kind in kinds().values() for row in kind.rows}
    assert played | ELSEWHERE.keys() == ROWS.keys()
    assert not played & ELSEWHERE.keys()


def test_a_seed_draws_the_same_script_again():
    """A seed is enough to repeat a scenario, and a script is the same after it was stored."""
    script = machine.draw(7)
    assert machine.draw(7) == script
    assert parse(script.text()) == script
