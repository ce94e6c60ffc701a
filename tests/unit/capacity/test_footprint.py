"""What the rules of a metric keep is said in words."""

from __future__ import annotations

from tallystream.rules.metrics import Metric
from tallystream_worker.capacity.costs import load_costs
from tallystream_worker.capacity.footprint import parts


def test_a_bloom_filter_is_called_an_approximation():
    """`tallystream check` names the filter of ids an approximation, with its rate; exact ids it does not."""
    memory = load_costs().memory
    (about,) = [part.text for part in parts(Metric(seen="bloom"), memory) if "Bloom" in part.text]
    assert "approximation" in about
    assert "1 new event in 6,600" in about
    assert not [part.text for part in parts(Metric(), memory) if "Bloom" in part.text]
