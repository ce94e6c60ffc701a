"""A queue: the entries of one producer for one partition, on their way and for a while after."""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass
from typing import Final

_ENTRY_BYTES: Final = 250
"""About what an entry takes beside its payload."""


@dataclass(slots=True, eq=False)
class SealedEntry:
    """A sealed entry on its way.

    `cycle` numbers the seal that froze it: what was emitted earlier has a lower or equal one. `was_confirmed` tells
    that the server had it once.
    """

    cycle: int
    events: int
    size: int
    payload: bytes
    was_confirmed: bool = False


@dataclass(frozen=True)
class Rollback:
    """What a stream that went back cost: entries that are sent again, and entries that nobody holds any more."""

    again: int
    lost: int


class PartitionQueue:
    """Entries in the order of their sequences: `kept` ends with `confirmed`, and `waiting` begins after it.

    What was confirmed is kept for a while: a server that fails over or restarts may have forgotten it, and says in
    its next answer how far it got. As the gate lets through 1, 2, 3, ... without a gap, it holds no entry beyond that.

    Args:
        keep_bytes: About how many bytes of confirmed entries are kept.
        producer: The queue's name at the gate; a new one where none is given.
        confirmed: The sequence before the first that is to be sent.
    """

    __slots__ = ("_keep_bytes", "_kept_bytes", "confirmed", "kept", "producer", "resume_at", "waiting")

    def __init__(self, keep_bytes: int, producer: str | None = None, confirmed: int = 0) -> None:
        self._keep_bytes = keep_bytes
        self.waiting: deque[SealedEntry] = deque()
        self.kept: deque[SealedEntry] = deque()
        self._kept_bytes = 0
        self.resume_at = 0.0
        """Monotonic second before which nothing is sent: the stream was full."""
        self.producer = producer or new_name()
        self.confirmed = confirmed

    def confirm(self) -> SealedEntry:
        """Move the first waiting entry to those that the server has; return it."""
        entry = self.waiting.popleft()
        self.confirmed += 1
        self.kept.append(entry)
        self._kept_bytes += len(entry.payload) + _ENTRY_BYTES
        while self._kept_bytes > self._keep_bytes:
            self._kept_bytes -= len(self.kept.popleft().payload) + _ENTRY_BYTES
        return entry

    def roll_back(self, last: int) -> Rollback:
        """Go back to where the server is: it has the entries up to `last`, and none after it.

        Where all that it forgot is still kept, it is sent again as the same entries. Where it is not, the gate would
        never let the next one through: then what is held has to begin again at 1, under a new name (`rename`).
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
        """Begin again at 1, with what waits; what is kept belongs to the old name."""
        self.producer = name
        self.confirmed = 0
        self.forget()

    def forget(self) -> None:
        """Keep nothing of what was confirmed."""
        self.kept.clear()
        self._kept_bytes = 0


def new_name() -> str:
    """Return a name that no producer has had; it never begins with `!`."""
    return uuid.uuid4().hex[:16]
