"""A suite that passes a broken product is no suite: each mutant is caught, by the check that is about it."""

from __future__ import annotations

import pytest

from tests.faults.check_mutants import bite
from tests.faults.mutants import MUTANTS, Edit, Mutant, MutationError


@pytest.mark.slow
@pytest.mark.timeout(320)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught(mutant):
    """The fault suite fails on this mutant of the real code, and for the right reason."""
    bite(mutant)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies(mutant, tmp_path):
    """Every edit of a mutant finds its line in the code as it is today."""
    mutant.make(tmp_path / "mutant")


def test_a_mutant_that_does_not_apply_is_an_error(tmp_path):
    """An edit whose line is gone is said, rather than tried as a mutant that is none."""
    mutant = Mutant("none", (Edit("tallystream/storage/lua/append.lua", "no such line", ""),), (14,), "B")
    with pytest.raises(MutationError, match="holds 0 times"):
        mutant.make(tmp_path / "mutant")
