"""The soak, in short: under a load that goes on while things break, nothing is lost, doubled, or kept for ever."""

from __future__ import annotations

import pytest

from tests.faults.memory import is_flat, middle_and_last
from tests.faults.soak import soak, text


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_twenty_seconds_of_it():
    """Twenty seconds of load with random faults: every event counted once, the books balance, memory is flat."""
    report = soak(20, 10_000, seed=1)
    assert report["held"], text(report)
    assert report["faults"], "nothing was injected"


def test_what_grows_is_seen():
    """A process that grows by a byte an event is not flat; one that warms up and then stays is."""
    warming = [50.0] * 10 + [300.0] * 100 + [305.0] * 100 + [304.0] * 100
    leaking = [60.0 + 57.0 * second / 600 for second in range(600)]  # at 100,000 events/s
    assert is_flat(*middle_and_last(warming))
    assert not is_flat(*middle_and_last(leaking))
