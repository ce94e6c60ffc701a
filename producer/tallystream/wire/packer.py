"""Gathers events until they are sealed into one entry: what repeats is summed, what stands alone is put in columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from tallystream.wire.codec import ActorColumns, Group, Payload, Single, encode
from tallystream.wire.window import MINUTE

if TYPE_CHECKING:
    from collections.abc import Sequence

Columns: TypeAlias = tuple[list[str], list[str], list[int]]
"""Subjects, actors and moments of visits."""

# An amount this large goes by itself: so a sum of up to a million others stays far from 64 bits.
_LARGE: Final = 2**40


class EntryBuilder:
    """Gathers events of one partition until they are sealed into one entry.

    `events` is how many it holds and `size` about how many bytes they will take.
    """

    __slots__ = ("events", "singles", "size", "sums", "units", "visits")

    def __init__(self) -> None:
        self.events = 0
        self.size = 0
        self.units: dict[tuple[str, int], dict[str, int]] = {}
        self.sums: dict[tuple[str, int], dict[str, tuple[int, int]]] = {}
        self.singles: list[Single] = []
        self.visits: dict[tuple[str, int], Columns] = {}

    def add(self, metric: str, subject: str, amount: int, at: float, actor: str | None, id_: str | None) -> int:
        """Take one valid event that happened at `at` seconds; return the bytes by which `size` grew."""
        self.events += 1
        if actor is not None and amount == 1 and id_ is None:
            minute, moment = divmod(int(at * 1000), MINUTE * 1000)
            subjects, actors, moments = self.columns(metric, minute)
            subjects.append(subject)
            actors.append(actor)
            moments.append(moment)
            grown = len(subject) + len(actor) + 5
        elif actor is not None or id_ is not None or not -_LARGE < amount < _LARGE:
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
        """Return the columns of visits in a minute; whoever appends to them adds to `events` and `size` as well."""
        key = (metric, minute)
        found = self.visits.get(key)
        if found is None:
            found = self.visits[key] = ([], [], [])
        return found

    def add_sum(self, metric: str, subject: str, minute: int, amount: int, events: int, *, unit: bool) -> None:
        """Take the sum of several valid events of one minute; `unit` says that each has the amount 1."""
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
        """Take numbers of valid events of amount 1 of one minute, by subject."""
        n = sum(events)
        self.events += n
        self.size += sum(map(len, subjects)) + 3 * n
        units = self.units.setdefault((metric, minute), {})
        if not units:
            units.update(zip(subjects, events, strict=True))
            if len(units) == len(subjects):
                return
            units.clear()  # some came twice: they were written in two ways
        for subject, more in zip(subjects, events, strict=True):
            units[subject] = units.get(subject, 0) + more

    def build(self) -> bytes:
        """Return the msgpack form of everything gathered."""
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
