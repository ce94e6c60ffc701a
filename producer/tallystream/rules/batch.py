"""Adds events up to a batch, in the form that `plan.lua` reads. Pure: no Redis, no clock.

In this module a *place* is a `BucketSet`: a metric and the buckets that an event is counted in. Events of one place are
summed. Rules with state (votes, ids) need each event separately.
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
"""The number of rows of a Count-Min Sketch, the same as in `sketches.lua`."""

SKETCH_WIDTH: Final = 32_768
"""The number of cells in each row of a Count-Min Sketch, the same as in `sketches.lua`."""


class BucketSet:
    """A metric and the buckets of one minute: the bucket of its limit (if any), and one bucket of each window.

    Attributes:
        metric: The name of the metric.
        rule: The rules of the metric.
        limit: The bucket of the limit; `None` if the metric has no limit.
        buckets: One bucket for each window of the metric; `None` for a window that is left out.
        labels: The label of the limit's bucket, then of each window's; `""` for no bucket.
        text: The labels in one text, with `-` for no bucket; `""` if the metric has neither a limit nor windows.
    """

    __slots__ = ("buckets", "labels", "limit", "metric", "rule", "text")

    def __init__(self, metric: str, rule: Metric, limit: Bucket | None, buckets: tuple[Bucket | None, ...]) -> None:
        self.metric = metric
        self.rule = rule
        self.limit = limit
        self.buckets = buckets
        self.labels = tuple(each.label if each else "" for each in (limit, *buckets))
        self.text = "" if self.labels == ("",) else " ".join(label or "-" for label in self.labels)


class BucketResolver:
    """Returns the place of a metric and a minute: the same object for the same buckets, so it can be a dictionary key.

    Attributes:
        rules: The declared metrics.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._by_minute: dict[tuple[str, int], BucketSet] = {}
        self._by_labels: dict[tuple[str, tuple[str, ...]], BucketSet] = {}

    def __call__(self, metric: str, minute: int) -> BucketSet:
        """Return the place of a declared metric at a minute (whole minutes since 1970)."""
        place = self._by_minute.get((metric, minute))
        if place is None:
            if len(self._by_minute) >= 100_000:  # noqa: PLR2004  # 70 days of minutes of one metric; then start empty
                self._by_minute.clear()
                self._by_labels.clear()
            rule, zone = self.rules.metric[metric], self.rules.zone
            limit = bucket(rule.per, minute, zone) if rule.per is not None else None
            place = BucketSet(metric, rule, limit, tuple(bucket(window, minute, zone) for window in rule.windows))
            place = self._by_labels.setdefault((metric, place.labels), place)
            self._by_minute[metric, minute] = place
        return place

    def without_finer(self, place: BucketSet, finest: str) -> BucketSet:
        """Return a place without the buckets of windows finer than `finest`; `total` leaves out every bucket."""
        first = WINDOWS.index(finest) if finest in WINDOWS else len(WINDOWS)
        windows = zip(place.rule.windows, place.buckets, strict=True)
        buckets = tuple(each if WINDOWS.index(window) >= first else None for window, each in windows)
        coarser = BucketSet(place.metric, place.rule, place.limit, buckets)
        return self._by_labels.setdefault((place.metric, coarser.labels), coarser)


