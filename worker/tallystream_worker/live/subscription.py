"""The filter of a reader: metrics, and subjects by name or by a pattern in which `*` matches any text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tallystream.errors import EventError
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tallystream.reading.counters import Counter

MAX_SUBJECTS: Final = 50
"""The largest number of subjects and patterns together that one reader follows. Metrics have no such limit."""

MAX_STARS: Final = 8
"""The largest number of `*` in a pattern."""


@dataclass(frozen=True)
class Pattern:
    """A pattern for subjects, in which `*` matches any text, also an empty one; no other character is special.

    Attributes:
        text: The text of the pattern.

    Raises:
        EventError: the pattern has more than `MAX_STARS` `*`.
    """

    text: str

    def __post_init__(self) -> None:
        if self.text.count("*") > MAX_STARS:
            raise EventError("subject", f"may contain at most {MAX_STARS} *")

    def __call__(self, subject: str) -> bool:
        """Return whether the whole subject matches the pattern."""
        first, *rest = self.text.split("*")
        if not rest:
            return subject == first
        *middle, last = rest
        at, stop = len(first), len(subject) - len(last)
        if at > stop or not subject.startswith(first) or not subject.endswith(last):
            return False
        for part in middle:
            at = subject.find(part, at, stop)
            if at < 0:
                return False
            at += len(part)
        return True


@dataclass(frozen=True)
class Subscription:
    """The counters that a reader follows: each of the metrics, for each subject that is named or matches a pattern.

    Attributes:
        metrics: The names of the metrics.
        subjects: The subjects that are given by name.
        patterns: The patterns for further subjects.
    """

    metrics: frozenset[str]
    subjects: frozenset[str]
    patterns: tuple[Pattern, ...]

    @property
    def named(self) -> Iterator[Counter]:
        """The counters that are given by name: each subject with each metric."""
        return ((subject, metric) for subject in self.subjects for metric in self.metrics)

    def among(self, changed: Mapping[str, set[str]]) -> set[Counter]:
        """Return the followed counters, as (subject, metric), among `changed`: by metric, the subjects that changed."""
        found: set[Counter] = set()
        for metric in self.metrics & changed.keys():
            subjects = changed[metric]
            found.update((subject, metric) for subject in subjects & self.subjects)
            for pattern in self.patterns:
                found.update((subject, metric) for subject in subjects if pattern(subject))
        return found


def subscription_of(metrics: Iterable[str], subjects: Iterable[str]) -> Subscription:
    """Return the subscription to these metrics, for these subjects; a subject that contains `*` is a pattern.

    Subjects and patterns are put into Unicode normal form C. The metrics are not checked. Without subjects, the
    subscription follows no counter.

    Raises:
        EventError: a subject is not valid, a pattern has more than `MAX_STARS` `*`, or there are more than
            `MAX_SUBJECTS` different subjects and patterns together.
    """
    names: set[str] = set()
    patterns: dict[Pattern, None] = {}
    for text in subjects:
        normal = check_text("subject", text, MAX_SUBJECT_BYTES)
        if "*" in normal:
            patterns[Pattern(normal)] = None
        else:
            names.add(normal)
        if len(names) + len(patterns) > MAX_SUBJECTS:
            raise EventError("subject", f"at most {MAX_SUBJECTS} subjects and patterns for one reader")
    return Subscription(frozenset(metrics), frozenset(names), tuple(sorted(patterns, key=lambda pattern: pattern.text)))
