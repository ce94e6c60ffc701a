"""Back-off: pauses grow up to the cap and never beyond it, after any number of failures."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystream.client.backoff import Backoff

PAUSES = st.floats(min_value=1e-6, max_value=1e6)


def test_a_pause_is_twice_the_one_before_up_to_the_cap():
    """Without jitter each pause is twice the one before, up to the cap; `reset` begins with the first one again."""
    backoff = Backoff(0.5, 5.0, jitter=0)
    assert [backoff.next() for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.reset()
    assert backoff.next() == 0.5


def test_a_random_part_is_left_out():
    """Each pause is shortened by `jitter` times the random number."""
    drawn = iter([0.0, 0.5, 1.0])
    backoff = Backoff(4.0, 4.0, jitter=0.5, source=lambda: next(drawn))
    assert [backoff.next() for _ in range(3)] == [4.0, 3.0, 2.0]


@given(first=PAUSES, factor=st.floats(min_value=1, max_value=1e6), jitter=st.floats(0, 1), seed=st.integers())
def test_a_pause_is_never_longer_than_the_cap_nor_negative(first: float, factor: float, jitter: float, seed: int):
    """Each pause is from 0 to the cap, for all arguments and random numbers."""
    cap = first * factor
    backoff = Backoff(first, cap, jitter, source=random.Random(seed).random)
    assert all(0 <= backoff.next() <= cap for _ in range(3000))


@pytest.mark.parametrize(("first", "cap"), [(0.5, 5.0), (1e-300, 1e308), (1e308, 1.7e308)])
def test_millions_of_failures_do_not_overflow(first: float, cap: float):
    """After three million failures, half a year at 5 seconds each, the pause is still the cap: nothing overflows."""
    backoff = Backoff(first, cap, jitter=0)
    for _ in range(3_000_000):
        last = backoff.next()
    assert last == cap


@pytest.mark.parametrize(
    ("first", "cap", "jitter"),
    [(0, 1, 0.5), (-1, 1, 0.5), (2, 1, 0.5), (float("nan"), 1, 0.5), (1, 2, -0.1), (1, 2, 2)],
)
def test_figures_that_make_no_sense_are_refused(first: float, cap: float, jitter: float):
    """A back-off rejects a first pause that is not positive or exceeds the cap, and a jitter outside 0 to 1."""
    with pytest.raises(ValueError, match="must be"):
        Backoff(first, cap, jitter)
