"""Reads grow with the backlog, and are small when there is none."""

from __future__ import annotations

import pytest

from tallystream_worker.counting.fetch import MAX_READ, MIN_READ, next_read_size


@pytest.mark.parametrize(
    ("size", "found", "then"),
    [
        (MIN_READ, 0, MIN_READ),
        (MIN_READ, MIN_READ, 2 * MIN_READ),
        (64, 64, 128),
        (64, 40, 40),
        (64, 3, MIN_READ),
        (8, 64, 16),  # a claim brings more than was asked for
        (MAX_READ, MAX_READ, MAX_READ),
    ],
)
def test_a_read_follows_the_backlog(size, found, then):
    """A full read doubles the next one, up to the largest; a read that is not full asks for what it found."""
    assert next_read_size(size, found) == then
