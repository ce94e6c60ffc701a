"""What a reader follows: metrics, and subjects by name or by a pattern in which `*` stands for anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tallystream.errors import EventError
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tallystream.reading.counters import Counter

MAX_SUBJECTS: Final = 50
"""The most names and patterns of one reader, and the most metrics."""

MAX_STARS: Final = 8


@dataclass(frozen=True)
class Pattern:
    """Text with `*` in it; matching takes time in proportion to the subject, whatever the pattern."""

    text: str

    def __post_init__(self) -> None:
        if self.text.count("*") > MAX_STARS:
            raise EventError("subject", f"may hold at most {MAX_STARS} *")

    def __call__(self, subject: str) -> bool:
        """Tell whether a subject matches as a whole."""
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
    """Which counters a reader follows.

    Attributes:
        metrics: By name.
        subjects: Those without a `*`.
        patterns: Those with one.
    """

    metrics: frozenset[str]
    subjects: frozenset[str]
    patterns: tuple[Pattern, ...]

    @property
    def named(self) -> Iterator[Counter]:
        """The counters that can be told without looking at what changed."""
        return ((subject, metric) for subject in self.subjects for metric in self.metrics)

    def among(self, changed: Mapping[str, set[str]]) -> set[Counter]:
        """Return the wanted ones of what changed, which is subjects by metric."""
        found: set[Counter] = set()
        for metric in self.metrics & changed.keys():
            subjects = changed[metric]
            found.update((subject, metric) for subject in subjects & self.subjects)
            for pattern in self.patterns:
                found.update((subject, metric) for subject in subjects if pattern(subject))
        return found


def subscription_of(metrics: Iterable[str], subjects: Iterable[str]) -> Subscription:
    """Return a checked filter.

    Raises:
        EventError: a subject or pattern that is too long, or too many of them.
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
