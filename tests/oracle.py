"""The definition of correct: what a set of stream entries counts to, in plain Python.

It knows no Redis, no worker and no order: `fold` looks at each entry by itself, and adds. Whatever the real
system does with shuffling, batches, several workers and crashes, it must end where this ends. It shares no code
with the worker; what an event may look like is said here a second time on purpose.

A rule that needs more than one event (a limit, a vote) takes all events of its subject at once, sorted by what
they say themselves, never by when they came.
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
    """What somebody said happened, valid or not; `at` is seconds, `None` the moment it was appended."""

    metric: str
    subject: str
    amount: int = 1
    actor: str | None = None
    at: float | None = None
    id: str | None = None


@dataclass(frozen=True)
class Entry:
    """One entry as it was appended.

    Attributes:
        id: The stream ID that the server gave it.
        partition: The stream that it was appended to.
        events: What it holds.
        plain: One event in text, rather than packed ones.
        unreadable: How many events it claims, where nobody can read it; `events` is empty then.
    """

    id: str
    partition: int
    events: tuple[Event, ...] = ()
    plain: bool = False
    unreadable: int = 0


@dataclass
class Answer:
    """What everything adds up to.

    Attributes:
        totals: By metric and subject.
        ledger: By outcome, and by `outcome@metric`, in events; nothing that is 0.
    """

    totals: dict[tuple[str, str], int] = field(default_factory=dict)
    ledger: dict[str, int] = field(default_factory=dict)


def fold(entries: Iterable[Entry], declared: Collection[str], partitions: int) -> Answer:
    """Return what a set of entries counts to; an ID that comes twice is one entry."""
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
    """Return the all-time counter: the true net sum."""
    return sum(event.amount for event in events)


def refusal(event: Event, entry: Entry, declared: Collection[str], partitions: int) -> str | None:
    """Return why a readable event is not counted, `None` where it is."""
    received = int(entry.id.partition("-")[0]) / 1000
    if event.metric not in declared:
        return "undeclared metric"
    if spoilt(event):
        return "breaks a rule of its own"
    if home(event.subject, partitions) != entry.partition:
        return "another partition's"
    if event.at is not None and event.at > received + AHEAD:
        return "from the future"
    return None


def spoilt(event: Event) -> bool:
    """Tell whether an event could not have been emitted."""
    texts = [(event.subject, 1024), (event.actor, 256), (event.id, 256)]
    return abs(event.amount) > MAX or any(text is not None and bad_text(text, limit) for text, limit in texts)


def bad_text(text: str, limit: int) -> bool:
    """Tell whether text is empty, too long, unnormalised or holds what cannot be seen.

    Surrogates and unnormalised text never reach a stream by a library that is well; a plain entry is normalised
    before it is judged.
    """
    hidden = any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or ord(c) in INVISIBLE for c in text)
    return not text or hidden or len(text.encode()) > limit or text != unicodedata.normalize("NFC", text)


def normal(event: Event) -> Event:
    """Return the event with its subject in normal form C."""
    subject = unicodedata.normalize("NFC", event.subject)
    return Event(event.metric, subject, event.amount, event.actor, event.at, event.id)


def home(subject: str, partitions: int) -> int:
    """Return the partition that counts a subject."""
    return zlib.crc32(subject.encode()) % partitions
