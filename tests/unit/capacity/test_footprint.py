"""The memory of each rule of a metric has a description."""

from __future__ import annotations

import pytest

from tallystream.rules.metrics import Metric
from tallystream_worker.capacity.costs import load_costs
from tallystream_worker.capacity.footprint import parts
from tests.paths import ROOT


def test_a_bloom_filter_is_called_an_approximation():
    """The Bloom filter of ids is described as an approximation, with its error rate; exact ids are not."""
    memory = load_costs().memory
    (about,) = [part.text for part in parts(Metric(seen="bloom"), memory) if "Bloom" in part.text]
    assert "approximation" in about
    assert "1 new event in 3,300" in about
    assert "each of 10 periods" in about
    assert not [part.text for part in parts(Metric(), memory) if "Bloom" in part.text]


@pytest.mark.parametrize(
    ("metric", "stated"),
    [
        (Metric(), "ids, 76 bytes for each event that has one, for up to 10 days"),
        (Metric(ids="hour", accept_late="2h"), "ids, 76 bytes for each event that has one, for up to 5 hours"),
        (Metric(exact=False, accept_late="forever"), "ids, 76 bytes for each event that has one, forever"),
        (Metric(ids=None), None),
        (Metric(once="day"), None),
    ],
)
def test_the_memory_of_ids_is_stated(metric, stated):
    """The description of a metric states the bytes of an id and how long it is kept, if an id counts once."""
    texts = [part.text for part in parts(metric, load_costs().memory) if part.text.startswith("ids")]
    assert texts == ([] if stated is None else [stated])


def test_the_page_of_rules_has_the_measured_bytes():
    """The table of bytes on the page of rules has the figures of `check` and `plan`, to the byte."""
    memory = load_costs().memory
    table = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8").split("## Bytes")[1]
    rows = dict(line.strip("| ").split(" | ", 1) for line in table.splitlines() if line.startswith("| "))
    measured = {
        "the total of a subject": f"{memory.total:.0f}",
        "a subject in one bucket of a window, or in one period of a limit": f"{memory.field:.0f}",
        "the votes of a subject": f"{memory.votes:.0f}, and {memory.vote:.0f} for each actor",
        "the unique actors of a subject in one bucket": f"{memory.unique:.0f} with one actor, up to 12 KiB",
        "an id": f"{memory.id:.0f}",
    }
    assert rows | measured == rows
