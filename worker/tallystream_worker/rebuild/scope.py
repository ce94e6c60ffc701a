"""Which buckets can be proved where the log is known from some entry on, and not before it. Pure: no Redis, no clock.

An event lies at most `MAX_AHEAD` seconds ahead of the entry that brings it. So what is gone has no event in a bucket
that begins later than that behind the last entry that is gone: such a bucket is whole, however little is left. Two
rules look further back: the copy of an event that came with an id may have counted in an earlier bucket of the same
period, and a limit in a bucket of its own; there the period must be whole as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tallystream.rules.windows import Bucket, bucket, labelled
from tallystream.wire.event import MAX_AHEAD
from tallystream.wire.window import WINDOWS
from tallystream_worker.snapshot.names import parse

if TYPE_CHECKING:
    from collections.abc import Container

    from tallystream.rules.metrics import Metric, Rules

_FOREVER: Final = float("inf")


@dataclass(frozen=True)
class Span:
    """The buckets that lie within a range of time; seconds since 1970, `end` is the first one behind it."""

    begin: float = 0.0
    end: float = _FOREVER

    @property
    def is_all(self) -> bool:
        """Tell whether nothing is left out: then totals are asked for as well."""
        return self.begin <= 0 and self.end == _FOREVER

    def needs(self, rules: Rules) -> int:
        """Return the millisecond of the first entry that may say something about its buckets."""
        minute = int(self.begin) // 60
        periods = {p for rule in rules.metric.values() for p in (rule.ids, rule.per) if p not in (None, "total")}
        first = min((bucket(str(p), minute, rules.zone).start for p in periods), default=int(self.begin))
        return max(0, min(first, int(self.begin)) - MAX_AHEAD) * 1000


class Provable:
    """Tells which counters are the same whatever else was appended before an entry.

    Args:
        rules: Those that the counters are counted by.
        span: The buckets that are asked for.
        gone: The millisecond of the last entry that is not known; `None` where all are.
        remembered: What has been folded: the names of the buckets of ids, among others.
    """

    def __init__(self, rules: Rules, span: Span, gone: int | None, remembered: Container[str]) -> None:
        self._rules = rules
        self._span = span
        self._is_all = span.is_all and gone is None
        self._since = -1 if gone is None else gone + MAX_AHEAD * 1000
        self._remembered = remembered

    @property
    def since(self) -> float:
        """Seconds since 1970: buckets that begin behind it are whole; 0 where all are."""
        return max(0, self._since) / 1000

    def asked(self, name: str) -> bool:
        """Tell whether a counter, by its key behind the generation's prefix, is one of those asked for."""
        if self._span.is_all:
            return True
        found = self._bucket(name)
        return found is not None and self._span.begin <= found.start and found.end <= self._span.end

    def __call__(self, name: str) -> bool:
        """Tell whether a counter is asked for and can be proved."""
        if self._is_all:
            return True
        if not self.asked(name):
            return False
        if self._since < 0:
            return True
        found = self._bucket(name)
        return found is not None and self._is_whole(found) and self._rules_allow(name, found)

    def _is_whole(self, found: Bucket) -> bool:
        return found.start * 1000 > self._since

    def _rules_allow(self, name: str, found: Bucket) -> bool:
        kind, _, rest = name.removeprefix("top:").partition(":")
        metric = rest.partition(":")[0]
        rule = self._rules.metric.get(metric)
        if rule is None or (kind not in WINDOWS and kind not in ("limit", "unique")):
            return True
        minute, zone = found.start // 60, self._rules.zone
        if rule.per is not None and not self._is_whole(bucket(rule.per, minute, zone)):
            return False
        if rule.ids is None:
            return True
        period = bucket(rule.ids, minute, zone)
        return self._is_whole(period) or f"seen:{metric}:{period.label}" not in self._remembered

    def _bucket(self, name: str) -> Bucket | None:
        """Return the bucket that a counter is of, where it is of one."""
        found = parse(name.removeprefix("top:"), self._rules)
        if found is None:
            return None
        zone = self._rules.zone
        match found[0]:
            case "windows", window, _, label:
                return labelled(window, label, zone)
            case "limits" | "votes" | "ids" | "uniques" as table, metric, label, *_:
                period = _period(table, self._rules.metric.get(metric))
                return labelled(period, label, zone) if period else None
            case _:
                return None


def _period(table: str, rule: Metric | None) -> str | None:
    if rule is None:
        return None
    return {"limits": rule.per, "votes": rule.once, "ids": rule.ids, "uniques": rule.unique}[table]
