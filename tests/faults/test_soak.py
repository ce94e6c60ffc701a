"""A short soak: under a sustained load with faults, no event is lost or counted twice, and memory stays flat."""

from __future__ import annotations

import pytest

from tests.faults.memory import is_flat, middle_and_last
from tests.faults.soak import soak, text


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_twenty_seconds_of_it():
    """Under twenty seconds of load with random faults, each event is counted once, and memory stays flat."""
    report = soak(20, 10_000, seed=1)
    assert report["held"], text(report)
    assert report["faults"], "nothing was injected"


def test_what_grows_is_seen():
    """A process that grows by a byte per event is not flat; a process that grows only at its start is flat."""
    warming = [50.0] * 10 + [300.0] * 100 + [305.0] * 100 + [304.0] * 100
    leaking = [60.0 + 57.0 * second / 600 for second in range(600)]  # at 100,000 events/s
    assert is_flat(*middle_and_last(warming))
    assert not is_flat(*middle_and_last(leaking))
