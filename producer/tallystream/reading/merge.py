"""The largest sums over several leaderboards, without reading every subject: Fagin's threshold algorithm.

Where a metric is spread, a subject has a part of its count in each partition, and each partition keeps a leaderboard of
its own parts. A subject has at most what the boards that list it say, and in each other full board at most what
its last has. So the candidates are looked up exactly in the order of these bounds, a page at a time, until the next
bound is below the n-th of the sums that are known.

Fagin, Lotem and Naor, "Optimal aggregation algorithms for middleware" (2003).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tallystream.reading.query import Command, Query, raise_on_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PAGE: Final = 64
"""Candidates that are looked up first; each further page is twice as long."""

_LONGEST_PAGE: Final = 1024
"""A call for so many holds a server for about a millisecond."""


@dataclass(frozen=True)
class Board:
    """One leaderboard.

    Attributes:
        scores: Parts by subject.
        unseen: What a subject that is not listed has here at most.
        lookup: Returns the command that reads the parts of subjects.
    """

    scores: Mapping[str, int]
    unseen: int
    lookup: Callable[[Sequence[str]], Command]


@dataclass(frozen=True)
class Largest:
    """The subjects with the largest sums; one that is in no board has at most `unseen`."""

    places: list[tuple[str, int]]
    unseen: int


def merge_top_k(boards: Sequence[Board], n: int) -> Query[Largest]:
    """Ask for the `n` subjects with the largest sums over all boards, among those that a board lists."""
    unseen = sum(board.unseen for board in boards)
    bounds = Counter[str]()
    for board in boards:
        for subject, score in board.scores.items():
            bounds[subject] += score - board.unseen
    candidates = sorted(((bound + unseen, subject) for subject, bound in bounds.items()), reverse=True)

    def ask(first: int, page: int, found: dict[str, int]) -> Query[Largest]:
        subjects = [subject for _, subject in candidates[first : first + page]]

        def parse(replies: list[Any]) -> Largest | Query[Largest]:
            sums = found | dict.fromkeys(subjects, 0)
            for reply in replies:
                for subject, part in zip(subjects, raise_on_error(reply), strict=True):
                    sums[subject] += int(part or 0)
            places = sorted(sums.items(), key=rank, reverse=True)[:n]
            following = first + page
            if following < len(candidates) and (len(places) < n or candidates[following][0] >= places[-1][1]):
                return ask(following, min(2 * page, _LONGEST_PAGE), dict(places))
            return Largest(places, unseen)

        return Query([board.lookup(subjects) for board in boards] if subjects else [], parse)

    return ask(0, max(_PAGE, 2 * n), {})


def rank(place: tuple[str, int]) -> tuple[int, bytes]:
    """Return what places are ordered by, the largest last: as Redis orders equal scores."""
    return place[1], place[0].encode()
