"""Merging leaderboards that are cut off finds the largest sums, and states how large a missing one may be."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from tallystream.reading.merge import Board, Largest, merge_top_k, rank

if TYPE_CHECKING:
    from tallystream.reading.query import Query

SUBJECTS = [f"s{n}" for n in range(12)]
parts = st.dictionaries(st.sampled_from(SUBJECTS), st.integers(-3, 30).filter(bool), max_size=12)


def board(stored: dict[str, int], cap: int) -> Board:
    """Return the leaderboard of the `cap` largest values that a partition stores."""
    listed = sorted(stored.items(), key=rank, reverse=True)[:cap]
    unseen = max(0, listed[-1][1]) if len(listed) == cap else 0
    return Board(dict(listed), unseen, lambda subjects: ("HMGET", stored, *subjects))


def answer(query: Query[Largest]) -> tuple[Largest, int]:
    """Run a query until it has an answer; return the answer, and the number of subjects that were read."""
    looked_up = 0
    while True:
        looked_up += max((len(subjects) for _, _, *subjects in query.commands), default=0)
        replies = [[stored.get(subject) for subject in subjects] for _, stored, *subjects in query.commands]
        found = query.parse(replies)
        if isinstance(found, Largest):
            return found, looked_up
        query = found


@settings(deadline=None)
@given(st.lists(parts, min_size=1, max_size=4), st.integers(1, 3), st.integers(3, 6))
def test_what_is_certain_is_right(stored, n, cap):
    """Every sum is exact, and no subject that is left out has more than the last place or the stated bound.

    A sum of 0 is left out.
    """
    sums: Counter[str] = Counter()
    for part in stored:
        sums.update(part)
    found, _ = answer(merge_top_k([board(part, cap) for part in stored], n))
    assert all(sums[subject] == value != 0 for subject, value in found.places)
    last = found.places[-1][1] if len(found.places) == n else 0
    left_out = [sums[subject] for subject in sums if subject not in dict(found.places)]
    assert all(value <= max(last, found.unseen) for value in left_out)
    if found.unseen < last:
        assert found.places == sorted((place for place in sums.items() if place[1]), key=rank, reverse=True)[:n]


def test_no_more_is_looked_up_than_needed():
    """Of thousands of candidates, only those that could be among the largest are read."""
    stored = [{f"s{n}": 5000 - n for n in range(3000)} for _ in range(4)]
    found, looked_up = answer(merge_top_k([board(part, 3000) for part in stored], 10))
    assert found.places == [(f"s{n}", 4 * (5000 - n)) for n in range(10)]
    assert looked_up == 64
