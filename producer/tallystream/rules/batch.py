"""Adds events up to a batch, in the form that `plan.lua` reads. Pure: no Redis, no clock.

A `BucketSet` is a metric and the buckets that an event is counted in; variables for it are named `place`. Events with
the same bucket set and subject are summed. Rules with state (votes, ids) need each event separately.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from tallystream.rules.alert_watch import looks, touches
from tallystream.rules.parts import board_length, id_label, parts
from tallystream.rules.windows import LABEL_LENGTHS, Bucket, bucket, id_length, id_period

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tallystream.rules.alerts import Alert
    from tallystream.rules.metrics import Metric, Rules
    from tallystream.storage.keys import PartitionKeys

_encode: Final = msgspec.msgpack.Encoder().encode

SKETCH_ROWS: Final = 4
"""The number of rows of a Count-Min Sketch, the same as in `sketches.lua`."""

SKETCH_WIDTH: Final = 32_768
"""The number of cells in each row of a Count-Min Sketch, the same as in `sketches.lua`."""


LogPlace: TypeAlias = tuple[int, int, int]
"""The place of an event in the log: the two numbers of its entry's stream ID, and how many events of the same metric,
subject, actor and time are before it in the entry."""


class BucketSet:
    """A metric and the buckets of one minute: the bucket of its limit (if any), and one bucket of each window.

    Attributes:
        metric: The name of the metric.
        rule: The rules of the metric.
        limit: The bucket of the limit; `None` if the metric has no limit.
        buckets: One bucket for each window of the metric; `None` for a window that is left out.
        labels: The label of the limit's bucket, then of each window's; `""` for no bucket.
        text: The labels in one text, separated by spaces, with `-` for no bucket; `""` if the metric has neither a
            limit nor windows.
        closes: For each window of the metric, the second at which its bucket closes; `None` means never, or no bucket.
        closes_first: The earliest of `closes`, in milliseconds since 1970; 2^53 if no bucket closes.
    """

    __slots__ = ("buckets", "closes", "closes_first", "labels", "limit", "metric", "rule", "text")

    def __init__(self, metric: str, rule: Metric, limit: Bucket | None, buckets: tuple[Bucket | None, ...]) -> None:
        self.metric = metric
        self.rule = rule
        self.limit = limit
        self.buckets = buckets
        self.labels = tuple(each.label if each else "" for each in (limit, *buckets))
        self.text = "" if self.labels == ("",) else " ".join(label or "-" for label in self.labels)
        self.closes = tuple(
            None if each is None else rule.closes(window, each.end)
            for window, each in zip(rule.windows, buckets, strict=True)
        )
        self.closes_first = min((end * 1000 for end in self.closes if end is not None), default=_NEVER)

    def closed(self, received: int) -> Iterator[tuple[str, Bucket]]:
        """Yield (window, bucket) for each window bucket, not the limit's, that had closed at millisecond `received`."""
        for window, each, closes in zip(self.rule.windows, self.buckets, self.closes, strict=True):
            if each is not None and closes is not None and closes * 1000 <= received:
                yield window, each


