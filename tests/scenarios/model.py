"""The model: the answers that a deployment must give, from the appended events and the clocks, in plain Python.

It records every event with its place in the log and the server's time, and hands them to the oracle
(`tests/oracle_rules.py`), which defines the result of counting. The model adds zones, the parts of a total that lie in
a range of time, dead letters, resets, and events that were taken back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

from tallystream.rules.windows import bucket
from tests.oracle import AHEAD
from tests.oracle_rules import Books, Happened, is_late, tally

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tallystream.rules.metrics import Metric, Rules
    from tests.scenarios.script import Occurrence

MINUTE: Final = 60
GROUPED: Final = 2**40
"""Amounts below this are packed in groups, if the event has neither an actor nor an id."""


@dataclass(frozen=True)
class Zoned(Happened):
    """An event whose days and months begin at midnight in a time zone."""

    zone: str = "UTC"

    def bucket(self, window: str) -> str:
        """Return the label of the bucket of a window that contains the event's time."""
        return bucket(window, int(self.at) // 60_000, self.zone).label


@dataclass
class Located(Books):
    """Books that also have the amount of each counted event.

    Attributes:
        parts: Each event that adds an amount, and the amount.
    """

    parts: list[tuple[Happened, int]] = field(default_factory=list)

    def add(self, event: Happened, rule: Metric, amount: int) -> None:
        """Add an amount as `Books` does, and remember its event."""
        super().add(event, rule, amount)
        self.parts.append((event, amount))

    def take(self, other: Books) -> None:
        """Take other books away as `Books` does, and the amounts of their events."""
        assert isinstance(other, Located)
        super().take(other)
        self.parts += [(event, -amount) for event, amount in other.parts]

    def within(self, metric: str, subject: str, start: float, end: float) -> int:
        """Return the sum of the amounts of a subject's events from second `start` to before second `end`."""
        return sum(
            amount
            for event, amount in self.parts
            if (event.metric, event.subject) == (metric, subject) and start * 1000 <= event.at < end * 1000
        )


@dataclass(frozen=True)
class Logged:
    """An event in the log.

    Attributes:
        event: The event as it was emitted.
        at: Its time, in milliseconds since 1970.
        received: The server's time at the append, in milliseconds since 1970; of a plain entry, that of its ID.
        id_time: The time of the entry's ID, in milliseconds: later than `received` if the server's clock was set back.
        place: Its place among all events of the log.
        single: Whether its exact time is known to the worker: it is not packed with others of the same minute.
    """

    event: Occurrence
    at: int
    received: int
    id_time: int
    place: int
    single: bool

    @property
    def dead(self) -> bool:
        """Whether the worker refuses the event, because it lies too far in the future."""
        return self.at > self.id_time + AHEAD * 1000

    def happened(self, zone: str) -> Zoned:
        """Return the event as the oracle takes it."""
        event = self.event
        at = self.at if self.single else self.at // 60_000 * 60_000 + 59_999
        known = (event.metric, event.subject, event.amount, at, self.received, event.actor, event.id)
        return Zoned(*known, zone=zone, place=(self.place,))


@dataclass(frozen=True)
class Kept:
    """The state of the model at the moment of the last snapshot.

    Attributes:
        rules: The rules.
        undeclared: See `Model`.
        dropped: See `Model`.
        since: See `Model`.
        changed: See `Model`.
    """

    rules: Rules
    undeclared: set[int]
    dropped: set[int]
    since: dict[tuple[str, str], float]
    changed: set[str]


@dataclass(frozen=True)
class Moment:
    """The part of the log that the server had at a moment to which it may go back.

    Attributes:
        events: The number of events.
        settled: The number of these that were counted.
        undeclared: See `Model`.
    """

    events: int
    settled: int
    undeclared: set[int]


class Model:
    """The events of one deployment and the answers that follow from them.

    Args:
        rules: The rules that the deployment counts by.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.log: list[Logged] = []
        self.retracted: set[int] = set()
        """Places of the events that were taken back."""
        self.undeclared: set[int] = set()
        """Places of the dead letters of metrics that were not declared."""
        self.dropped: set[int] = set()
        """Places of the dead letters that an operator gave up."""
        self.resets: dict[tuple[str, str], tuple[int, ...]] = {}
        """By metric and subject, the place in the log of its last reset."""
        self.since: dict[tuple[str, str], float] = {}
        """By metric and part of its rule (a window, `unique`, `top`, `limit`) that was added or changed since the last
        recount: the second up to which buckets may be missing, because they may lack events from before the change."""
        self.changed: set[str] = set()
        """Metrics with events that began to count one vote for each actor: their totals have the older events."""
        self._refused: set[int] = set()
        """Places of the events since the last snapshot that were dead letters when they were counted, or are so since
        the last recount."""
        self._settled = 0
        self._snapshot: Kept | None = None
        self.waiting = False
        """Whether an entry may not be counted yet."""
        self.latest = 0.0
        """The latest second that the server's clock has ever shown."""

    def append(
        self, event: Occurrence, at: float, received: float, *, packed: bool, id_time: float | None = None
    ) -> None:
        """Record an event that was appended.

        Args:
            event: The event.
            at: Its time in seconds since 1970.
            received: The second at which the server appended it, by the server's clock.
            packed: Whether a producer packed it with other events.
            id_time: The time of the entry's ID, if the clock was set back; `None` if it is `received`.
        """
        single = not packed or event.actor is not None or event.id is not None or abs(event.amount) >= GROUPED
        of_id = received if id_time is None else id_time
        times = (int(at * 1000), int(received * 1000), int(of_id * 1000))
        self.log.append(Logged(event, *times, len(self.log), single))
        self.waiting = True
        self._changed()

    @cached_property
    def books(self) -> Located:
        """Every counter that the events must produce."""
        alive = [logged.happened(self.rules.zone) for logged in self.alive]
        return located(alive, self.rules.metric, self.resets)

    @property
    def alive(self) -> list[Logged]:
        """The events that are neither dead letters nor taken back."""
        out = self.retracted | self.undeclared
        return [logged for logged in self.log if not logged.dead and logged.place not in out]

    def settle(self) -> None:
        """Record that everything was counted: events of metrics that are not declared are dead letters now."""
        fresh = self.log[self._settled :]
        refused = {logged.place for logged in fresh if logged.event.metric not in self.rules.metric}
        self.undeclared |= refused
        self._refused |= refused
        self._settled = len(self.log)
        self.waiting = False
        self._changed()

    def declare(self, rules: Rules) -> None:
        """Record that these rules are published now."""
        for name, metric in rules.metric.items():
            before = self.rules.metric.get(name)
            if before is not None:
                self._mark(name, before, metric)
        self.rules = rules
        self._changed()

    def _mark(self, name: str, before: Metric, now: Metric) -> None:
        """Record the parts of a rule that count from now on."""
        added: set[str] = {window for window in now.windows if window not in before.windows}
        added |= {"unique"} if now.unique not in (None, before.unique) else set()
        added |= {"top"} if now.top > before.top else set()
        added |= {"all"} if now.top and not before.top else set()
        added |= {"limit"} if now.per not in (None, before.per) else set()
        self.since |= {(name, part): self.latest + AHEAD + 2 for part in added}
        if before.once != now.once:
            self.changed.add(name)

    def may_lack(self, metric: str, parts: Iterable[str], start: float | None) -> bool:
        """Return whether a bucket that begins at a second may lack events, because a part of the rule was added.

        Args:
            metric: The metric.
            parts: The parts of its rule that the bucket needs.
            start: When the bucket begins; `None` for all time.
        """
        marks = [self.since[metric, part] for part in parts if (metric, part) in self.since]
        return any(start is None or start < mark for mark in marks)

    def recount(self) -> None:
        """Record that the history was counted again by the present rules; what was given up stays so."""
        declared = {place for place in self.undeclared if self.log[place].event.metric in self.rules.metric}
        self.undeclared -= declared - self.dropped
        self._refused &= self.undeclared
        self.since.clear()
        self.changed.clear()
        self._changed()

    def retry(self) -> None:
        """Record that all dead letters were retried."""
        declared = {place for place in self.undeclared if self.log[place].event.metric in self.rules.metric}
        self.undeclared -= declared - self.dropped
        self._changed()

    def snapshot(self) -> None:
        """Record that a snapshot was taken."""
        copies = set(self.undeclared), set(self.dropped), dict(self.since), set(self.changed)
        self._snapshot = Kept(self.rules, *copies)
        self._refused.clear()

    def repartition(self) -> None:
        """Record that there is a new topic: no snapshot is of it."""
        self._snapshot = None

    @property
    def has_snapshot(self) -> bool:
        """Whether there is a snapshot of the present topic."""
        return self._snapshot is not None

    @property
    def is_behind(self) -> bool:
        """Whether there is no snapshot, or the rules were changed after it: then an emptied server gets other rules."""
        return self._snapshot is None or self._snapshot.rules != self.rules

    def lose(self, *, is_emptied: bool = True) -> None:
        """Record that the last snapshot was restored.

        Retries of dead letters after the snapshot are undone, because the log does not have them. If the server was
        emptied, drops are undone too.
        """
        kept = self._snapshot
        assert kept is not None, "a snapshot was taken"
        if is_emptied:
            self.undeclared |= kept.undeclared
            self.dropped &= kept.dropped
        else:
            self.undeclared = kept.undeclared | self._refused
        # The snapshot may be older than the change of a rule: then the rule counts from the restore on.
        self.changed = set(kept.changed)
        for name, metric in self.rules.metric.items():
            if (before := kept.rules.metric.get(name)) is not None:
                self._mark(name, before, metric)
        self.since = dict.fromkeys(self.since | kept.since, self.latest + AHEAD + 2)
        self._changed()

    @property
    def moment(self) -> Moment:
        """The present moment, for `go_back`; until then, events may be appended and counted, and nothing else."""
        return Moment(len(self.log), self._settled, set(self.undeclared))

    def go_back(self, moment: Moment) -> list[Logged]:
        """Record that the server has the data of a moment again; return the events that it has lost, in order."""
        lost = self.log[moment.events :]
        del self.log[moment.events :]
        self._settled, self.undeclared = moment.settled, set(moment.undeclared)
        self.waiting = self._settled < len(self.log)
        self._changed()
        return lost

    def drop(self) -> None:
        """Record that all dead letters were given up."""
        self.dropped |= self.dead
        self._changed()

    def reset(self, metric: str, subject: str) -> None:
        """Record a reset of a subject."""
        self.resets[metric, subject] = (len(self.log),)
        self._changed()

    def _changed(self) -> None:
        self.__dict__.pop("books", None)

    def retract(self, **given: str | None) -> int:
        """Take back the events that have all given values, and return their number."""
        wanted = {name: value for name, value in given.items() if value is not None}
        found = {
            logged.place
            for logged in self.log
            if all(getattr(logged.event, name) == value for name, value in wanted.items())
        } - self.retracted
        self.retracted |= found
        self._changed()
        return len(found)

    @property
    def dead(self) -> set[int]:
        """The places of all dead letters, also of those that an operator gave up."""
        return (self.undeclared | {logged.place for logged in self.log if logged.dead}) - self.retracted

    @property
    def ledger(self) -> dict[str, int]:
        """The number of events by outcome, and of the appended ones."""
        books = self.books.ledger
        return {
            "appended": len(self.log),
            "counted": books["counted"],
            "rejected": books["rejected:once"] + books["rejected:limit"],
            "duplicate": books["duplicate"],
            "late": books["late"],
            "dead": len(self.dead),
            "retracted": len(self.retracted),
        }

    def subjects(self, metric: str) -> list[str]:
        """Return the subjects of a metric that have events, and one that has none."""
        found = {logged.event.subject for logged in self.log if logged.event.metric == metric}
        return [*sorted(found - {"nothing:here"}), "nothing:here"]

    def is_open(self, metric: str, window: str, end: int, now: float) -> bool:
        """Return whether a bucket that ends at second `end` can still be read at second `now` of the server's clock."""
        kept = self.rules.metric[metric].retention_seconds(window)
        return kept is None or now < end + kept

    def may_be_removed(self, metric: str, window: str, end: int) -> bool:
        """Return whether a bucket that ends at second `end` has closed by the latest time of the server's clock.

        Readers may then state it as missing.
        """
        return not self.is_open(metric, window, end, self.latest)

    def lacks(self, metric: str, subject: str | None, start: float, end: float, windows: list[str]) -> bool:
        """Return whether the server received an event of a range after one of its buckets in `windows` had closed.

        Args:
            metric: The metric.
            subject: The subject of the events; `None` for every subject.
            start: The first second of the events.
            end: The first second after them.
            windows: The windows whose buckets are read.
        """
        return any(
            not self.is_open(
                metric, window, bucket(window, logged.at // 60_000, self.rules.zone).end, logged.received / 1000
            )
            for logged in self.alive
            if logged.event.metric == metric and subject in (None, logged.event.subject)
            if start * 1000 <= logged.at < end * 1000
            for window in windows
        )

    def actors(self, metric: str, subject: str, start: float, end: float) -> int:
        """Return the number of different actors of a subject's events in some seconds; late ones are left out."""
        rule, found = self.rules.metric[metric], set()
        for logged in self.alive:
            event = logged.event
            late = is_late(logged.happened("UTC"), rule)
            rejects = rule.rejects_late or (event.id is not None and rule.keeps_ids)
            if (late and rejects) or (event.metric, event.subject) != (metric, subject):
                continue
            if event.actor is not None and start * 1000 <= logged.at < end * 1000:
                found.add(event.actor)
        return len(found)

    def ranking(self, metric: str, start: float | None, end: float) -> list[tuple[str, int]]:
        """Return the subjects of a metric and their totals, or their sums in a range of seconds, largest first."""
        if start is None:
            sums = {subject: total for (name, subject), total in self.books.totals.items() if name == metric}
        else:
            sums = {subject: self.books.within(metric, subject, start, end) for subject in self.subjects(metric)}
        return sorted(sums.items(), key=lambda place: (place[1], place[0].encode()), reverse=True)

    def floored(self, metric: str, value: int) -> int:
        """Return a value as it is shown: at least the floor of its metric."""
        floor = self.rules.metric[metric].floor
        return value if floor is None else max(value, floor)


def located(events: list[Zoned], rules: dict[str, Metric], resets: dict[tuple[str, str], tuple[int, ...]]) -> Located:
    """Return the correct counters of events, with the parts of each total."""
    books = Located()
    tally(events, rules, books, resets)
    return books