class Batch:
    """The deltas of several events in one partition.

    Args:
        keys: The keys of the partition.
        zone: The time zone in which days and months begin.
        alerts: By metric, the alerts that may fire; `None` for none.

    Attributes:
        sums: By place and subject, the sum of the amounts, for events that no rule with state needs separately.
        limited: The same for metrics with a limit; each event has the amount 1.
        received: Millisecond at which the server received the first of the events; used only if there are alerts.
        expire: By key of a bucket, the millisecond until which it is kept; 0 means forever.
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
        """Add one event, which `Rules.refuse` must have accepted.

        Args:
            place: The place of its metric and minute.
            subject: Its subject.
            amount: Its amount.
            at: Its time, in milliseconds since 1970.
            actor: Its actor, if it has one.
            id_: Its id, if it has one.
        """
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
        """Add events of amount 1 of one place, each with an actor and without an id; the metric must not have `once`.

        Args:
            place: The place of the events.
            minute: Their time, in whole minutes since 1970.
            subjects: The subject of each event.
            actors: The actor of each event.
        """
        sums = self.sums if place.rule.limit is None else self.limited
        sums[place].update(subjects)
        if (unique := place.rule.unique) is not None:
            found = self._actors(place, unique, minute)
            for subject, actor in zip(subjects, actors, strict=True):
                found[subject].add(actor)

    def _actors(self, place: BucketSet, unique: str, minute: int) -> dict[str, set[str]]:
        """Return the actors in the `unique` bucket of a minute, by subject; the caller adds to them."""
        period = bucket(unique, minute, self._zone)
        prefix = self._keys.unique(place.metric, period.label, "")
        key = (place.metric, prefix, _until(period.end, place.rule.retention_seconds(unique)))
        return self._uniques.setdefault(key, defaultdict(set))

    @property
    def ends(self) -> dict[str, int]:
        """By key of a bucket, the millisecond until which it is kept; 0 means forever. It is complete after `encode`.

        A bucket of unique actors has the prefix of its keys.
        """
        return self.expire | {prefix: until for _, prefix, until in self._uniques}

    @property
    def counters(self) -> int:
        """An estimate of the time of the batch's script call, in units of the time for one total.

        The field of a bucket costs a quarter of a total. A subject with a limit costs three. An event that a rule needs
        separately costs four, and so does a subject with uniques.
        """
        plain = sum(len(sums) * (4 + len(place.buckets)) for place, sums in self.sums.items())
        limited = sum(len(sums) * (12 + len(place.buckets)) for place, sums in self.limited.items())
        rest = sum(map(len, self._seen.values())) + sum(map(len, self._votes.values()))
        rest += sum(map(len, self._uniques.values()))
        return plain // 4 + limited // 4 + 4 * rest

    def encode(self, ids: list[str], ledger: dict[str, int]) -> bytes:
        """Return the batch as msgpack, in the form that `plan.lua` reads.

        Args:
            ids: The stream IDs of the entries that are acknowledged in the same call.
            ledger: Events to add to the ledger, by field, in addition to those that the script finds.
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
        """Add to `batch` the alerts on its metrics, with the subjects and buckets for which the script checks them."""
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
        """Return the plain sums as three lists of columns: totals, windows, and sketches (of metrics not exact)."""
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
                    # In the common case, events of one hour, the bucket has the same column as the total: send it once.
                    if label := places[0].labels[nth]:
                        windows.append((number, nth, label, len(sums)))
                    continue
                by_label: dict[str, list[BucketSet]] = defaultdict(list)
                for place in places:
                    by_label[place.labels[nth]].append(place)
                by_label.pop("", None)  # corrections that no bucket of this window gets
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
"""Seconds after the end of their period for which ids are kept, if the metric accepts events however late they are."""


def board_length(top: int) -> int:
    """Return how many subjects a leaderboard keeps to show `top`: more, in case some of them sink; 0 if `top` is 0."""
    return top and top + max(20, top // 2)


def _added(columns: Iterable[Counter[str]]) -> Counter[str]:
    added: Counter[str] = Counter()
    for column in columns:
        for subject, delta in column.items():
            added[subject] = added.get(subject, 0) + delta
    return added


def _until(end: int | None, kept: int | None) -> int:
    """Return the millisecond until which a key is kept: `kept` seconds after `end`; 0 (forever) if either is `None`."""
    return 0 if end is None or kept is None else (end + kept) * 1000


def _labels(place: BucketSet) -> dict[str | int, str]:
    """Return the labels of a place by position from 1, and under `text` as the text that a record has."""
    numbered: dict[str | int, str] = dict(enumerate(place.labels, 1))
    return numbered | {"text": place.text}
