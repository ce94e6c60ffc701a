"""A batch: what events add up to, in the form that `plan.lua` reads. Pure: no Redis, no clock.

A *place* is where an event of a metric goes: the labels of its buckets. Events of one place add up; the rules
that need memory (limits, votes, ids) take them one by one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tallystream.rules.alert_watch import looks, touches
from tallystream.rules.windows import Bucket, bucket
from tallystream.wire.window import WINDOWS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tallystream.rules.alerts import Alert
    from tallystream.rules.metrics import Metric, Rules
    from tallystream.storage.keys import PartitionKeys

_encode: Final = msgspec.msgpack.Encoder().encode

SKETCH_ROWS: Final = 4
SKETCH_WIDTH: Final = 32_768


class BucketSet:
    """A metric and the buckets that an event's minute lies in: of its limit first (if any), then of each window."""

    __slots__ = ("buckets", "labels", "limit", "metric", "rule", "text")

    def __init__(self, metric: str, rule: Metric, limit: Bucket | None, buckets: tuple[Bucket | None, ...]) -> None:
        self.metric = metric
        self.rule = rule
        self.limit = limit
        self.buckets = buckets
        self.labels = tuple(each.label if each else "" for each in (limit, *buckets))
        self.text = "" if self.labels == ("",) else " ".join(label or "-" for label in self.labels)


