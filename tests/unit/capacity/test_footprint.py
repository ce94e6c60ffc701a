"""The memory of each rule of a metric has a description."""

from __future__ import annotations

from tallystream.rules.metrics import Metric
from tallystream_worker.capacity.costs import load_costs
from tallystream_worker.capacity.footprint import parts


def test_a_bloom_filter_is_called_an_approximation():
    """The Bloom filter of ids is described as an approximation, with its error rate; exact ids are not."""
    memory = load_costs().memory
    (about,) = [part.text for part in parts(Metric(seen="bloom"), memory) if "Bloom" in part.text]
    assert "approximation" in about
    assert "1 new event in 6,600" in about
    assert not [part.text for part in parts(Metric(), memory) if "Bloom" in part.text]
