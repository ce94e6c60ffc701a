"""A jump of a server's clock is reported, and a clock that runs a little too fast or too slowly is not."""

from __future__ import annotations

import pytest

from tallystream_worker.maintenance.clocks import SteppingClock


def test_a_clock_that_runs_evenly_does_not_step():
    """A clock that gains or loses up to 1 % never steps, however long it is watched."""
    for rate in (1.0, 1.009, 0.991):
        clock = SteppingClock()
        assert [clock.step(1000 + second * rate, second, second) for second in range(0, 100_000, 2)].count(0) == 50_000


@pytest.mark.parametrize("size", [691_200.0, 1.5, -1.5, -691_200.0])
def test_a_step_has_a_size_and_is_reported_once(size):
    """A step is reported once with its size; a step back is reported in the same way."""
    clock = SteppingClock()
    found = [clock.step(1000 + second + (size if second >= 6 else 0), second, second) for second in range(0, 20, 2)]
    assert found == [0, 0, 0, pytest.approx(size), 0, 0, 0, 0, 0, 0]


def test_a_slow_reply_is_not_a_step():
    """If reading the clock took long, a difference within that time is not a step."""
    clock = SteppingClock()
    assert clock.step(1000, 0, 0) == 0
    assert clock.step(1002, 2, 12) == 0


def test_a_clock_at_half_speed_is_reported():
    """A clock that runs far too slowly is reported as steps back."""
    clock = SteppingClock()
    assert sum(clock.step(1000 + second / 2, second, second) for second in range(0, 60, 2)) < -20
