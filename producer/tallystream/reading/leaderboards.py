"""Reads of leaderboards: the subjects with the most, of all time, of one bucket, or of a range."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tallystream.errors import EventError
from tallystream.reading.counters import floored
from tallystream.reading.freshness import Figure, freshness
from tallystream.reading.merge import Board, Largest, merge_top_k, rank
from tallystream.reading.query import Command, Query, raise_on_error
from tallystream.reading.series import declared_window, rolling_buckets
from tallystream.reading.sketches import bound
from tallystream.rules.batch import board_length
from tallystream.rules.windows import Bucket, bucket
from tallystream.wire.position import CountingPosition, parse_position, position_commands
from tallystream.wire.window import MINUTE, WINDOWS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout, PartitionKeys

Rank = tuple[str, int]
"""A subject and its value."""


PLACES: Final = 10
"""The places of a leaderboard that are read where none are asked for, or all where it is shorter."""


class Place(msgspec.Struct, frozen=True):
    """One place of a leaderboard."""

    subject: str
    value: int


class Leaderboard(Figure, frozen=True):
    """The subjects with the most, largest first; equal ones by name, last first.

    `error` is by how much a value may be off, and by how much a subject that is not listed may deserve to be. `next`
    is the `offset` of the places after these, `null` at the end of the leaderboard.
    """

    metric: str
    window: str
    top: list[Place]
    next: int | None

    @property
    def places(self) -> list[Rank]:
        """Subjects and values, in order."""
        return [(place.subject, place.value) for place in self.top]


@dataclass(frozen=True)
class _Ranked:
    """The subjects with the most, how far counting had come in each partition, and the error."""

    places: list[Rank]
    positions: Sequence[CountingPosition]
    error: int


def query_top(
    layout: Layout,
    rules: Rules,
    metric: str,
    n: int | None = None,
    window: str | None = None,
    *,
    offset: int = 0,
    now: float,
) -> Query[Leaderboard]:
    """Ask for the `n` subjects with the most, after the first `offset` of them.

    Args:
        layout: How many partitions there are.
        rules: The declared metrics.
        metric: One with `top` declared.
        n: At most that many; `None` for 10, or for all that the metric keeps if these are fewer.
        window: `None` for all time; a window such as `day` for its bucket now; or a duration such as `7d`.
        offset: How many places to leave out. Between two pages counting goes on, and subjects change places.
        now: Second at which the window or the range is looked at.

    Raises:
        EventError: the metric has no leaderboard, or not so long a one, or not this window.
    """
    rules.refuse_undeclared(metric)
    top = rules.metric[metric].top
    if not top:
        raise EventError("metric", f"{metric} has no leaderboard: declare top = 100 in [metric.{metric}]")
    if not 0 <= offset < top:
        raise EventError("offset", f"must be 0 to {top - 1:,}, the last place of {metric}'s leaderboard")
    count = min(PLACES, top - offset) if n is None else n
    if not 1 <= count <= top:
        raise EventError("n", f"must be 1 to {top:,}, the length of {metric}'s leaderboard, not {count:,}")
    end = min(offset + count, top)

    def show(ranked: _Ranked) -> Leaderboard:
        return Leaderboard(
            metric,
            window or "all",
            [Place(*place) for place in ranked.places[offset:]],
            end if len(ranked.places) == end < top else None,
            **freshness(ranked.positions, ranked.error),
        )

    return _query_ranked(layout, rules, metric, end, window, now).then(show)


def _query_ranked(layout: Layout, rules: Rules, metric: str, n: int, window: str | None, now: float) -> Query[_Ranked]:
    if window is None:
        if rules.metric[metric].spread:
            return _spread(layout, rules, metric, n, None)
        return _board(layout, rules, metric, n, lambda keys: keys.top(metric), exact=rules.metric[metric].exact)
    if window in WINDOWS:
        name = declared_window(rules, metric, window)
        current = bucket(name, int(now) // MINUTE, rules.zone)
        if rules.metric[metric].spread:
            return _spread(layout, rules, metric, n, [(name, current)])
        return _board(layout, rules, metric, n, lambda keys: keys.window_top(name, metric, current.label), exact=True)
    covering = rolling_buckets(rules, metric, window, now)
    if rules.metric[metric].spread:
        return _spread(layout, rules, metric, n, covering)
    return _rolling(layout, rules, metric, n, covering)


def _board(
    layout: Layout, rules: Rules, metric: str, n: int, key: Callable[[PartitionKeys], str], *, exact: bool
) -> Query[_Ranked]:
    """Read one leaderboard from every partition; the subjects of all partitions are disjoint."""
    cap = board_length(rules.metric[metric].top)
    commands: list[Command] = []
    for keys in layout.keys:
        commands += position_commands(keys)
        commands += [
            ("ZREVRANGE", key(keys), 0, cap - 1, "WITHSCORES"),
            ("HMGET", keys.ledger, f"shrunk@{metric}", f"sketched@{metric}"),
        ]

    def parse(replies: list[Any]) -> _Ranked:
        positions, places, error = [], [], 0
        for first, keys in zip(range(0, len(replies), 4), layout.keys, strict=True):
            positions.append(parse_position(replies[first : first + 2], keys.group))
            board = [(subject.decode(), int(score)) for subject, score in _pairs(raise_on_error(replies[first + 2]))]
            shrunk, sketched = (int(value or 0) for value in raise_on_error(replies[first + 3]))
            places += board
            if shrunk and len(board) >= cap:
                # Some sank while the list was full: one that had been cut may belong above the last by now.
                error = max(error, abs(board[n - 1][1] - board[-1][1]) + 1 if len(board) >= n else 0)
            if sketched or not exact:
                error = max(error, bound(sketched))
        places.sort(key=rank, reverse=True)
        shown = [(subject, floored(rules, metric, value)) for subject, value in places[:n]]
        return _Ranked(shown, positions, error)

    return Query(commands, parse)


def _rolling(
    layout: Layout, rules: Rules, metric: str, n: int, covering: Sequence[tuple[str, Bucket]]
) -> Query[_Ranked]:
    """Sum the candidates of each bucket's leaderboard over all buckets.

    A subject in none of the boards has at most the sum of their last values, where they are full: what the n-th
    has more than that is certain (Fagin's threshold argument). What it has less is stated as the error.
    """
    cap = board_length(rules.metric[metric].top)
    commands: list[Command] = []
    for keys in layout.keys:
        commands += position_commands(keys)
        for window, each in covering:
            commands.append(("ZREVRANGE", keys.window_top(window, metric, each.label), 0, cap - 1, "WITHSCORES"))
        commands.append(("HGET", keys.ledger, f"sketched@{metric}"))
    stride = 3 + len(covering)

    def candidates(replies: list[Any]) -> Query[_Ranked]:
        positions: list[CountingPosition] = []
        unseen = 0
        asked: list[tuple[PartitionKeys, list[str]]] = []
        for number, keys in enumerate(layout.keys):
            part = replies[stride * number : stride * (number + 1)]
            positions.append(parse_position(part[:2], keys.group))
            subjects: dict[str, None] = {}
            beyond = 0
            for reply in part[2:-1]:
                board = _pairs(raise_on_error(reply))
                subjects.update((subject.decode(), None) for subject, _ in board)
                beyond += int(board[-1][1]) if len(board) >= cap else 0
            # What is kept in a sketch has no buckets: all of it may lie in the range.
            unseen = max(unseen, beyond, int(raise_on_error(part[-1]) or 0))
            if subjects:
                asked.append((keys, list(subjects)))
        follow_up: list[Command] = [
            ("HMGET", keys.window(window, metric, each.label), *subjects)
            for keys, subjects in asked
            for window, each in covering
        ]

        def parse(sums: list[Any]) -> _Ranked:
            totals: dict[str, int] = defaultdict(int)
            answers = iter(sums)
            for _, subjects in asked:
                for _ in covering:
                    for subject, value in zip(subjects, raise_on_error(next(answers)), strict=True):
                        totals[subject] += int(value or 0)
            places = sorted(totals.items(), key=rank, reverse=True)[:n]
            last = max(0, places[-1][1]) if len(places) == n else 0
            shown = [(subject, floored(rules, metric, value)) for subject, value in places]
            return _Ranked(shown, positions, max(0, unseen - last))

        return Query(follow_up, parse)

    return Query(commands, candidates)


def _spread(
    layout: Layout, rules: Rules, metric: str, n: int, covering: Sequence[tuple[str, Bucket]] | None
) -> Query[_Ranked]:
    """Sum a spread metric's leaderboards over all partitions, and over all buckets; `None`: of all time."""
    cap = board_length(rules.metric[metric].top)
    sources: list[tuple[str, Callable[[Sequence[str]], Command]]] = []
    commands: list[Command] = []
    for keys in layout.keys:
        commands += [*position_commands(keys), ("HGET", keys.ledger, f"shrunk@{metric}")]
        if covering is None:
            sources.append((keys.top(metric), partial(_totals_of, keys, metric)))
        for window, each in covering or ():
            fields = partial(_fields_of, keys.window(window, metric, each.label))
            sources.append((keys.window_top(window, metric, each.label), fields))
        of_partition = sources[-(len(covering) if covering else 1) :]
        commands += [("ZREVRANGE", key, 0, cap - 1, "WITHSCORES") for key, _ in of_partition]
    each_partition = len(sources) // layout.partitions

    def candidates(replies: list[Any]) -> Query[_Ranked]:
        positions: list[CountingPosition] = []
        boards: list[Board] = []
        answers, lookups = iter(replies), iter(sources)
        for keys in layout.keys:
            positions.append(parse_position([next(answers), next(answers)], keys.group))
            has_shrunk = bool(int(raise_on_error(next(answers)) or 0))
            for _ in range(each_partition):
                scores = {subject.decode(): int(score) for subject, score in _pairs(raise_on_error(next(answers)))}
                unseen = 0
                if len(scores) >= cap:
                    # Where some sank while it was full, one that had been cut may belong above the last by now.
                    unseen = list(scores.values())[n - 1] + 1 if has_shrunk else min(scores.values())
                boards.append(Board(scores, max(0, unseen), next(lookups)[1]))
        found = merge_top_k(boards, n)

        def show(largest: Largest) -> _Ranked:
            last = max(0, largest.places[-1][1]) if len(largest.places) == n else 0
            places = [(subject, floored(rules, metric, value)) for subject, value in largest.places]
            return _Ranked(places, positions, max(0, largest.unseen - last))

        return found.then(show)

    return Query(commands, candidates)


def _totals_of(keys: PartitionKeys, metric: str, subjects: Sequence[str]) -> Command:
    return ("MGET", *(keys.total(metric, subject) for subject in subjects))


def _fields_of(key: str, subjects: Sequence[str]) -> Command:
    return ("HMGET", key, *subjects)


def _pairs(reply: Any) -> list[tuple[bytes, float]]:
    return [(subject, float(score)) for subject, score in reply]