class BucketResolver:
    """A callable object that returns the `BucketSet` of a metric and a minute; `open` leaves closed buckets out of one.

    It returns the same object for the same metric and buckets, so that the object can be a dictionary key. When 100,000
    pairs of metric and minute are stored, all are forgotten: later calls return new objects.

    Attributes:
        rules: The rules of the generation; their time zone is used, too.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._by_minute: dict[tuple[str, int], BucketSet] = {}
        self._by_labels: dict[tuple[str, tuple[str, ...]], BucketSet] = {}

    def __call__(self, metric: str, minute: int) -> BucketSet:
        """Return the bucket set of a metric, which must be declared, and a minute (whole minutes since 1970)."""
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

    def open(self, place: BucketSet, received: int) -> BucketSet:
        """Return a bucket set without the window buckets that had closed at `received`; `place` itself if none had.

        `received` is the millisecond at which the server received the event. The bucket of the limit stays.
        """
        if received < place.closes_first:
            return place
        closed = [each for _, each in place.closed(received)]
        buckets = tuple(None if each in closed else each for each in place.buckets)
        left = BucketSet(place.metric, place.rule, place.limit, buckets)
        return self._by_labels.setdefault((place.metric, left.labels), left)


States = tuple[tuple[str, int], ...]
"""The stored periods that an event needs: of each, `<kind>:<metric>` and the millisecond at which it ends. If this
period or a later one of the same kind and metric was removed, the event is late."""


class Batch:
    """The deltas of several events in one partition: add the events, then call `encode` once.

    `add`, `add_visits` and `add_reset` add them; `leave_out` records buckets that do not get them. A caller may
    also add to `sums` and `limited` itself.

    Args:
        keys: The keys of the partition.
        zone: The time zone in which days and months begin.
        alerts: By metric, the alerts that may fire; `None` means that there are no alerts.

    Attributes:
        sums: By bucket set and subject, the sum of the amounts of the events that need no state: those without a limit,
            a vote, or an id that counts once.
        limited: By bucket set and subject, the number of events of metrics with a limit, without those that have an id
            that counts once.
        received: A millisecond before which the server received none of the events; used only if there are alerts: a
            bucket that had ended at that time is not checked. The caller sets it (`add` does not); 0 before, and for
            a decision.
        closes: By key of a window bucket and of its leaderboard, the millisecond at which it closes; 0 means never.
            Filled by `encode`.
    """

    def __init__(self, keys: PartitionKeys, zone: str, alerts: Mapping[str, Sequence[Alert]] | None = None) -> None:
        self._keys = keys
        self._zone = zone
        self._alerts = alerts or {}
        self.received = 0
        self.sums: dict[BucketSet, Counter[str]] = defaultdict(Counter)
        self.limited: dict[BucketSet, Counter[str]] = defaultdict(Counter)
        self._seen: dict[tuple[str, Bucket], list[tuple[Any, ...]]] = defaultdict(list)
        self._votes: dict[tuple[str, str, str], list[tuple[Any, ...]]] = defaultdict(list)
        self._uniques: dict[tuple[str, str, int, int, States], dict[str, set[str]]] = {}
        self._rules: dict[str, Metric] = {}
        self.closes: dict[str, int] = {}
        self._left_out: dict[str, int] = {}
        self._periods: dict[tuple[str, int, int], dict[str, None]] = defaultdict(dict)
        self._places: dict[BucketSet, int] = {}
        self._resets: list[tuple[BucketSet, str, str]] = []

    def add(
        self,
        place: BucketSet,
        subject: str,
        amount: int,
        at: int,
        actor: str | None,
        id_: str | None,
        logged: LogPlace | None = None,
        *,
        received: int = 0,
    ) -> None:
        """Add one event, which `Rules.refuse` must have accepted; whether it is too late is not checked here.

        Args:
            place: The bucket set of its metric and minute, without buckets that had closed at `received`: `open` of a
                resolver leaves them out. The caller records them by `leave_out`. For a decision, the whole set.
            subject: Its subject.
            amount: Its amount.
            at: Its time, in milliseconds since 1970.
            actor: Its actor, if it has one.
            id_: Its id, if it has one.
            logged: Its place in the log, if its metric has `once`; `None` if the script appends its entry.
            received: When the server received it, in milliseconds since 1970; 0 if the script finds out.
        """
        rule = place.rule
        if rule.once is not None and actor is not None:
            period = bucket(rule.once, at // 60_000, self._zone)
            key = self._keys.once(place.metric, period.label, subject)
            record: tuple[Any, ...]
            if logged is None:
                record = (f"{at}@", f" {amount} {place.text}")  # the script writes the place between
            else:
                after, number, earlier = logged[0] - at, logged[1], logged[2]
                in_entry = f".{earlier}" if earlier else ""
                record = (f"{at}@{after}.{number}{in_entry} {amount} {place.text}", after, number, earlier)
            self._votes[place.metric, key, subject].append((actor, amount, at, self._number(place), *record))
            if rule.once != "forever":
                self._keep("once", place.metric, period, period_kept(rule, period), key)
        elif id_ is not None and rule.ids is not None:
            period = id_period(rule.ids, at // 60_000)
            self._seen[place.metric, period].append((f"{subject}\n{id_}", subject, amount, at, self._number(place)))
        elif rule.limit is not None:
            self.limited[place][subject] += amount
        else:
            self.sums[place][subject] += amount
        if rule.unique is not None and actor is not None:
            found = self._actors(place, rule.unique, at // 60_000, received, self._states(place, at // 60_000, id_))
            if found is not None:
                found[subject].add(actor)

    def add_visits(
        self, place: BucketSet, minute: int, subjects: list[str], actors: list[str], received: int = 0
    ) -> None:
        """Add events of amount 1 that have an actor and no id, all in one bucket set; the metric must not have `once`.

        `Rules.refuse` must have accepted the events, and none may be too late for the rule.

        Args:
            place: The bucket set of the events, without buckets that had closed at `received`: see `add`.
            minute: Their time, in whole minutes since 1970.
            subjects: The subject of each event.
            actors: The actor of each event.
            received: When the server received them, in milliseconds since 1970; 0 takes their buckets for open.
        """
        sums = self.sums if place.rule.limit is None else self.limited
        sums[place].update(subjects)
        if (unique := place.rule.unique) is not None:
            found = self._actors(place, unique, minute, received, self._states(place, minute, None))
            if found is not None:
                for subject, actor in zip(subjects, actors, strict=True):
                    found[subject].add(actor)

    def add_reset(self, place: BucketSet, subject: str, logged: str) -> None:
        """Add a reset of a subject. The batch must have no events; this is not checked.

        Args:
            place: The bucket set of its metric and the time of the reset: alerts on these buckets are checked.
            subject: The subject.
            logged: The stream ID of its entry; empty if the script appends the entry.
        """
        self._resets.append((place, subject, logged))

    def leave_out(self, place: BucketSet, received: int) -> None:
        """Record that an event of a bucket set is not added to its buckets that had closed at millisecond `received`.

        The script stores the end of the latest such bucket of each window: reads state buckets up to it as missing.
        """
        for window, each in place.closed(received):
            self._leave_out(window, place.metric, each)

    def _leave_out(self, kind: str, metric: str, period: Bucket) -> None:
        name, end = f"{kind}:{metric}", period.end * 1000
        self._left_out[name] = max(end, self._left_out.get(name, end))

    def _states(self, place: BucketSet, minute: int, id_: str | None) -> States:
        """Return which stored periods decide an event of a minute, as `States`; if one was removed, the event is late.

        A vote needs its period of votes. Any other event needs the period of its limit and, if its id counts once, the
        period of ids before its own, which may have a copy. Votes with `once = "forever"` and limits with
        `per = "total"` have no periods. The result is empty if the event needs none.
        """
        rule, metric = place.rule, place.metric
        if rule.once is not None:
            end = None if rule.once == "forever" else bucket(rule.once, minute, self._zone).end
            return () if end is None else ((f"once:{metric}", end * 1000),)
        limit = None if rule.per == "total" else place.limit
        of_limit = () if limit is None else ((f"limit:{metric}", limit.end * 1000),)
        if id_ is None or rule.ids is None:
            return of_limit
        return (*of_limit, (f"seen:{metric}", id_period(rule.ids, minute).start * 1000))

    def _actors(
        self, place: BucketSet, unique: str, minute: int, received: int, states: States
    ) -> dict[str, set[str]] | None:
        """Return this batch's sets of actors by subject, for one bucket of unique actors; the caller adds to them.

        Looking up a missing subject adds an empty set. Return `None`, and record the bucket as left out, if it had
        closed at millisecond `received`.

        Args:
            place: The bucket set of the events, which has their metric and its rule.
            unique: The window of the bucket: that of the rule's `unique`.
            minute: The time of the events, in whole minutes since 1970.
            received: When the server received them, in milliseconds since 1970; 0 takes the bucket for open.
            states: The state that the events need, see `_states`. The script leaves the actors out if one of these was
                removed, because the events are then late.
        """
        period = bucket(unique, minute, self._zone)
        closes = _until(period.end, place.rule.retention_seconds(unique))
        if 0 < closes <= received:
            self._leave_out("unique", place.metric, period)
            return None
        prefix = self._keys.unique(place.metric, period.label, "")
        key = (place.metric, prefix, closes, period.end * 1000, states)
        return self._uniques.setdefault(key, defaultdict(set))

    @property
    def ends(self) -> dict[str, int]:
        """By key of a bucket or of the state of a rule, the millisecond until which an audit can compare it.

        0 means forever. For a bucket, this is when it closes; for the state of a rule, a time until which it is surely
        kept. A bucket of unique actors is here by the prefix of its keys. Other keys, such as totals, are missing. The
        result is complete after `encode`.
        """
        kept = {key: until for (_, _, until), keys in self._periods.items() for key in keys}
        return kept | self.closes | {prefix: until for _, prefix, until, *_ in self._uniques}

    @property
    def counters(self) -> int:
        """An estimate of the time of the batch's script call, as the number of totals that would take as long.

        The field of a bucket costs a quarter of a total. A subject with a limit costs three totals. An event that a
        rule needs separately (a vote, an event with an id) costs four, and so does a subject with unique counts. A
        reset costs a hundred.
        """
        resets = 100 * len(self._resets)
        plain = sum(len(sums) * (4 + len(place.buckets)) for place, sums in self.sums.items())
        limited = sum(len(sums) * (12 + len(place.buckets)) for place, sums in self.limited.items())
        rest = sum(map(len, self._seen.values())) + sum(map(len, self._votes.values()))
        rest += sum(map(len, self._uniques.values()))
        return resets + plain // 4 + limited // 4 + 4 * rest

    def encode(self, ids: list[str], ledger: dict[str, int]) -> bytes:
        """Return the batch as msgpack, in the form that `plan.lua` reads; fill `closes`.

        Args:
            ids: The stream IDs of the entries that are acknowledged in the same call.
            ledger: By ledger field, the number to add, in addition to the outcomes that the script decides.
        """
        places = (*self.sums, *self.limited, *self._places, *(place for place, _, _ in self._resets))
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
            "rules": [dict(_known_table(self._keys, metric, rule, self._zone)) for metric, rule in rules.items()],
            "labels": [_labels(place) for place in self._places],
            "sums": sums,
            "windows": windows,
            "sketches": sketches,
            "limited": limited,
            "seen": [
                (numbers[metric], *self._ids(metric, rules[metric], period), *events)
                for (metric, period), events in self._seen.items()
            ],
            "votes": [
                (numbers[metric], key, subject, *events) for (metric, key, subject), events in self._votes.items()
            ],
            "uniques": [
                (numbers[metric], *about, [(subject, *actors) for subject, actors in by_subject.items()])
                for (metric, *about), by_subject in self._uniques.items()
            ],
            "periods": [(*period, *keys) for period, keys in self._periods.items()],
            "closes": self.closes,
            "left_out": self._left_out,
            "ledger": [part for move in ledger.items() for part in move],
        }
        if self._resets:
            batch["resets"] = [(numbers[place.metric], subject, logged) for place, subject, logged in self._resets]
        if not self._alerts.keys().isdisjoint(rules):
            self._watch(batch, rules)
        return _encode(batch)

    def _ids(self, metric: str, rule: Metric, period: Bucket) -> tuple[Any, ...]:
        """Return the keys of a period of ids, of the one before it and of the one after it, then its first millisecond.

        For the first period, the key before it has an empty label. Also record until when the period's key is kept.
        """
        assert rule.ids is not None  # noqa: S101  # else no event with an id was added
        minute, length = period.start // 60, id_length(rule.ids)
        before = id_period(rule.ids, minute - length // 60).label if period.start else ""  # "": there is none
        labels = (period.label, before, id_period(rule.ids, minute + length // 60).label)
        keys = [self._keys.seen(metric, id_label(rule, label)) for label in labels]
        self._keep("seen", metric, period, id_period_kept(rule, period), keys[0])
        return *keys, period.start * 1000

    def _watch(self, batch: dict[str, Any], rules: Mapping[str, Metric]) -> None:
        """Add the alerts on the metrics of `batch` to it, with the subjects and buckets for which they are checked.

        An alert on a range is not checked by the script: of it, add the subjects that the script stores as watched.
        Also add the key of the outbox.
        """
        batch["outbox"], batch["touched"] = self._keys.outbox, []
        for number, (metric, rule) in enumerate(rules.items(), 1):
            alerts = self._alerts.get(metric, ())
            subjects = self._subjects(metric) if alerts else set()
            buckets: dict[int, set[Bucket]] = defaultdict(set)
            for place in (*self.sums, *self.limited, *self._places, *(place for place, _, _ in self._resets)):
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
                batch["rules"][number - 1]["watch"] = found
            ranges = touches(self._keys, [alert for alert in alerts if alert.span], subjects)
            batch["touched"] += [[number, *each] for each in ranges]

    def _subjects(self, metric: str) -> set[str]:
        found: set[str] = set()
        for columns in (self.sums, self.limited):
            for place, amounts in columns.items():
                if place.metric == metric:
                    found.update(amounts)
        found.update(event[1] for (of, _), events in self._seen.items() if of == metric for event in events)
        found.update(subject for of, _, subject in self._votes if of == metric)
        found.update(subject for place, subject, _ in self._resets if place.metric == metric)
        return found

    def _columns(self, numbers: dict[str, int]) -> tuple[list[Any], list[Any], list[Any]]:
        """Return `sums` as three lists of columns: totals, window buckets, and sketches (metrics with `exact = false`).

        If all sums of a metric are in one bucket set, its window buckets have the number of the column of totals
        instead of subjects and amounts. Add the keys of the buckets to `closes` and to the periods.

        Args:
            numbers: By metric, its number in the batch.
        """
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
                by_label.pop("", None)  # events that no bucket of this window gets
                for label, shared in by_label.items():
                    added = _added(self.sums[place] for place in shared)
                    windows.append((number, nth, label, list(added), list(added.values())))
            for place in places:
                self._keep_buckets(place)
        return sums, windows, sketches

    def _number(self, place: BucketSet) -> int:
        return self._places.setdefault(place, len(self._places) + 1)

    def _keep_buckets(self, place: BucketSet) -> None:
        rule = place.rule
        if place.limit is not None and rule.per != "total":
            key = self._keys.limit(place.metric, place.limit.label)
            self._keep("limit", place.metric, place.limit, period_kept(rule, place.limit), key)
        for window, each, closes in zip(rule.windows, place.buckets, place.closes, strict=True):
            if each is None:
                continue
            key = self._keys.window(window, place.metric, each.label)
            self.closes[key] = (closes or 0) * 1000
            self._keep(window, place.metric, each, self.closes[key], key)
            if rule.top:
                self.closes[self._keys.window_top(window, place.metric, each.label)] = self.closes[key]

    def _keep(self, kind: str, metric: str, period: Bucket, until: int, key: str) -> None:
        self._periods[f"{kind}:{metric}", period.end * 1000, until][key] = None


def rule_table(keys: PartitionKeys, metric: str, rule: Metric, zone: str) -> dict[str, Any]:
    """Return the rule of a metric in the form in which the scripts read it: see `rules` in `plan.lua`."""
    return {
        "metric": metric,
        "parts": parts(rule, zone),
        "total": keys.total(metric, ""),
        "up": keys.up(metric, ""),
        "windows": [keys.window(window, metric, "") for window in rule.windows],
        "lengths": [LABEL_LENGTHS[window] for window in rule.windows],
        "limit": rule.limit or 0,
        "limits": keys.limit(metric, ""),
        "top": board_length(rule.top),
        "tops": [keys.top(metric), *(keys.window_top(window, metric, "") for window in rule.windows)],
        "quota": rule.max_subjects or 0,
        "sketch": keys.sketch(metric),
        "bloom": int(rule.seen == "bloom"),
        "apart": 0 if rule.ids is None else id_length(rule.ids) * 1000,
        "sketched": int(not rule.exact),
    }


_tables: Final[dict[tuple[PartitionKeys, str], tuple[Metric, str, dict[str, Any]]]] = {}
_MOST_TABLES: Final = 10_000


def _known_table(keys: PartitionKeys, metric: str, rule: Metric, zone: str) -> dict[str, Any]:
    """Return what `rule_table` returns; do not change it, because later calls may return the same object."""
    known = _tables.get((keys, metric))
    if known is None or known[0] is not rule or known[1] != zone:
        if len(_tables) >= _MOST_TABLES:
            _tables.clear()
        known = _tables[keys, metric] = rule, zone, rule_table(keys, metric, rule, zone)
    return known[2]


_NEVER: Final = 2**53

_SLACK: Final = 3600
"""Seconds for which state is kept longer than needed: the entries of a log may not be quite in the order of time."""


def id_period_kept(rule: Metric, period: Bucket) -> int:
    """Return the millisecond until which the ids of a period are kept; 0 means forever.

    An event that is received later, and may be a copy of one in the period, is late.
    """
    late = rule.id_late_seconds
    return _until(period.end, None if late is None else id_length(rule.ids or "day") + late + _SLACK)


def period_kept(rule: Metric, period: Bucket) -> int:
    """Return the millisecond until which the state of a limit or of votes in a period is kept; 0 means forever.

    An event of the period that is received later is late.
    """
    late = rule.late_seconds
    return _until(period.end, None if late is None else late + _SLACK)


def _added(columns: Iterable[Counter[str]]) -> Counter[str]:
    added: Counter[str] = Counter()
    for column in columns:
        for subject, delta in column.items():
            added[subject] = added.get(subject, 0) + delta
    return added


def _until(end: int | None, kept: int | None) -> int:
    """Return the millisecond since 1970 until which a key is kept; 0 (forever) if an argument is `None`.

    The key is kept for `kept` seconds after `end`, a time in seconds since 1970.
    """
    return 0 if end is None or kept is None else (end + kept) * 1000


def _labels(place: BucketSet) -> dict[str | int, str]:
    """Return the labels of a bucket set in the form in which the Lua script of a batch gets them.

    The keys 1, 2, ... have the label of the limit's bucket, then that of each window's bucket (`""` for no bucket); the
    key `text` has all labels in one text.
    """
    numbered: dict[str | int, str] = dict(enumerate(place.labels, 1))
    return numbered | {"text": place.text}
