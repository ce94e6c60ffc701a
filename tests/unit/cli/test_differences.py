"""A table of differences shows each value whole, whatever the width of the terminal."""

from __future__ import annotations

import pytest

from tallystream_worker.cli import output
from tallystream_worker.cli.differences import print_differences
from tallystream_worker.rebuild.values import Difference

VOTES = ("1764498000000@12345.0 1 2026-11-30T11", "1764498000000@12346.0 1 2026-11-30T11")
"""Two records of a vote that differ only in the place of its entry."""


@pytest.mark.parametrize("width", [60, 80, 200])
def test_two_values_that_differ_do_not_look_equal(monkeypatch, capsys, width):
    """No part of a counter or of a value is left out, so the cells of two different values differ."""
    monkeypatch.setattr(output.console, "_width", width)
    counter = "once:vote:2026-11-30:article:1 -> user:123456789012345678901234567890"
    print_differences([Difference("stream", counter, *VOTES)])
    rows = [line.strip("│").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    cells = ["".join(cell.strip() for cell in column) for column in zip(*rows, strict=True)]
    assert [cell.replace(" ", "") for cell in cells] == [text.replace(" ", "") for text in (counter, *VOTES, "-")]
