"""The fault suite catches each broken variant of the product, by the check that the variant breaks."""

from __future__ import annotations

import datetime as dt

import pytest

from tests.faults.check_mutants import bite
from tests.faults.mutants import MUTANTS, Edit, Mutant, MutationError


def of_today() -> list[Mutant]:
    """Return the mutants for a run on this day: a tenth of those of the fault suite, and a 50th of the others.

    `make mutants` tries all of them, every night.
    """
    today = dt.datetime.now(dt.UTC).date().toordinal()
    return [mutant for number, mutant in enumerate(MUTANTS) if (number - today) % (50 if mutant.tests else 10) == 0]


@pytest.mark.slow
@pytest.mark.timeout(320)
@pytest.mark.parametrize("mutant", of_today(), ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught(mutant):
    """The fault suite fails on each mutant of the real code, by a check that the mutant names."""
    bite(mutant)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies(mutant):
    """Every edit of a mutant finds its text exactly once in today's code."""
    assert mutant.changed()


def test_a_mutant_that_does_not_apply_is_an_error(tmp_path):
    """An edit whose text is not in the code raises an error, instead of making an unchanged copy."""
    mutant = Mutant("none", (Edit("tallystream/storage/lua/append.lua", "no such line", ""),), (14,), "B")
    with pytest.raises(MutationError, match="0 occurrences, not 1, of"):
        mutant.make(tmp_path / "mutant")