class BucketResolver:
    """Finds the place of a metric and minute; there is one object for each, so it serves as a dictionary's key."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._by_minute: dict[tuple[str, int], BucketSet] = {}
        self._by_labels: dict[tuple[str, tuple[str, ...]], BucketSet] = {}

    def __call__(self, metric: str, minute: int) -> BucketSet:
        """Return the place of a declared metric at a minute (whole minutes since 1970)."""
        place = self._by_minute.get((metric, minute))
        if place is None:
            if len(self._by_minute) >= 100_000:  # noqa: PLR2004  # 70 days of minutes; then begin anew
                self._by_minute.clear()
                self._by_labels.clear()
            rule, zone = self.rules.metric[metric], self.rules.zone
            limit = bucket(rule.per, minute, zone) if rule.per is not None else None
            place = BucketSet(metric, rule, limit, tuple(bucket(window, minute, zone) for window in rule.windows))
            place = self._by_labels.setdefault((metric, place.labels), place)
            self._by_minute[metric, minute] = place
        return place

    def without_finer(self, place: BucketSet, finest: str) -> BucketSet:
        """Return a place without the buckets of windows finer than `finest`; of `total`, without any."""
        first = WINDOWS.index(finest) if finest in WINDOWS else len(WINDOWS)
        windows = zip(place.rule.windows, place.buckets, strict=True)
        buckets = tuple(each if WINDOWS.index(window) >= first else None for window, each in windows)
        coarser = BucketSet(place.metric, place.rule, place.limit, buckets)
        return self._by_labels.setdefault((place.metric, coarser.labels), coarser)


class Batch:
    """What events add up to in one partition.

    Attributes:
        sums: By place, by subject, the sum of the amounts: of metrics without a rule that needs memory.
        limited: The same for metrics with a limit, where each event's amount is 1.
        received: Millisecond at which the server took the first of the events; matters where there are `alerts`.
        expire: By bucket's key, the millisecond until which it is kept, 0 for ever.
    """

    def __init__(self, keys: PartitionKeys, zone: str, alerts: Mapping[str, Sequence[Alert]] | None = None) -> None:
        self._keys = keys
        self._zone = zone
        self._alerts = alerts or {}
        self.received = 0
        self.sums: dict[BucketSet, Counter[str]] = defaultdict(Counter)
        self.limited: dict[BucketSet, Counter[str]] = defaultdict(Counter)
        self._seen: dict[tuple[str, str], list[tuple[Any, ...]]] = defaultdict(list)
        self._votes: dict[tuple[str, str, str], list[tuple[Any, ...]]] = defaultdict(list)
        self._uniques: dict[tuple[str, str, int], dict[str, set[str]]] = {}
        self._rules: dict[str, Metric] = {}
        self.expire: dict[str, int] = {}
        self._places: dict[BucketSet, int] = {}

    def add(self, place: BucketSet, subject: str, amount: int, at: int, actor: str | None, id_: str | None) -> None:
        """Add one event that its rules have a place for; `at` is milliseconds since 1970."""
        rule = place.rule
        if rule.once is not None and actor is not None:
            period = bucket(rule.once, at // 60_000, self._zone)
            key = self._keys.once(place.metric, period.label, subject)
            record = f"{at} {amount} {place.text}"
            self._votes[place.metric, key, subject].append((actor, amount, at, self._number(place), record))
            self._keep(key, None if rule.once == "forever" else period.end, rule.late_seconds)
        elif id_ is not None and rule.ids is not None and rule.exact:
            period = bucket(rule.ids, at // 60_000, self._zone)
            key = self._keys.seen(place.metric, period.label)
            self._seen[place.metric, key].append((f"{subject}\n{id_}", subject, amount, at, self._number(place)))
            self._keep(key, period.end, rule.late_seconds or _SEEN_LATE)
        elif rule.limit is not None:
            self.limited[place][subject] += amount
        else:
            self.sums[place][subject] += amount
        if rule.unique is not None and actor is not None:
            self._actors(place, rule.unique, at // 60_000)[subject].add(actor)

    def add_visits(self, place: BucketSet, minute: int, subjects: list[str], actors: list[str]) -> None:
        """Add events of amount 1 of one place and minute, each by one of the actors; their rule is not `once`."""
        sums = self.sums if place.rule.limit is None else self.limited
        sums[place].update(subjects)
        if (unique := place.rule.unique) is not None:
            found = self._actors(place, unique, minute)
            for subject, actor in zip(subjects, actors, strict=True):
                found[subject].add(actor)

    def _actors(self, place: BucketSet, unique: str, minute: int) -> dict[str, set[str]]:
        """Return, by subject, the actors of a metric that keeps uniques, in the bucket of a minute."""
        period = bucket(unique, minute, self._zone)
        prefix = self._keys.unique(place.metric, period.label, "")
        key = (place.metric, prefix, _until(period.end, place.rule.retention_seconds(unique)))
        return self._uniques.setdefault(key, defaultdict(set))

    @property
    def counters(self) -> int:
        """About how many totals the batch is worth: what its script call takes time for.

        Buckets' fields are cheap beside a total, and sent with it; what needs memory is looked at one by one, in Lua.
        """
        plain = sum(len(sums) * (4 + len(place.buckets)) for place, sums in self.sums.items())
        limited = sum(len(sums) * (12 + len(place.buckets)) for place, sums in self.limited.items())
        rest = sum(map(len, self._seen.values())) + sum(map(len, self._votes.values()))
        rest += sum(map(len, self._uniques.values()))
        return plain // 4 + limited // 4 + 4 * rest

    def encode(self, ids: list[str], ledger: dict[str, int]) -> bytes:
        """Return the batch as `plan.lua` reads it.

        Args:
            ids: The entries that are acknowledged with it.
            ledger: What else to add to the ledger, in events by field.
        """
        places = (*self.sums, *self.limited, *self._places)
        rules = {place.metric: place.rule for place in places}
        numbers = {metric: number for number, metric in enumerate(rules, 1)}
        sums, windows, sketches = self._columns(numbers)
        for place in (*self.limited, *self._places):
            self._keep_buckets(place)
        limited = [
            (numbers[place.metric], self._number(place), list(counts), list(counts.values()))
            for place, counts in self.limited.items()
        ]
        batch = {
            "ids": ids,
            "rules": [self._rule(metric, rule) for metric, rule in rules.items()],
            "labels": [_labels(place) for place in self._places],
            "sums": sums,
            "windows": windows,
            "sketches": sketches,
            "limited": limited,
            "seen": [(numbers[metric], key, *events) for (metric, key), events in self._seen.items()],
            "votes": [
                (numbers[metric], key, subject, *events) for (metric, key, subject), events in self._votes.items()
            ],
            "uniques": [
                (numbers[metric], prefix, until, [(subject, *actors) for subject, actors in by_subject.items()])
                for (metric, prefix, until), by_subject in self._uniques.items()
            ],
            "expire": [part for pair in self.expire.items() for part in pair],
            "ledger": [part for move in ledger.items() for part in move],
        }
        if not self._alerts.keys().isdisjoint(rules):
            self._watch(batch, rules)
        return _encode(batch)

    def _watch(self, batch: dict[str, Any], rules: Mapping[str, Metric]) -> None:
        """Add what the script must know of the alerts."""
        batch["outbox"], batch["touched"] = self._keys.outbox, []
        for (metric, rule), of_rule in zip(rules.items(), batch["rules"], strict=True):
            alerts = self._alerts.get(metric, ())
            subjects = self._subjects(metric) if alerts else set()
            buckets: dict[int, set[Bucket]] = defaultdict(set)
            for place in (*self.sums, *self.limited, *self._places):
                if place.metric == metric:
                    for nth, each in enumerate(place.buckets, 1):
                        if each is not None:
                            buckets[nth].add(each)
            counted = [
                (0 if alert.window is None else 1 + rule.windows.index(alert.window), alert)
                for alert in alerts
                if alert.span is None
            ]
            if found := looks(self._keys, counted, subjects, buckets, self.received):
                of_rule["watch"] = found
            batch["touched"] += touches(self._keys, [alert for alert in alerts if alert.span], subjects)

    def _subjects(self, metric: str) -> set[str]:
        found: set[str] = set()
        for columns in (self.sums, self.limited):
            for place, amounts in columns.items():
                if place.metric == metric:
                    found.update(amounts)
        found.update(event[1] for (of, _), events in self._seen.items() if of == metric for event in events)
        found.update(subject for of, _, subject in self._votes if of == metric)
        return found

    def _columns(self, numbers: dict[str, int]) -> tuple[list[Any], list[Any], list[Any]]:
        """Return the plain sums as columns: all-time, by window, and those of sketched metrics."""
        by_metric: dict[str, list[BucketSet]] = defaultdict(list)
        for place in self.sums:
            by_metric[place.metric].append(place)
        sums: list[Any] = []
        windows: list[Any] = []
        sketches: list[Any] = []
        for metric, places in by_metric.items():
            number, rule = numbers[metric], places[0].rule
            total = self.sums[places[0]] if len(places) == 1 else _added(self.sums[place] for place in places)
            column = (number, list(total), list(total.values()))
            if not rule.exact:
                sketches.append(column)
                continue
            sums.append(column)
            for nth in range(1, len(rule.windows) + 1):
                if len(places) == 1:
                    # The common case, events of one hour: the bucket's column is the total's, and sent once.
                    if label := places[0].labels[nth]:
                        windows.append((number, nth, label, len(sums)))
                    continue
                by_label: dict[str, list[BucketSet]] = defaultdict(list)
                for place in places:
                    by_label[place.labels[nth]].append(place)
                by_label.pop("", None)  # what goes to no bucket of this window
                for label, shared in by_label.items():
                    added = _added(self.sums[place] for place in shared)
                    windows.append((number, nth, label, list(added), list(added.values())))
            for place in places:
                self._keep_buckets(place)
        return sums, windows, sketches

    def _rule(self, metric: str, rule: Metric) -> dict[str, Any]:
        keys = self._keys
        return {
            "metric": metric,
            "total": keys.total(metric, ""),
            "up": keys.up(metric, ""),
            "windows": [keys.window(window, metric, "") for window in rule.windows],
            "limit": rule.limit or 0,
            "limits": keys.limit(metric, ""),
            "top": board_length(rule.top),
            "tops": [keys.top(metric), *(keys.window_top(window, metric, "") for window in rule.windows)],
            "quota": rule.max_subjects or 0,
            "sketch": keys.sketch(metric),
            "bloom": int(rule.seen == "bloom"),
        }

    def _number(self, place: BucketSet) -> int:
        return self._places.setdefault(place, len(self._places) + 1)

    def _keep_buckets(self, place: BucketSet) -> None:
        rule = place.rule
        if place.limit is not None:
            end = None if rule.per == "total" else place.limit.end
            self._keep(self._keys.limit(place.metric, place.limit.label), end, rule.late_seconds)
        for window, each in zip(rule.windows, place.buckets, strict=True):
            if each is None:
                continue
            self._keep(self._keys.window(window, place.metric, each.label), each.end, rule.retention_seconds(window))
            if rule.top:
                self._keep(
                    self._keys.window_top(window, place.metric, each.label), each.end, rule.retention_seconds(window)
                )

    def _keep(self, key: str, end: int | None, kept: int | None) -> None:
        self.expire[key] = _until(end, kept)


_SEEN_LATE: Final = 7 * 86_400
"""Seconds for which ids are kept behind their period where a metric takes events however late."""


def board_length(top: int) -> int:
    """Return how many subjects a leaderboard of `top` keeps: a margin, so that a few that sink do not show."""
    return top and top + max(20, top // 2)


def _added(columns: Iterable[Counter[str]]) -> Counter[str]:
    added: Counter[str] = Counter()
    for column in columns:
        for subject, delta in column.items():
            added[subject] = added.get(subject, 0) + delta
    return added


def _until(end: int | None, kept: int | None) -> int:
    """Return until when a bucket's key is kept: its end and `kept` seconds more; `None` of either is for ever (0)."""
    return 0 if end is None or kept is None else (end + kept) * 1000


def _labels(place: BucketSet) -> dict[str | int, str]:
    """Return the labels by position from 1, and as the text in which a record keeps them."""
    numbered: dict[str | int, str] = dict(enumerate(place.labels, 1))
    return numbered | {"text": place.text}
