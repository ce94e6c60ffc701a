"""Gathers events for one entry: sums events without actor and id, and puts events with an actor into columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from tallystream.wire.codec import ActorColumns, Group, Payload, Single, encode
from tallystream.wire.window import MINUTE

if TYPE_CHECKING:
    from collections.abc import Sequence

Columns: TypeAlias = tuple[list[str], list[str], list[int]]
"""The subjects, actors and moments of events with an actor: see `tallystream.wire.codec.ActorColumns`."""

# An event with an amount this large becomes a single, so a sum of up to a million events stays far below 64 bits.
_LARGE: Final = 2**40


class EntryBuilder:
    """Gathers events of one partition by its methods `add...`; `build` encodes them as the payload of one entry.

    Attributes:
        events: The number of events gathered.
        size: An estimate of the bytes that the events will need in the entry; each character counts as one byte.
        units: By metric and minute, and by subject, the number of events of amount 1 without actor and id. Those that
            `add_sum` adds together with other amounts are in `sums`.
        sums: By metric and minute, and by subject, the sum of the amounts of other events without actor and id, and the
            number of these events.
        singles: Events with an id, with an actor and another amount than 1, with an actor and a metric in `ordered`, or
            with an amount of 2^40 or more, or of -2^40 or less.
        visits: By metric and minute, the columns of events of amount 1 with an actor and without an id.
        ordered: The metrics of which `singles` has an event with an actor. `add` makes their later events with an actor
            singles too: an entry has its visits before its singles, so the events of an actor keep their order.
    """

    __slots__ = ("events", "ordered", "singles", "size", "sums", "units", "visits")

    def __init__(self) -> None:
        self.events = 0
        self.size = 0
        self.units: dict[tuple[str, int], dict[str, int]] = {}
        self.sums: dict[tuple[str, int], dict[str, tuple[int, int]]] = {}
        self.singles: list[Single] = []
        self.visits: dict[tuple[str, int], Columns] = {}
        self.ordered: set[str] = set()

    def add(self, metric: str, subject: str, amount: int, at: float, actor: str | None, id_: str | None) -> int:
        """Add one event, which is not checked, and return the bytes by which `size` grew.

        They are 0 if the event has the amount 1 and neither actor nor id, and `units` already has its metric, minute
        and subject.

        Args:
            metric: Its metric.
            subject: Its subject.
            amount: Its amount.
            at: Its time, in seconds since 1970.
            actor: Its actor, if it has one.
            id_: Its id, if it has one.
        """
        self.events += 1
        if actor is not None and amount == 1 and id_ is None and metric not in self.ordered:
            minute, moment = divmod(int(at * 1000), MINUTE * 1000)
            subjects, actors, moments = self.columns(metric, minute)
            subjects.append(subject)
            actors.append(actor)
            moments.append(moment)
            grown = len(subject) + len(actor) + 5
        elif actor is not None or id_ is not None or not -_LARGE < amount < _LARGE:
            if actor is not None:
                self.ordered.add(metric)
            self.singles.append(Single(metric, subject, amount, int(at * 1000), actor, id_))
            grown = len(metric) + len(subject) + len(actor or "") + len(id_ or "") + 20
        elif amount == 1:
            key = (metric, int(at) // MINUTE)
            units = self.units.get(key)
            if units is None:
                units = self.units[key] = {}
            seen = units.get(subject)
            if seen is not None:
                units[subject] = seen + 1
                return 0
            units[subject] = 1
            grown = len(subject) + 3
        else:
            sums = self.sums.setdefault((metric, int(at) // MINUTE), {})
            amount_so_far, events_so_far = sums.get(subject, (0, 0))
            sums[subject] = (amount_so_far + amount, events_so_far + 1)
            grown = len(subject) + 10
        self.size += grown
        return grown

    def columns(self, metric: str, minute: int) -> Columns:
        """Return the columns in `visits` of a metric and a whole minute since 1970; add empty ones if there are none.

        The caller may append to the columns, unless the metric is in `ordered`, and must then also add to `events` and
        `size`.
        """
        key = (metric, minute)
        found = self.visits.get(key)
        if found is None:
            found = self.visits[key] = ([], [], [])
        return found

    def add_sum(self, metric: str, subject: str, minute: int, amount: int, events: int, *, unit: bool) -> None:
        """Add the sum of several events of one metric, subject and minute, without actor and id; they are not checked.

        Args:
            metric: Their metric.
            subject: Their subject.
            minute: Their time, in whole minutes since 1970.
            amount: The sum of their amounts.
            events: Their number.
            unit: Whether each of them has the amount 1; if so, `amount` is not used.
        """
        self.events += events
        self.size += len(subject) + 10
        if unit:
            units = self.units.setdefault((metric, minute), {})
            units[subject] = units.get(subject, 0) + events
        else:
            sums = self.sums.setdefault((metric, minute), {})
            amount_so_far, events_so_far = sums.get(subject, (0, 0))
            sums[subject] = (amount_so_far + amount, events_so_far + events)

    def add_units(self, metric: str, minute: int, subjects: Sequence[str], events: Sequence[int]) -> None:
        """Add events of amount 1, without actor and id, of one metric and minute; they are not checked.

        Args:
            metric: Their metric.
            minute: Their time, in whole minutes since 1970.
            subjects: The subjects; one may occur several times.
            events: For each element of `subjects`, the number of events.
        """
        n = sum(events)
        self.events += n
        self.size += sum(map(len, subjects)) + 3 * n
        units = self.units.setdefault((metric, minute), {})
        if not units:
            units.update(zip(subjects, events, strict=True))
            if len(units) == len(subjects):
                return
            units.clear()  # a subject is repeated, because it was spelled in two ways before it was normalised
        for subject, more in zip(subjects, events, strict=True):
            units[subject] = units.get(subject, 0) + more

    def build(self) -> bytes:
        """Return the msgpack form of the events, which is the field `b` of an entry; the builder does not change."""
        groups = []
        for key in self.units.keys() | self.sums.keys():
            units = self.units.get(key, {})
            groups.append(
                Group(
                    metric=key[0],
                    minute=key[1],
                    ones=[subject for subject, n in units.items() if n == 1],
                    counts={subject: n for subject, n in units.items() if n > 1},
                    sums=self.sums.get(key, {}),
                )
            )
        visits = [
            ActorColumns(metric, minute, subjects, actors, moments)
            for (metric, minute), (subjects, actors, moments) in self.visits.items()
        ]
        return encode(Payload(groups, self.singles, [], visits))
