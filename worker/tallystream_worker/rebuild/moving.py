"""Finds the counters that entries may still change, by the names that comparisons use. Pure: no Redis, no clock."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from tallystream.rules.windows import id_length, labelled, labelled_id_period, next_id_label
from tallystream.wire.window import WINDOWS
from tallystream_worker.rebuild.values import counter_name, metric_of, text_of
from tallystream_worker.snapshot.changed_keys import SEPARATOR, ChangedKeys
from tallystream_worker.snapshot.names import HASHES, key_of, period_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tallystream.rules.metrics import Rules
    from tallystream.rules.windows import Bucket
    from tallystream_worker.counting.entry import Entry
    from tallystream_worker.snapshot.changed_keys import Group

_ALWAYS: Final = (-(2**63), 2**63)


class MovingCounters:
    """Finds out whether some entries may change a counter when they are counted.

    A vote or an event with an id may also take an earlier one back. So every bucket of the subject that overlaps the
    period of the vote or id, or the period of ids after it, counts as changed. A reset may change every counter of its
    subject. Too many counters may be found, but never too few.

    Args:
        entries: The entries.
        rules: Each of the rules by which the entries may be counted.
    """

    def __init__(self, entries: Iterable[Entry], rules: Iterable[Rules]) -> None:
        self._rules = tuple(rules)
        self._names: set[str] = set()
        self._boards: set[str] = set()
        self._spans: dict[tuple[str, str], set[tuple[int, int]]] = defaultdict(set)  # seconds, by metric and subject
        self._reset: dict[str, set[str]] = defaultdict(set)
        self._metrics: set[str] = set()
        """The metrics of `_spans` and `_reset`."""
        found = [ChangedKeys(each) for each in self._rules]
        for entry in entries:
            for changed in found:
                changed.add(entry)
        for each, changed in zip(self._rules, found, strict=True):
            self._add(changed, each)

    def has(self, name: str, key: str, *, is_listed: bool = True) -> bool:
        """Return whether the entries may change a counter.

        Args:
            name: The name of the counter, as `Piece.values` returns it.
            key: The key of the counter, without the generation's prefix.
            is_listed: `False` if the counter is a place on a leaderboard that one of the compared generations lacks.
                Entries of another subject on this leaderboard may then have removed it.
        """
        metric = metric_of(key)
        item = name.removeprefix(counter_name(key, ""))
        if name in self._names or any(_is_of(key, item, subject) for subject in self._reset.get(metric, ())):
            return True
        if not is_listed and (key in self._boards or metric in self._metrics):
            return True
        return self._may_be_taken_back(key, metric, item)

    def _may_be_taken_back(self, key: str, metric: str, subject: str) -> bool:
        spans = self._spans.get((metric, subject))
        bucket = key.removeprefix("top:")
        if not spans or bucket.partition(":")[0] not in (*WINDOWS, "limit") or bucket.count(":") < 2:  # noqa: PLR2004  # kind, metric and label
            return False
        periods = [found[0] for rules in self._rules if (found := period_of(bucket, rules)) is not None]
        return not periods or any(_overlaps(period, span) for period in periods for span in spans)

    def _add(self, changed: ChangedKeys, rules: Rules) -> None:
        for metric, subject in changed.resets:
            self._reset[metric].add(text_of(subject))
            self._metrics.add(metric)
        for group, items in changed.items.items():
            self._names.update(_names(group, items))
            match group:
                case "totals", metric:
                    self._boards.add(f"top:{metric}")
                    self._names.update(counter_name(f"top:{metric}", item) for item in items)
                case "windows", *_:
                    self._boards.add(f"top:{key_of(group)}")
                    self._names.update(counter_name(f"top:{key_of(group)}", item) for item in items)
                case "votes", metric, label, subject:
                    once = rules.metric[metric].once
                    period = labelled(once, label, rules.zone) if once is not None else None
                    self._span(metric, subject, _ALWAYS if period is None else (period.start, period.end))
                case "ids", metric, label:
                    self._add_ids(rules, metric, label, items)

    def _add_ids(self, rules: Rules, metric: str, label: str, items: Iterable[str]) -> None:
        ids = rules.metric[metric].ids
        period = labelled_id_period(ids, label) if ids is not None else None
        span = _ALWAYS if ids is None or period is None else (period.start, period.end + id_length(ids))
        for item in items:
            self._span(metric, item.partition(SEPARATOR)[0], span)
            if ids is not None:
                self._names.update(_names(("ids", metric, next_id_label(ids, label)), (item,)))

    def _span(self, metric: str, subject: str, span: tuple[int, int]) -> None:
        self._spans[metric, text_of(subject)].add(span)
        self._metrics.add(metric)


def _is_of(key: str, item: str, subject: str) -> bool:
    """Return whether a counter is of a subject: by its field, which an id may follow, or by the end of its key."""
    return item == subject or item.startswith(f"{subject} ") or key.endswith(f":{subject}")


def _names(group: Group, items: Iterable[str]) -> Iterator[str]:
    key = key_of(group)
    if group[0] in HASHES:
        return (counter_name(key, item) for item in items)
    return (key + item for item in items)


def _overlaps(period: Bucket, span: tuple[int, int]) -> bool:
    return period.start < span[1] and span[0] < period.end
