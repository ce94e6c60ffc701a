"""Finds subjects by the beginning of their name on the leaderboards, because no list of all subjects exists."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from tallystream.errors import EventError
from tallystream.reading.counters import NOTHING, floored, query_counters
from tallystream.reading.query import Command, Query, raise_on_error
from tallystream.reading.reach import UnreachablePartition  # noqa: TC001  # msgspec reads the type
from tallystream.rules.parts import SKETCHES
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout

MAX_FOUND: Final = 50
"""The most subjects that one search returns."""

_SEARCHED: Final = 1000
"""The number of first places that are searched on each leaderboard of each partition."""


class FoundSubject(msgspec.Struct, frozen=True):
    """One subject that was found.

    Attributes:
        subject: The subject.
        metric: Of the metrics on whose leaderboards it was found, the one in which `value` is largest.
        value: Its total in this metric, but at least the metric's `floor`; an estimate if the total is in a sketch. It
            may lack partitions that are unreachable.
    """

    subject: str
    metric: str
    value: int


class FoundSubjects(msgspec.Struct, frozen=True):
    """Subjects whose names begin with a prefix, from the leaderboards of all time.

    Attributes:
        prefix: The prefix, in its normal form (Unicode NFC).
        subjects: The subjects, largest value first.
        searched: The metrics whose leaderboards were searched, in order of name.
        unreachable: The partitions that were not searched, because their nodes of the cluster do not answer.
    """

    prefix: str
    subjects: list[FoundSubject]
    searched: list[str]
    unreachable: list[UnreachablePartition] = []

    def lacking(self, unreachable: list[UnreachablePartition]) -> FoundSubjects:
        """Return a copy with the given partitions as `unreachable`, in place of those that it has."""
        return replace(self, unreachable=unreachable)


def query_subjects(
    layout: Layout, rules: Rules, prefix: str, n: int, removed: Mapping[str, int] = NOTHING
) -> Query[FoundSubjects]:
    """Return a query for at most `n` subjects whose names begin with `prefix`, from the all-time leaderboards.

    Each subject comes once, with the largest of its totals that were found, each at least its metric's `floor`, and the
    metric of this total; largest first, equal totals by name. Totals that are stored as 0 are left out, whatever the
    `floor`. The first 1,000 places of each leaderboard in each reachable partition are searched; without a metric with
    `top`, nothing is found. `prefix` is brought into Unicode normal form C; upper and lower case differ. `removed` is
    that of the deployment: see `tallystream.deployment.Deployment`.

    A total that is in several partitions, or partly in a sketch, is read whole if all its partitions are reachable;
    otherwise, it is the sum of the places that were found. If there are more than 1,000 totals, those with a small sum
    of places are ranked by this sum, and only those that are then among the `n` subjects are read whole. So others may
    be left out although their whole totals are larger.

    Raises:
        EventError: `prefix` is empty, too long for a subject (1,024 bytes) or has a character that no subject may have,
            or `n` is not 1 to 50.
    """
    begins = check_text("prefix", prefix, MAX_SUBJECT_BYTES)
    if not 1 <= n <= MAX_FOUND:
        raise EventError("n", f"must be 1 to {MAX_FOUND}, not {n:,}")
    boards = [(metric, keys) for metric, rule in rules.metric.items() if rule.top for keys in layout.reached]
    commands: list[Command] = [
        ("ZREVRANGE", keys.top(metric), 0, _SEARCHED - 1, "WITHSCORES") for metric, keys in boards
    ]

    def show(values: Mapping[tuple[str, str], int]) -> FoundSubjects:
        best: dict[str, FoundSubject] = {}
        for (subject, metric), stored in values.items():
            if not stored:
                continue  # a stored leaderboard may list a subject whose value is 0 again, or not
            value = floored(rules, metric, stored)
            if subject not in best or best[subject].value < value:
                best[subject] = FoundSubject(subject, metric, value)
        found = sorted(best.values(), key=lambda each: (-each.value, each.subject))[:n]
        return FoundSubjects(begins, found, sorted({metric for metric, _ in boards}))

    def is_in_parts(metric: str) -> bool:
        # A subject of a spread metric may be missing on the leaderboards of some partitions. So may a part of a total
        # be in the sketch.
        return metric in rules.spread or f"{SKETCHES}:{metric}" in removed

    def whole(
        values: dict[tuple[str, str], int], read: frozenset[tuple[str, str]]
    ) -> FoundSubjects | Query[FoundSubjects]:
        """Return the answer from `values`; or a query that first reads those totals of its subjects that lack a part.

        A total may lack a part if it is not in `read`, and its metric is spread or partly in a sketch.
        """
        found = show(values)
        shown = {each.subject for each in found.subjects}
        wanted = [each for each in values if each[0] in shown and each not in read and is_in_parts(each[1])]
        return read_whole(values, read, wanted) if wanted else found

    def read_whole(
        values: dict[tuple[str, str], int], read: frozenset[tuple[str, str]], wanted: list[tuple[str, str]]
    ) -> Query[FoundSubjects]:
        counted = query_counters(layout, wanted, rules, removed)
        return counted.then(lambda reading: whole(values | reading.values, read.union(wanted)))

    def parse(replies: list[Any]) -> FoundSubjects | Query[FoundSubjects]:
        listed: Counter[tuple[str, str]] = Counter()
        for (metric, _), reply in zip(boards, replies, strict=True):
            for raw, score in raise_on_error(reply):
                if (subject := raw.decode()).startswith(begins):
                    listed[subject, metric] += int(float(score))
        largest = [counter for counter, _ in listed.most_common(_SEARCHED) if is_in_parts(counter[1])]
        return read_whole(dict(listed), frozenset(), largest) if largest else whole(dict(listed), frozenset())

    return Query(commands, parse)
