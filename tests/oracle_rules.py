"""The definition of correct for the counting rules: what `tally` returns for valid events is what must be counted.

Like `oracle.py` it has no Redis and no order of arrival. A rule takes all events of a metric and subject at once, and
uses only what never changes: their time, amount, actor and id, and their place in the log.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from tallystream.rules.windows import bucket, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

    from tallystream.rules.metrics import Metric


LENGTHS = {"minute": 60, "hour": 3600, "day": 86_400, "month": 31 * 86_400}
"""Seconds between two events with one id up to which they are copies, by the value of `ids`."""


@dataclass(frozen=True)
class Happened:
    """A valid event; `at` is its time and `received` the time of its entry (see `received`), both in milliseconds.

    Its days and months begin in `zone`. `place` is its place in the log: the two numbers of its entry's ID, and its
    place in the entry.
    """

    metric: str
    subject: str
    amount: int
    at: int
    received: int
    actor: str | None = None
    id: str | None = None
    zone: str = "UTC"
    place: tuple[int, ...] = ()

    def bucket(self, window: str) -> str:
        """Return the label of the bucket of a window that contains the event's time."""
        return label_of(window, self.at // 60_000, self.zone)

    def is_in_time(self, window: str, rule: Metric) -> bool:
        """Return whether the server received the event before its bucket of a window closed."""
        kept = rule.retention_seconds(window)
        return kept is None or self.received < (bucket(window, self.at // 60_000, self.zone).end + kept) * 1000


@lru_cache(maxsize=65536)
def label_of(window: str, minute: int, zone: str) -> str:
    """Return the label of the bucket of a window that contains a minute since 1970.

    The day of a minute is the latest date that the clocks of the zone have shown up to then: so a day that has begun
    does not end because clocks go back over midnight.
    """
    if window in ("forever", "total"):
        return window
    utc = dt.datetime.fromtimestamp(minute * 60, dt.UTC)
    if window in ("minute", "hour"):
        return utc.strftime("%Y-%m-%dT%H:%M" if window == "minute" else "%Y-%m-%dT%H")
    if window not in ("day", "month"):
        return f"{window}-{minute * 60 // (int(window[:-1]) * 86_400)}"
    shown = (dt.datetime.fromtimestamp(at * 60, ZoneInfo(zone)).date() for at in range(minute - 240, minute + 1))
    return max(shown).strftime("%Y-%m-%d" if window == "day" else "%Y-%m")


def received(entry_id: str, clock: int | None) -> int:
    """Return the time of an entry, in milliseconds, from which the lateness of its events is measured.

    Args:
        entry_id: The stream ID of the entry. Its time never goes back: it is later than the server's clock if the clock
            was set back before.
        clock: The time by the server's clock when a producer's entry was appended or decided; `None` for a plain entry,
            of which only the ID is known.
    """
    return int(entry_id.partition("-")[0]) if clock is None else clock


@dataclass
class Books:
    """All counters that a set of events must produce.

    Attributes:
        totals: The total of each (metric, subject).
        up: The number of standing votes above 0 of each (metric, subject).
        windows: The amount in each bucket, by (window, metric, label, subject).
        asked: The number of events that a limit decided on, by (metric, label, subject).
        ledger: Events by outcome and by `outcome@metric`; `total@metric` is an amount.
    """

    totals: Counter[tuple[str, str]] = field(default_factory=Counter)
    up: Counter[tuple[str, str]] = field(default_factory=Counter)
    windows: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    asked: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    ledger: Counter[str] = field(default_factory=Counter)

    def move(self, outcome: str, metric: str, events: int) -> None:
        """Add a number of events to the ledger under an outcome, and under the outcome of the metric."""
        self.ledger[outcome] += events
        self.ledger[f"{outcome}@{metric}"] += events

    def add(self, event: Happened, rule: Metric, amount: int) -> None:
        """Add an amount to the total of the event's subject, and to the bucket of its time in each window.

        A bucket that had closed when the server received the event does not get it.
        """
        self.totals[event.metric, event.subject] += amount
        self.ledger[f"total@{event.metric}"] += amount
        for window in rule.windows:
            if event.is_in_time(window, rule):
                self.windows[window, event.metric, event.bucket(window), event.subject] += amount

    def take(self, other: Books) -> None:
        """Take the totals and buckets of other books away."""
        self.totals.subtract(other.totals)
        self.windows.subtract(other.windows)
        for (metric, _), total in other.totals.items():
            self.ledger[f"total@{metric}"] -= total

    def top(self, metric: str, n: int) -> list[tuple[str, int]]:
        """Return the `n` subjects of a metric with the largest totals; equal totals are in descending name order.

        A subject whose total is 0 is not among them, also if it had another total before.
        """
        of_metric = [(subject, total) for (name, subject), total in self.totals.items() if name == metric and total]
        return sorted(of_metric, key=lambda place: (place[1], place[0].encode()), reverse=True)[:n]


def tally(
    events: Iterable[Happened],
    rules: dict[str, Metric],
    books: Books | None = None,
    resets: Mapping[tuple[str, str], tuple[int, ...]] = MappingProxyType({}),
) -> Books:
    """Return all counters that a set of events must produce under the rules of their metrics; add them to `books`.

    `resets` has the place in the log of the last reset of each (metric, subject). A reset takes away the totals and
    buckets that the events before it produce, and gives their votes the amount 0. It changes nothing else: an id stays
    known, and a limit stays used.
    """
    books = Books() if books is None else books
    for (metric, subject), happened in grouped(events, lambda event: (event.metric, event.subject)):
        of_subject = happened
        rule = rules[metric]
        reset = resets.get((metric, subject), ())
        if rule.once is not None:
            of_subject = [replace(event, amount=0) if event.place < reset else event for event in of_subject]
        elif before := [event for event in of_subject if event.place < reset]:
            books.take(tally(before, rules, type(books)()))
        books.ledger["appended"] += len(of_subject)
        late = [event for event in of_subject if is_late(event, rule)]
        aside = [event for event in late if rule.rejects_late or has_kept_id(event, rule)]
        if aside:
            books.move("late", metric, len(aside))
            of_subject = [event for event in of_subject if event not in aside]
        books.ledger[f"late-counted@{metric}"] += len(late) - len(aside)
        if rule.once is not None:
            vote(of_subject, rule, books)
        elif rule.limit is not None:
            grant(unrepeated(of_subject, rule, books), rule, books)
        else:
            for event in (unique := unrepeated(of_subject, rule, books)):
                books.add(event, rule, event.amount)
            books.move("counted", metric, len(unique))
    return books


def has_kept_id(event: Happened, rule: Metric) -> bool:
    """Return whether the event has an id that counts once under the rules of its metric."""
    return event.id is not None and rule.ids is not None and rule.once is None


def is_late(event: Happened, rule: Metric) -> bool:
    """Return whether an event is older than its metric accepts; with an id, the default is 7 days."""
    late = rule.late_seconds
    if has_kept_id(event, rule):
        late = seconds(rule.accept_late or "7d")
    return late is not None and event.received - event.at > late * 1000


def unrepeated(events: list[Happened], rule: Metric, books: Books) -> list[Happened]:
    """Return the events without repeated ids: of copies, the earliest event stays.

    Events with one id are copies if each is at most the length of `ids` after the one before. The others are added to
    the ledger as duplicates.
    """
    standing = [event for event in events if not has_kept_id(event, rule)]
    with_id = [event for event in events if has_kept_id(event, rule)]
    for _, same in grouped(with_id, lambda event: event.id):
        last = None
        for event in sorted(same, key=lambda event: (event.at, event.amount, event.received)):
            if last is None or event.at - last > LENGTHS[rule.ids or ""] * 1000:
                standing.append(event)
            else:
                books.move("duplicate", event.metric, 1)
            last = event.at
    return standing


def vote(events: list[Happened], rule: Metric, books: Books) -> None:
    """Count one vote per actor and period, the latest, and among equal times the one that is later in the log.

    Add the others to the ledger as `rejected:once`.
    """
    for _, votes in grouped(events, lambda event: (event.actor, event.bucket(rule.once or ""))):
        stands = max(votes, key=lambda event: (event.at, event.place))
        books.add(stands, rule, stands.amount)
        books.up[stands.metric, stands.subject] += stands.amount > 0
        books.move("counted", stands.metric, 1)
        books.move("rejected:once", stands.metric, len(votes) - 1)


def grant(events: list[Happened], rule: Metric, books: Books) -> None:
    """Count at most `limit` events in each period; add the others to the ledger as `rejected:limit`."""
    for label, asked in grouped(events, lambda event: event.bucket(rule.per or "")):
        accepted = min(rule.limit or 0, len(asked))
        books.asked[asked[0].metric, str(label), asked[0].subject] += len(asked)
        if accepted == len(asked):
            for event in asked:
                books.add(event, rule, 1)
        else:
            _add_accepted(asked, accepted, rule, books)
        books.move("counted", asked[0].metric, accepted)
        books.move("rejected:limit", asked[0].metric, len(asked) - accepted)


def _add_accepted(asked: list[Happened], accepted: int, rule: Metric, books: Books) -> None:
    """Add the accepted ones of a period's events; every window is at least as long as the period."""
    first = min(asked, key=lambda event: event.received)
    books.add(first, rule, accepted)
    for window in rule.windows:
        in_time = sum(event.is_in_time(window, rule) for event in asked)
        if in_time:  # else the bucket had closed before the first event
            place = (window, first.metric, first.bucket(window), first.subject)
            books.windows[place] += min(rule.limit or 0, in_time) - accepted


def grouped(events: Iterable[Happened], key: Callable[[Happened], Hashable]):
    """Return (key, events) for each key that `key` returns of the events."""
    groups: dict[Hashable, list[Happened]] = defaultdict(list)
    for event in events:
        groups[key(event)].append(event)
    return list(groups.items())
