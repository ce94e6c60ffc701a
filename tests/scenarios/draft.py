"""A draft: a script that is being drawn, and what a move must know about it to draw the next step."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from hypothesis import strategies as st
from msgspec.structs import replace

from tallystream.errors import ConfigurationError
from tests.scenarios.known import Known, avoided
from tests.scenarios.script import Occurrence

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hypothesis.strategies import DataObject

    from tallystream.rules.metrics import Metric, Rules

T = TypeVar("T")

HOUR: Final = 3600
DAY: Final = 86_400
AGOS: Final = (0, 0, 0, 0.5, 59, 600, HOUR, 3 * HOUR, 12 * HOUR, DAY, 2 * DAY, 8 * DAY, 40 * DAY)
"""How long before the present of a scenario its events happen, in seconds."""

STEP: Final = 0.125
"""Seconds between two events that must not have the same time; a power of two, so that no digit is lost."""


@dataclass
class Draft:
    """The part of a scenario that is drawn so far.

    Attributes:
        data: The source of choices.
        rules: The rules.
        start: The second at which the scenario starts.
        elapsed: Seconds since then, by the true clock, after the last step.
        events: The events that were drawn so far.
        done: Names of things that were done and matter to later moves.
        without: Names of the fields that events do not have.
    """

    data: DataObject
    rules: Rules
    start: float
    age: str = "forever"
    elapsed: float = 0.0
    events: list[Occurrence] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    without: frozenset[str] = frozenset()

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of some choices."""
        return self.data.draw(st.sampled_from(choices))

    def number(self, least: int, most: int) -> int:
        """Return a whole number from `least` to `most`."""
        return self.data.draw(st.integers(least, most))

    def chance(self, of: int) -> bool:
        """Return whether one chance in `of` came true."""
        return self.number(1, of) == of

    def event(self, metrics: Sequence[str] | None = None) -> Occurrence | None:
        """Return an event that is valid now, sometimes a copy of an earlier one with the same id; `None` for none."""
        metrics = list(self.rules.metric) if metrics is None else metrics
        if not metrics:
            return None
        copies = [event for event in self.events if event.id is not None and self._is_valid(event, metrics)]
        if copies and self.chance(4):
            return self.pick(copies)
        metric = self.pick(metrics)
        rule = self.rules.metric[metric]
        actor = self.pick(["u1", "u2", "u3"]) if rule.once else self.pick([None, None, "u1", "u2", "u3", "u4"])
        id_ = self._id()
        subject = self.pick(["a", "b", "c", "d", "e"])
        event = self.lacking(Occurrence(metric, subject, self._amount(rule), actor, self._at(), id_))
        self.events.append(event)
        return event

    def dated_events(self) -> list[Occurrence]:
        """Return up to six valid events of fixed times, as a file has them."""
        events = [event for _ in range(self.number(1, 6)) if (event := self.event()) is not None]
        return [event for event in events if event.at is not None]

    def changes_rules(self, changed: Callable[[Rules], Rules]) -> bool:
        """Change the rules for the moves that follow; return `False`, and change nothing, if they would be invalid."""
        try:
            self.rules = changed(self.rules)
        except ConfigurationError:
            return False
        return True

    def _is_valid(self, event: Occurrence, metrics: Sequence[str]) -> bool:
        """Return whether an event has one of some metrics, and is valid under its present rules."""
        return event.metric in metrics and (self.rules.metric[event.metric].once is None or event.actor is not None)

    def lacking(self, event: Occurrence) -> Occurrence:
        """Return an event without the fields that are left out; an actor that its metric needs stays."""
        out = set(self.without) - ({"actor"} if self.rules.metric[event.metric].once else set())
        return replace(event, **{name: None for name in ("actor", "at", "id") if name in out})

    def _id(self) -> str | None:
        return self.pick([None, None, None, f"i{len(self.events)}"])

    def _amount(self, rule: Metric) -> int:
        if rule.limit is not None:
            return 1
        if rule.once is not None:
            return self.pick([1, 1, -1, 0])
        amounts = [1, 1, 1, 1, 2, 7]
        if rule.exact and rule.max_subjects is None:
            amounts += [10**12]
        if not avoided(Known.LARGE_SUMS):
            amounts += [2**52, 2**53 - 1]
        sketched = not rule.exact or rule.max_subjects is not None
        if rule.exact and not (sketched and avoided(Known.NEGATIVE_SKETCHES)):
            amounts += [-1, -3]
        return self.pick(amounts)

    def _at(self) -> float | None:
        ago = self.pick(AGOS)
        if self.chance(8):
            ago = -1800
        return None if ago == 0 else self.elapsed - ago


def moment(text: str) -> float:
    """Return a time such as `2026-03-29T00:40:10`, in UTC, in seconds since 1970."""
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp()
