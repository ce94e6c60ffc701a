"""The size of reads grows with the backlog, and is small if there is none."""

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
        (8, 64, 16),  # a claim returned more entries than the read size
        (MAX_READ, MAX_READ, MAX_READ),
    ],
)
def test_a_read_follows_the_backlog(size, found, then):
    """After a full read the next size is doubled, up to the largest; after any other it is the number found."""
    assert next_read_size(size, found) == then
