"""Reads of leaderboards: the subjects with the most, of all time, of one bucket, or of a range."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tallystream.errors import EventError
from tallystream.reading.merge import Board, Largest, merge_top_k, rank
from tallystream.reading.query import Command, Query, raise_on_error
from tallystream.reading.series import declared_window, rolling_buckets
from tallystream.reading.sketches import bound
from tallystream.reading.totals import floored
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


@dataclass(frozen=True)
class Leaderboard:
    """The subjects with the most, largest first; equal ones by name, last first.

    Attributes:
        places: Subjects and values.
        positions: How far counting had come in each partition.
        error: By how much a value may be off, and by how much a subject that is not listed may deserve to be:
            0 when the list is exact.
    """

    places: list[Rank]
    positions: Sequence[CountingPosition]
    error: int


def query_top(
    layout: Layout, rules: Rules, metric: str, n: int, window: str | None = None, *, now: float
) -> Query[Leaderboard]:
    """Ask for the `n` subjects with the most.

    Args:
        layout: How many partitions there are.
        rules: The declared metrics.
        metric: One with `top` declared.
        n: At most that many.
        window: `None` for all time; a window such as `day` for its bucket now; or a duration such as `7d`.
        now: Second at which the window or the range is looked at.

    Raises:
        EventError: the metric has no leaderboard, or not so long a one, or not this window.
    """
    rules.refuse_undeclared(metric)
    top = rules.metric[metric].top
    if not top:
        raise EventError("metric", f"{metric} has no leaderboard: declare top = 100 in [metric.{metric}]")
    if not 1 <= n <= top:
        raise EventError("n", f"must be 1 to {top:,}, the length of {metric}'s leaderboard, not {n:,}")
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
) -> Query[Leaderboard]:
    """Read one leaderboard from every partition; the subjects of all partitions are disjoint."""
    cap = board_length(rules.metric[metric].top)
    commands: list[Command] = []
    for keys in layout.keys:
        commands += position_commands(keys)
        commands += [
            ("ZREVRANGE", key(keys), 0, cap - 1, "WITHSCORES"),
            ("HMGET", keys.ledger, f"shrunk@{metric}", f"sketched@{metric}"),
        ]

    def parse(replies: list[Any]) -> Leaderboard:
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
        return Leaderboard(shown, positions, error)

    return Query(commands, parse)


def _rolling(
    layout: Layout, rules: Rules, metric: str, n: int, covering: Sequence[tuple[str, Bucket]]
) -> Query[Leaderboard]:
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

    def candidates(replies: list[Any]) -> Query[Leaderboard]:
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

        def parse(sums: list[Any]) -> Leaderboard:
            totals: dict[str, int] = defaultdict(int)
            answers = iter(sums)
            for _, subjects in asked:
                for _ in covering:
                    for subject, value in zip(subjects, raise_on_error(next(answers)), strict=True):
                        totals[subject] += int(value or 0)
            places = sorted(totals.items(), key=rank, reverse=True)[:n]
            last = max(0, places[-1][1]) if len(places) == n else 0
            shown = [(subject, floored(rules, metric, value)) for subject, value in places]
            return Leaderboard(shown, positions, max(0, unseen - last))

        return Query(follow_up, parse)

    return Query(commands, candidates)


def _spread(
    layout: Layout, rules: Rules, metric: str, n: int, covering: Sequence[tuple[str, Bucket]] | None
) -> Query[Leaderboard]:
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

    def candidates(replies: list[Any]) -> Query[Leaderboard]:
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

        def show(largest: Largest) -> Leaderboard:
            last = max(0, largest.places[-1][1]) if len(largest.places) == n else 0
            places = [(subject, floored(rules, metric, value)) for subject, value in largest.places]
            return Leaderboard(places, positions, max(0, largest.unseen - last))

        return found.then(show)

    return Query(commands, candidates)


def _totals_of(keys: PartitionKeys, metric: str, subjects: Sequence[str]) -> Command:
    return ("MGET", *(keys.total(metric, subject) for subject in subjects))


def _fields_of(key: str, subjects: Sequence[str]) -> Command:
    return ("HMGET", key, *subjects)


def _pairs(reply: Any) -> list[tuple[bytes, float]]:
    return [(subject, float(score)) for subject, score in reply]
