"""The definition of correct: the totals and ledger that a set of stream entries must produce, in plain Python.

The oracle has no Redis, no worker and no order: `fold` reads each entry by itself, and adds. Shuffled entries, batches,
several workers and crashes must not make the real system differ from it. It shares no code with the worker, and
repeats the checks of an event on purpose.

A rule that needs more than one event (a limit, a vote) takes all events of its subject at once, sorted by the fields of
the events, never by arrival. Those rules are in `oracle_rules.py`.
"""

from __future__ import annotations

import unicodedata
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

MAX = 2**53 - 1
AHEAD = 3600.0
INVISIBLE = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF}


@dataclass(frozen=True)
class Event:
    """An event as emitted, valid or not; `at` is in seconds, and `None` means the time of the append."""

    metric: str
    subject: str
    amount: int = 1
    actor: str | None = None
    at: float | None = None
    id: str | None = None


@dataclass(frozen=True)
class Entry:
    """An entry of a stream, as appended.

    Attributes:
        id: The stream ID that the server gave it.
        partition: The stream that it was appended to.
        events: The events in the entry.
        plain: Whether it is one event in text fields instead of packed events.
        unreadable: For an entry that cannot be decoded, the number of events it states; `events` is empty then.
    """

    id: str
    partition: int
    events: tuple[Event, ...] = ()
    plain: bool = False
    unreadable: int = 0


@dataclass
class Answer:
    """The totals and the ledger that a set of entries must produce.

    Attributes:
        totals: The total of each (metric, subject).
        ledger: Events by outcome and by `outcome@metric`; `total@metric` is an amount. Fields that are 0 are left out.
    """

    totals: dict[tuple[str, str], int] = field(default_factory=dict)
    ledger: dict[str, int] = field(default_factory=dict)


def fold(entries: Iterable[Entry], declared: Collection[str], partitions: int) -> Answer:
    """Return the totals and the ledger that a set of entries must produce; an ID that occurs twice is one entry."""
    ledger: Counter[str] = Counter()
    good: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for entry in {(entry.partition, entry.id): entry for entry in entries}.values():
        stated = entry.unreadable + len(entry.events)
        events = [normal(event) for event in entry.events] if entry.plain else entry.events
        ledger["appended"] += stated
        if entry.unreadable or (entry.plain and spoilt(events[0])):
            ledger["dead"] += stated
            continue
        for event in events:
            if refusal(event, entry, declared, partitions):
                ledger["dead"] += 1
                ledger[f"dead@{event.metric}"] += event.metric in declared
            else:
                good[event.metric, event.subject].append(event)
    totals = {}
    for (metric, subject), events_of_one in good.items():
        totals[metric, subject] = total(events_of_one)
        for outcome in ("counted", f"counted@{metric}"):
            ledger[outcome] += len(events_of_one)
        ledger[f"total@{metric}"] += totals[metric, subject]
    return Answer(totals, {name: events for name, events in ledger.items() if events})


def total(events: Collection[Event]) -> int:
    """Return the total of a subject's events: the sum of their amounts."""
    return sum(event.amount for event in events)


def refusal(event: Event, entry: Entry, declared: Collection[str], partitions: int) -> str | None:
    """Return the reason that a readable event must not be counted, or `None` if it must be.

    Whether an event is too far in the future is measured from the stream ID, which is never earlier than the server's
    clock. So no event is refused because the clock was set back.
    """
    id_time = int(entry.id.partition("-")[0]) / 1000
    if event.metric not in declared:
        return "undeclared metric"
    if spoilt(event):
        return "invalid field"
    if home(event.subject, partitions) != entry.partition:
        return "wrong partition"
    if event.at is not None and event.at > id_time + AHEAD:
        return "too far in the future"
    return None


def spoilt(event: Event) -> bool:
    """Return whether `emit` would have refused an event for its amount, subject, actor or id."""
    texts = [(event.subject, 1024), (event.actor, 256), (event.id, 256)]
    return abs(event.amount) > MAX or any(text is not None and bad_text(text, limit) for text, limit in texts)


def bad_text(text: str, limit: int) -> bool:
    """Return whether a text is empty, longer than `limit` bytes, not in normal form C, or has invisible characters.

    A correct producer library never appends surrogates or unnormalised text. The subject of a plain entry is normalised
    before this check.
    """
    hidden = any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or ord(c) in INVISIBLE for c in text)
    return not text or hidden or len(text.encode()) > limit or text != unicodedata.normalize("NFC", text)


def normal(event: Event) -> Event:
    """Return a copy of an event with its subject in normal form C."""
    subject = unicodedata.normalize("NFC", event.subject)
    return Event(event.metric, subject, event.amount, event.actor, event.at, event.id)


def home(subject: str, partitions: int) -> int:
    """Return the partition that counts a subject."""
    return zlib.crc32(subject.encode()) % partitions
