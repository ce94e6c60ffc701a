"""The queue of one producer's entries for one partition: unconfirmed entries, and the latest confirmed ones."""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass
from typing import Final

_ENTRY_BYTES: Final = 250
"""About how many bytes an entry takes in addition to its payload."""


@dataclass(slots=True, eq=False)
class SealedEntry:
    """An entry whose bytes are fixed, ready to be sent.

    Attributes:
        cycle: Number of the seal that made it; events emitted earlier are in entries with the same or a lower number.
        events: Number of events in it.
        size: Bytes that its events take in the buffer.
        payload: The packed events.
        was_confirmed: Whether the server has ever confirmed it.
    """

    cycle: int
    events: int
    size: int
    payload: bytes
    was_confirmed: bool = False


@dataclass(frozen=True)
class Rollback:
    """The result of rolling back a queue.

    Attributes:
        again: Entries that are sent again.
        lost: Entries that the server has lost and that are no longer kept here.
    """

    again: int
    lost: int


class PartitionQueue:
    """One producer's entries for one partition, in the order of their sequences.

    The latest confirmed entries are kept, because a server may lose them in a failover or a restart. Its next reply
    then states the last sequence that it has. The sequence gate lets entries through as 1, 2, 3, ... without a gap, so
    the server has no entry after that sequence.

    Args:
        keep_bytes: About how many bytes of confirmed entries to keep.
        producer: Name of the queue at the sequence gate; `None` for a new name.
        confirmed: The last sequence that is already confirmed.

    Attributes:
        producer: Name of the queue at the sequence gate.
        confirmed: The last confirmed sequence: that of the last entry in `kept`.
        kept: Confirmed entries, the latest last.
        waiting: Unconfirmed entries; the first has the sequence `confirmed + 1`.
    """

    __slots__ = ("_keep_bytes", "_kept_bytes", "confirmed", "kept", "producer", "resume_at", "waiting")

    def __init__(self, keep_bytes: int, producer: str | None = None, confirmed: int = 0) -> None:
        self._keep_bytes = keep_bytes
        self.waiting: deque[SealedEntry] = deque()
        self.kept: deque[SealedEntry] = deque()
        self._kept_bytes = 0
        self.resume_at = 0.0
        """Monotonic second before which nothing is sent, because the stream was full or closed."""
        self.producer = producer or new_name()
        self.confirmed = confirmed

    def confirm(self) -> SealedEntry:
        """Move the first waiting entry to the kept ones and return it; drop the oldest kept ones over `keep_bytes`."""
        entry = self.waiting.popleft()
        self.confirmed += 1
        self.kept.append(entry)
        self._kept_bytes += len(entry.payload) + _ENTRY_BYTES
        while self._kept_bytes > self._keep_bytes:
            self._kept_bytes -= len(self.kept.popleft().payload) + _ENTRY_BYTES
        return entry

    def roll_back(self, last: int) -> Rollback:
        """Make the kept entries after `last` wait again; `last` is the last sequence that the server still has.

        If all entries that the server lost are still kept, they are sent again with the same sequences. Otherwise
        (`Rollback.lost` is not 0) the sequence gate would refuse the next entry: the caller must `rename` the queue.
        """
        first_kept = self.confirmed - len(self.kept) + 1
        lost = max(0, first_kept - 1 - last)
        again = 0
        while self.kept and self.confirmed > last:
            entry = self.kept.pop()
            self._kept_bytes -= len(entry.payload) + _ENTRY_BYTES
            self.waiting.appendleft(entry)
            self.confirmed -= 1
            again += 1
        return Rollback(again, lost)

    def rename(self, name: str) -> None:
        """Give the queue a new name: the first waiting entry gets sequence 1, and the kept entries are dropped."""
        self.producer = name
        self.confirmed = 0
        self.forget()

    def forget(self) -> None:
        """Drop the kept entries."""
        self.kept.clear()
        self._kept_bytes = 0


def new_name() -> str:
    """Return a new random name for a queue or a folder; it never begins with `!`."""
    return uuid.uuid4().hex[:16]
