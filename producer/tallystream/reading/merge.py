"""Finds the largest sums over several leaderboards without reading every subject: the threshold algorithm of Fagin.

If a metric is spread, each partition has a part of a subject's total, and its leaderboard has the largest parts. The
sum of a subject has an upper bound: its value in each leaderboard that lists it, plus the largest value that it may
have in each other (see `Board.unseen`). So the exact sums are read in descending order of these bounds, a page at a
time, until the next bound is below the n-th of the sums that were read.

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
"""The least number of subjects in the first page, which has twice the number of wanted places if that is more.

Each further page is twice as long as the one before, up to `_LONGEST_PAGE`.
"""

_LONGEST_PAGE: Final = 1024
"""The most subjects in a page after the first; reading so many blocks a server for about a millisecond."""


@dataclass(frozen=True)
class Board:
    """One of the leaderboards to merge.

    Attributes:
        scores: By listed subject, its value here.
        unseen: The largest value that a subject that is not listed may have here.
        lookup: Returns the command that reads the values of given subjects here; its reply is a list with a value for
            each, `None` for 0.
    """

    scores: Mapping[str, int]
    unseen: int
    lookup: Callable[[Sequence[str]], Command]


@dataclass(frozen=True)
class Largest:
    """The subjects with the largest sums over several leaderboards.

    Attributes:
        places: The subjects and their sums, largest first.
        unseen: The largest sum that a subject that no leaderboard lists may have.
    """

    places: list[tuple[str, int]]
    unseen: int


def merge_top_k(boards: Sequence[Board], n: int) -> Query[Largest]:
    """Return a query for the `n` subjects with the largest sums over all boards, of those that a board lists.

    Subjects whose sum is 0 are left out. The sums are exact: they are read with the `lookup` of every board. Equal sums
    are in descending order of subject. The answer has fewer places if fewer subjects have a sum other than 0. `n` must
    be at least 1; this is not checked.
    """
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
            places = sorted((place for place in sums.items() if place[1]), key=rank, reverse=True)[:n]
            following = first + page
            if following < len(candidates) and (len(places) < n or candidates[following][0] >= places[-1][1]):
                return ask(following, min(2 * page, _LONGEST_PAGE), dict(places))
            return Largest(places, unseen)

        return Query([board.lookup(subjects) for board in boards] if subjects else [], parse)

    return ask(0, max(_PAGE, 2 * n), {})


def rank(place: tuple[str, int]) -> tuple[int, bytes]:
    """Return the sort key of a pair of subject and value: the value, then the bytes of the subject, as Redis sorts."""
    return place[1], place[0].encode()
