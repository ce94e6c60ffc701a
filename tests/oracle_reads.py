"""The definition of correct for reads over time: what a series, a sum, a leaderboard or a count of actors must state.

Like the other oracles it has no Redis. It takes the events that the server has received, and the second at which a
question is asked. Retention is all it knows of storage: a bucket is open until its end plus its retention, and an open
bucket has every event of its time.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tallystream.reading.sketches import EPSILON
from tallystream.rules.windows import bucket, seconds
from tallystream.wire.window import WINDOWS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tallystream.reading.freshness import RangeFigure
    from tallystream.rules.metrics import Metric, Rules
    from tests.oracle_rules import Happened


def estimate_error(sketched: Iterable[int]) -> int:
    """Return the error that an estimated total must state: that of its estimate in each partition, all added up.

    Args:
        sketched: By partition that the total is read from, the sum of all amounts in its sketch of the metric.
    """
    return sum(math.ceil(EPSILON * each) for each in sketched)


@dataclass
class Reads:
    """What reads must answer.

    Attributes:
        events: The events that the server has received, all counted.
        rules: The declared metrics; none of these rules rejects an event.
        now: The second, by the server's clock, at which a question is asked.
    """

    events: list[Happened]
    rules: Rules
    now: float

    def series(self, subject: str, metric: str, window: str, last: int) -> list[tuple[str, int | None]]:
        """Return the last buckets of a window, each with its sum; `None` if it has closed."""
        points: list[tuple[str, int | None]] = []
        at = int(self.now)
        for _ in range(last):
            each = bucket(window, at // 60, self.rules.zone)
            value = (
                self.amount(metric, each.start, each.end)[subject] if self.is_open(metric, window, each.end) else None
            )
            points.insert(0, (each.label, value))
            at = each.start - 1
        return points

    def amount(self, metric: str, start: int | None, end: int | None) -> Counter[str]:
        """Return the sum of the amounts from `start` to `end`, by subject; `None` means no bound."""
        sums: Counter[str] = Counter()
        for event in self._within(metric, start, end):
            sums[event.subject] += event.amount
        return sums

    def actors(self, subject: str, metric: str, start: int | None, end: int | None) -> int:
        """Return the number of different actors of a subject from `start` to `end`."""
        within = self._within(metric, start, end)
        return len({event.actor for event in within if event.subject == subject and event.actor is not None})

    def is_open(self, metric: str, window: str, end: int) -> bool:
        """Return whether a bucket that ends at second `end` can still be read."""
        kept = self._rule(metric).retention_seconds(window)
        return kept is None or end + kept > self.now

    def check_bounds(self, figure: RangeFigure, metric: str, over: str, windows: Iterable[str] | None = None) -> None:
        """Fail unless an answer states bounds that its buckets allow, and misses as little as possible."""
        names = list(self._rule(metric).windows if windows is None else windows)
        begin = int(self.now) - (seconds(over) or 0) + 1
        holding = {w: bucket(w, begin // 60, self.rules.zone) for w in names}
        possible = [each.start for w, each in holding.items() if self.is_open(metric, w, each.end)]
        assert figure.start is not None
        assert figure.end is not None
        assert self.now < figure.end <= max(bucket(w, int(self.now) // 60, self.rules.zone).end for w in names)
        assert figure.complete == bool(possible), (figure, possible)
        if possible:
            assert figure.start in possible
            assert not figure.missing
        else:
            first = min(self._first_open(metric, w) for w in names)
            asked = next(holding[w].start for w in WINDOWS if w in holding)
            assert figure.start == first, (figure, first)
            assert [(span.start, span.end) for span in figure.missing] == [(asked, first)]

    def _first_open(self, metric: str, window: str) -> int:
        kept = self._rule(metric).retention_seconds(window)
        assert kept is not None
        return bucket(window, (int(self.now) - kept) // 60, self.rules.zone).start

    def _rule(self, metric: str) -> Metric:
        return self.rules.metric[metric]

    def _within(self, metric: str, start: int | None, end: int | None) -> list[Happened]:
        return [
            event
            for event in self.events
            if event.metric == metric
            and (start is None or event.at >= start * 1000)
            and (end is None or event.at < end * 1000)
        ]
