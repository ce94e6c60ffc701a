"""Decides which buckets an audit can prove when the oldest entries are gone. Pure: no Redis, no clock.

The time of an event is at most `MAX_AHEAD` seconds after its entry. So the entries that are gone have no event in a
bucket that begins more than `MAX_AHEAD` seconds after the last of them: that bucket is complete. Two rules depend on a
longer period: a copy of an event with an id may have been counted in the period of ids or the one before, and earlier
buckets use up the limit of its period. If a metric has such a rule, these periods must be complete too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tallystream.rules.windows import Bucket, bucket, id_length, id_period, labelled, labelled_id_period
from tallystream.wire.event import MAX_AHEAD
from tallystream.wire.window import WINDOWS
from tallystream_worker.snapshot.names import parse

if TYPE_CHECKING:
    from collections.abc import Container

    from tallystream.rules.metrics import Metric, Rules

_FOREVER: Final = float("inf")


@dataclass(frozen=True)
class Span:
    """The buckets that lie entirely within a range of time; if neither side has a limit (the default), totals too.

    Attributes:
        begin: First second of the range, since 1970; it is not rounded to a bucket. 0 for no limit.
        end: First second after the range; infinity for no limit.
    """

    begin: float = 0.0
    end: float = _FOREVER

    @property
    def is_all(self) -> bool:
        """Whether the range is unlimited; only then are counters without a bucket, such as totals, in it as well."""
        return self.begin <= 0 and self.end == _FOREVER

    def needs(self, rules: Rules) -> int:
        """Return the millisecond (since 1970) from which entries must be read to prove the buckets.

        It is `MAX_AHEAD` before the earliest of these times: the begin of the range; for each limit with periods, the
        begin of the period in which the range begins; for each metric with ids, `_id_start` of the minute in which the
        range begins. It is 0 if that is before 1970.
        """
        minute = int(self.begin) // 60
        limits = {rule.per for rule in rules.metric.values() if rule.per not in (None, "total")}
        ids = {rule.ids for rule in rules.metric.values() if rule.ids is not None}
        firsts = [bucket(str(per), minute, rules.zone).start for per in limits]
        firsts += [_id_start(period, minute) for period in ids]
        return max(0, min((*firsts, int(self.begin))) - MAX_AHEAD) * 1000


class Provable:
    """Decides whether a counter can be proved: it is in the span, and no entry that is left out can have changed it.

    Args:
        rules: The rules that the counters are counted by.
        span: The buckets to prove.
        gone: The millisecond (since 1970) up to which entries are left out; `None` if every entry is included.
        remembered: The names of the folded buckets that expire. A bucket of ids (`seen:<metric>:<period>`) among them
            means that events with ids were folded in that period.
    """

    def __init__(self, rules: Rules, span: Span, gone: int | None, remembered: Container[str]) -> None:
        self._rules = rules
        self._span = span
        self._is_all = span.is_all and gone is None
        self._since = -1 if gone is None else gone + MAX_AHEAD * 1000
        self._remembered = remembered

    @property
    def since(self) -> float:
        """Buckets that begin after this time, in seconds since 1970, are complete; 0 if no entry is left out."""
        return max(0, self._since) / 1000

    def asked(self, name: str) -> bool:
        """Return whether a counter is in the span, provable or not; `name`: its key without the generation's prefix."""
        if self._span.is_all:
            return True
        found = self._bucket(name)
        return found is not None and self._span.begin <= found.start and found.end <= self._span.end

    def __call__(self, name: str) -> bool:
        """Return whether a counter is in the span and can be proved; `name` is as for `asked`."""
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
        if _id_start(rule.ids, minute) * 1000 > self._since:
            return True
        # A missing event may be in the first of these periods, or have copies in it; a copy there may link to the next.
        periods = (id_period(rule.ids, minute), id_period(rule.ids, minute + id_length(rule.ids) // 60))
        return not any(f"seen:{metric}:{period.label}" in self._remembered for period in periods)

    def _bucket(self, name: str) -> Bucket | None:
        """Return the bucket that a counter belongs to; `None` if it has none, such as a total.

        Also return `None` for a limit, votes, ids or unique actors if the rules lack the metric, or its rule no longer
        has such a period.
        """
        found = parse(name.removeprefix("top:"), self._rules)
        if found is None:
            return None
        zone = self._rules.zone
        match found[0]:
            case "windows", window, _, label:
                return labelled(window, label, zone)
            case "limits" | "votes" | "ids" | "uniques" as table, metric, label, *_:
                period = _period(table, self._rules.metric.get(metric))
                if period and table == "ids":
                    return labelled_id_period(period, label)
                return labelled(period, label, zone) if period else None
            case _:
                return None


def _id_start(ids: str, minute: int) -> int:
    """Return the earliest second of an event that may have a copy in the period of ids that contains a minute.

    The result is `id_length` before the begin of this period (see `id_period`), in seconds since 1970.

    Args:
        ids: A value of `Metric.ids`: `minute`, `hour`, `day` or `month`.
        minute: Whole minutes since 1970.
    """
    return id_period(ids, minute).start - id_length(ids)


def _period(table: str, rule: Metric | None) -> str | None:
    if rule is None:
        return None
    return {"limits": rule.per, "votes": rule.once, "ids": rule.ids, "uniques": rule.unique}[table]
