"""Queries for leaderboards: the subjects with the largest totals, or the largest sums in a bucket or a range."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tallystream.errors import EventError
from tallystream.reading.counters import NOTHING, floored
from tallystream.reading.freshness import RangeFigure, freshness
from tallystream.reading.merge import Board, Largest, merge_top_k, rank
from tallystream.reading.query import Command, Query, raise_on_error
from tallystream.reading.series import Bounds, Covered, current_bucket, declared_window, rolling_buckets
from tallystream.reading.sketches import bound
from tallystream.rules.parts import ALL_TIME, BOARDS, SKETCHES, board_length
from tallystream.wire.position import CountingPosition, parse_position, position_commands
from tallystream.wire.window import WINDOWS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tallystream.rules.metrics import Rules
    from tallystream.rules.windows import Bucket
    from tallystream.storage.keys import Layout, PartitionKeys

Rank = tuple[str, int]
"""A subject and its value in a leaderboard."""


_UNKNOWN: Final = 2**53 - 1
"""The bound of a leaderboard that lacks subjects: `parts.lua` sets it."""

PLACES: Final = 10
"""The number of places that are read if the caller names none; a shorter leaderboard is read completely."""


class Place(msgspec.Struct, frozen=True):
    """One place of a leaderboard.

    Attributes:
        subject: The subject.
        value: Its total, or its sum in the bucket or the range, but at least the metric's `floor`.
    """

    subject: str
    value: int


class Leaderboard(RangeFigure, frozen=True):
    """The subjects with the largest values, largest first; subjects with equal values in descending order of name.

    A subject whose value is 0 is not listed, also if it had another value before.

    The order is that of the stored values, before the metric's `floor` is applied. `error` is the most by which a value
    may be wrong, and by which the value of a subject that is not listed may be larger than the last value listed. If
    `top` was added to a metric with events, totals were split (`exact` changed, `max_subjects` raised or removed), or a
    total in a sketch was reset, the leaderboard of all time lacks subjects or has wrong values: then `error` is `null`
    and `complete` is false, until a rebuild (`tallystream rebuild`) has counted all events again. After `top` was
    raised or `max_subjects` changed otherwise, they have these values until workers have recorded the new rule in each
    partition. A bucket that began before `top` was added or raised, or in the hour after, counts as missing.

    Attributes:
        metric: The metric.
        window: The window or the duration that was asked for; `all` for all time.
        top: The places, fewer than `n` at the end of the leaderboard.
        next: The `offset` of the places after these, of which there may be none; `null` if the answer reaches the end
            of the leaderboard, or the metric's `top`.
    """

    metric: str
    window: str
    top: list[Place]
    next: int | None

    @property
    def places(self) -> list[Rank]:
        """The pairs of subject and value in `top`, in the same order."""
        return [(place.subject, place.value) for place in self.top]


@dataclass(frozen=True)
class _Ranked:
    """The first places of a leaderboard, from place 1 on, and how sure they are.

    Attributes:
        places: The subjects and their values, at least the metric's `floor`, largest first.
        positions: The counting position of each partition that was read, in order.
        error: As in `Leaderboard`; `None` if it is not known.
    """

    places: list[Rank]
    positions: Sequence[CountingPosition]
    error: int | None


def query_top(
    layout: Layout,
    rules: Rules,
    metric: str,
    n: int | None = None,
    window: str | None = None,
    *,
    offset: int = 0,
    now: float,
    removed: Mapping[str, int] = NOTHING,
) -> Query[Leaderboard]:
    """Return a query for the `n` subjects with the largest values, after the first `offset` of them.

    Args:
        layout: The partitions.
        rules: The declared metrics.
        metric: A metric with `top` declared.
        n: The most places to return; `None` for 10, or for the rest of a leaderboard (`top` places) that has fewer.
        window: `None` for all time; a window such as `day` for its current bucket; or a duration such as `7d` that ends
            now.
        offset: How many places to skip. Counting continues between two pages, so subjects may change places.
        now: The current time, in seconds since 1970.
        removed: That of the deployment: see `tallystream.deployment.Deployment`.

    Raises:
        EventError: the metric is not declared, has no leaderboard, or not this window (for a duration: no windows); the
            duration is not valid, longer than 4,000 days, or needs more than 1,000 buckets; or `n` or `offset` is out
            of range (`n`: 1 to the metric's `top`; `offset`: 0 to `top` - 1).
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
    covered = _covered(rules, metric, window, now, removed)
    is_known = covered is not None or f"{ALL_TIME}:{metric}" not in removed

    def show(ranked: _Ranked) -> Leaderboard:
        error = ranked.error if is_known else None
        of_all = Bounds(start=None, end=None, complete=error is not None, missing=[])
        bounds = of_all if covered is None else covered.bounds
        return Leaderboard(
            metric,
            window or "all",
            [Place(*place) for place in ranked.places[offset:]],
            end if len(ranked.places) == end < top else None,
            **bounds,
            **freshness(ranked.positions, error),
        )

    is_split = f"{SKETCHES}:{metric}" in removed
    return _query_ranked(layout, rules, metric, end, window, covered, is_split=is_split).then(show)


def _covered(rules: Rules, metric: str, window: str | None, now: float, removed: Mapping[str, int]) -> Covered | None:
    """Return the buckets that a leaderboard is read from; `None` for all time.

    Buckets that begin before `top` was last added or raised, or in the hour after, are left out, because their
    leaderboards may lack subjects.

    Args:
        rules: The declared metrics.
        metric: A metric with `top`.
        window: A window such as `day` for its current bucket; a duration such as `7d`; `None` for all time.
        now: The end of the range, in seconds since 1970.
        removed: See `tallystream.deployment.Deployment`.

    Raises:
        EventError: the metric does not have the window (for a duration: no windows), or the duration is not valid,
            longer than 4,000 days, or needs more than 1,000 buckets.
    """
    if window is None:
        return None
    if since := removed.get(f"{BOARDS}:{metric}"):
        names = [f"{each}:{metric}" for each in rules.metric[metric].windows]
        removed = {**removed, **{name: max(since, removed.get(name, 0)) for name in names}}
    if window not in WINDOWS:
        return rolling_buckets(rules, metric, window, now, removed)
    name = declared_window(rules, metric, window)
    return current_bucket(rules, metric, name, now, name, removed)


def _query_ranked(
    layout: Layout,
    rules: Rules,
    metric: str,
    n: int,
    window: str | None,
    covered: Covered | None,
    *,
    is_split: bool,
) -> Query[_Ranked]:
    """Return a query for the first `n` places; `is_split` is whether a subject may have a key and be in the sketch."""
    if rules.metric[metric].spread:
        return _spread(layout, rules, metric, n, None if covered is None else covered.buckets)
    if covered is None:
        return _board(layout, rules, metric, n, lambda keys: keys.top(metric), exact=rules.metric[metric].exact)
    if window in WINDOWS and covered.buckets:
        name, current = covered.buckets[0]
        key = partial(_window_top, name, metric, current.label)
        return _board(layout, rules, metric, n, key, name, exact=True, is_split=is_split)
    return _rolling(layout, rules, metric, n, covered.buckets, is_split=is_split)


def _board(
    layout: Layout,
    rules: Rules,
    metric: str,
    n: int,
    key: Callable[[PartitionKeys], str],
    window: str | None = None,
    *,
    exact: bool,
    is_split: bool = False,
) -> Query[_Ranked]:
    """Return a query that merges one leaderboard of every reachable partition: its first places, and their error.

    The values in the places are at least the metric's floor, if it has one. The error is `None` if the ledger of a
    partition states that the values of the subjects that its leaderboard lacks have no known bound. Do not call this
    for a spread metric, whose subjects may be in several partitions: see `_spread`.

    Args:
        layout: The partitions.
        rules: The declared metrics.
        metric: A declared metric with `top`.
        n: The most places, at least 1.
        key: Returns the key of the leaderboard in a partition.
        window: The window if the leaderboard is that of a bucket; `None` for all time. The leaderboard of a bucket has
            no amount that is in a sketch, so a subject with such an amount may be missing: the error includes this.
        exact: The `exact` of the metric's rule; ignored for a bucket. If the ledger states amounts in the sketch, the
            error of all time includes its bound in any case.
        is_split: Whether a subject of a bucket may have a value there and other amounts in the sketch; ignored for all
            time. The error then includes all amounts in the sketch.
    """
    cap = board_length(rules.metric[metric].top)
    commands: list[Command] = []
    for keys in layout.reached:
        commands += position_commands(keys)
        commands += [
            ("ZREVRANGE", key(keys), 0, cap - 1, "WITHSCORES"),
            ("HMGET", keys.ledger, bound_field(metric, window), f"sketched@{metric}"),
        ]

    def parse(replies: list[Any]) -> _Ranked:
        positions, places, error, hidden = [], [], 0, 0
        bounds: list[int] = []
        for first, keys in zip(range(0, len(replies), 4), layout.reached, strict=True):
            positions.append(parse_position(replies[first : first + 2], keys.group))
            board = [(subject.decode(), int(score)) for subject, score in _pairs(raise_on_error(replies[first + 2]))]
            bound_, sketched = (None if value is None else int(value) for value in raise_on_error(replies[first + 3]))
            sketched = sketched or 0
            # The stored leaderboard lists a subject whose value is 0 again only if its events were in several batches.
            places += [place for place in board if place[1]]
            if bound_ is not None and (window is None or len(board) >= cap):
                bounds.append(bound_)
            if window is not None:
                hidden = max(hidden, sketched)  # all events of a subject in the sketch may be in the bucket
            elif sketched or not exact:
                error = max(error, bound(sketched))
        places.sort(key=rank, reverse=True)
        places = places[:n]
        shown = [(subject, floored(rules, metric, value)) for subject, value in places]
        if _UNKNOWN in bounds:
            return _Ranked(shown, positions, None)
        last = _last(places, n)
        if bounds:
            error = max(error, max(bounds) - last)
        if hidden:
            error = max(error, -last, 0) + hidden if is_split else max(error, hidden - last)
        return _Ranked(shown, positions, error)

    return Query(commands, parse)


def _rolling(
    layout: Layout, rules: Rules, metric: str, n: int, covering: Sequence[tuple[str, Bucket]], *, is_split: bool
) -> Query[_Ranked]:
    """Return a query for the `n` largest sums over the buckets `covering`, and their error.

    The sums are those of each subject that a leaderboard of one of these buckets lists; they are exact. A subject in
    none of these leaderboards has at most the sum of the bounds of the full ones in its partition (the threshold
    argument of Fagin): a bound is the last value, or the one in the ledger (`bound_field`) if it is larger. If the
    metric has amounts in a sketch, such a subject may instead have all of these. If the n-th sum (at most 0 if there
    are fewer) is smaller than the most that such a subject may have, the difference is the error, else 0.

    If `is_split` is true, each subject, listed or not, may have all amounts in the sketch in addition, and the error
    includes these. Do not call this for a spread metric.
    """
    cap = board_length(rules.metric[metric].top)
    windows = rules.metric[metric].windows
    commands: list[Command] = []
    for keys in layout.reached:
        commands += position_commands(keys)
        for window, each in covering:
            commands.append(("ZREVRANGE", keys.window_top(window, metric, each.label), 0, cap - 1, "WITHSCORES"))
        commands.append(("HMGET", keys.ledger, f"sketched@{metric}", *(bound_field(metric, each) for each in windows)))
    stride = 3 + len(covering)

    def candidates(replies: list[Any]) -> Query[_Ranked]:
        positions: list[CountingPosition] = []
        unseen: int | None = None  # the largest sum of a subject that is not listed; `None` if all are listed
        hidden = 0  # the most that a subject may have in a sketch, which has no buckets
        asked: list[tuple[PartitionKeys, list[str]]] = []
        for number, keys in enumerate(layout.reached):
            part = replies[stride * number : stride * (number + 1)]
            positions.append(parse_position(part[:2], keys.group))
            subjects: dict[str, None] = {}
            sketched, *of_windows = (int(value or 0) for value in raise_on_error(part[-1]))
            bounds: dict[str, int] = dict(zip(windows, of_windows, strict=True))
            beyond, hides = 0, sketched > 0
            for (window, _), reply in zip(covering, part[2:-1], strict=True):
                board = _pairs(raise_on_error(reply))
                subjects.update((subject.decode(), None) for subject, _ in board)
                if len(board) >= cap:
                    beyond, hides = beyond + max(0, int(board[-1][1]), bounds[window]), True
            if hides:
                unseen, hidden = max(unseen or 0, beyond), max(hidden, sketched)
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
            places = sorted((place for place in totals.items() if place[1]), key=rank, reverse=True)[:n]
            shown = [(subject, floored(rules, metric, value)) for subject, value in places]
            return _Ranked(shown, positions, _excess(unseen, hidden, _last(places, n), is_split=is_split))

        return Query(follow_up, parse)

    return Query(commands, candidates)


def _spread(
    layout: Layout, rules: Rules, metric: str, n: int, covering: Sequence[tuple[str, Bucket]] | None
) -> Query[_Ranked]:
    """Return a query for the `n` largest values of a spread metric, summed over the reachable partitions; with error.

    The values are the sums over the buckets `covering`, or the totals if it is `None`. Only subjects that the
    leaderboard of a partition lists are found. The error includes subjects that full leaderboards do not list, and all
    amounts in a sketch from a former rule; it is `None` if it is not known.
    """
    cap = board_length(rules.metric[metric].top)
    sources: list[tuple[str, Callable[[Sequence[str]], Command]]] = []
    windows = [None] if covering is None else [window for window, _ in covering]
    fields = [bound_field(metric, window) for window in windows or [None]]
    commands: list[Command] = []
    for keys in layout.reached:
        commands += [*position_commands(keys), ("HMGET", keys.ledger, f"sketched@{metric}", *fields)]
        if covering is None:
            sources.append((keys.top(metric), partial(_totals_of, keys, metric)))
        for window, each in covering or ():
            lookup = partial(_fields_of, keys.window(window, metric, each.label))
            sources.append((keys.window_top(window, metric, each.label), lookup))
        of_partition = sources[-(len(covering) if covering else 1) :]
        commands += [("ZREVRANGE", key, 0, cap - 1, "WITHSCORES") for key, _ in of_partition]
    each_partition = len(sources) // max(1, len(layout.reached))

    def candidates(replies: list[Any]) -> Query[_Ranked]:
        positions: list[CountingPosition] = []
        boards: list[Board] = []
        hides, is_known = False, True  # whether a subject may be in no leaderboard; whether its sum has a bound
        hidden = 0  # the most that a subject may have in a sketch, which is that of its own partition
        answers, lookups = iter(replies), iter(sources)
        for keys in layout.reached:
            positions.append(parse_position([next(answers), next(answers)], keys.group))
            sketched, *bounds = raise_on_error(next(answers))
            hidden = max(hidden, int(sketched or 0))
            hides = hides or hidden > 0
            for bound_ in bounds[:each_partition]:
                scores = {subject.decode(): int(score) for subject, score in _pairs(raise_on_error(next(answers)))}
                unseen, is_full = 0, len(scores) >= cap
                is_known = is_known and bound_ != b"%d" % _UNKNOWN
                if is_full or (covering is None and bound_ is not None):
                    unseen, hides = max([int(bound_ or 0), *([min(scores.values())] if is_full else [])]), True
                boards.append(Board(scores, max(0, unseen), next(lookups)[1]))
        found = merge_top_k(boards, n)

        def show(largest: Largest) -> _Ranked:
            places = [(subject, floored(rules, metric, value)) for subject, value in largest.places]
            unseen = largest.unseen if hides else None
            error = _excess(unseen, hidden, _last(largest.places, n), is_split=True)
            return _Ranked(places, positions, error if is_known else None)

        return found.then(show)

    return Query(commands, candidates)


def bound_field(metric: str, window: str | None = None) -> str:
    """Return the field of the ledger that has a bound of the values of subjects that a leaderboard does not list.

    Such a value is at most the larger one of this bound and of the last value of the leaderboard, if it is full. The
    bound is 2^53 - 1 if none is known. Without the field, no value of a full leaderboard has fallen. With `window`, it
    is for the leaderboards of all buckets of this window; with `None`, for that of all time. For a bucket, it does not
    apply to subjects in a sketch.
    """
    return f"unlisted@{metric}" if window is None else f"unlisted:{window}@{metric}"


def _last(places: Sequence[Rank], n: int) -> int:
    """Return the value of the n-th place; if there are fewer, that of the last place or 0, whichever is smaller."""
    return places[-1][1] if len(places) == n else min(0, places[-1][1]) if places else 0


def _excess(unseen: int | None, hidden: int, last: int, *, is_split: bool) -> int:
    """Return the error of a leaderboard of buckets, at least 0.

    Args:
        unseen: The largest sum in the buckets of a subject that is not listed; `None` if no subject may be missing.
        hidden: The most that a subject may have in a sketch, which has no buckets; 0 if `unseen` is `None`.
        last: The value of the last place: see `_last`.
        is_split: Whether a subject may have a value in the buckets and other amounts in the sketch.
    """
    if unseen is None:
        return 0
    return max(0, unseen - last) + hidden if is_split else max(0, unseen - last, hidden - last)


def _window_top(window: str, metric: str, label: str, keys: PartitionKeys) -> str:
    return keys.window_top(window, metric, label)


def _totals_of(keys: PartitionKeys, metric: str, subjects: Sequence[str]) -> Command:
    return ("MGET", *(keys.total(metric, subject) for subject in subjects))


def _fields_of(key: str, subjects: Sequence[str]) -> Command:
    return ("HMGET", key, *subjects)


def _pairs(reply: Any) -> list[tuple[bytes, float]]:
    return [(subject, float(score)) for subject, score in reply]
