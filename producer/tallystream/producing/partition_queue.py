"""The queue of one producer's entries for one partition: unconfirmed entries, and the latest confirmed ones."""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tallystream.producing.gate import SPOOL, START
from tallystream.wire.stream_id import parse_id

if TYPE_CHECKING:
    from tallystream.producing.gate import GateRecord

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
        was_confirmed: Whether it was ever confirmed or given up; if so, its events are already counted as appended.
        since: While it is kept, its stream ID; if that is not known, a lower bound of it.
    """

    cycle: int
    events: int
    size: int
    payload: bytes
    was_confirmed: bool = False
    since: str = START


@dataclass(frozen=True)
class Rollback:
    """The result of rolling back a queue: see `PartitionQueue.roll_back`.

    Attributes:
        again: How many entries are sent again.
        lost: How many entries the server has lost that are no longer kept here, so cannot be sent again; without those
            that an earlier rollback counted.
    """

    again: int
    lost: int


class PartitionQueue:
    """One producer's entries for one partition, in the order of their sequences.

    The caller appends new entries to `waiting`. `confirm` moves the first of them to `kept`, and `roll_back` moves
    entries back. The latest confirmed entries are kept, because a server may lose them in a failover or a restart. Its
    next reply then states the last sequence that it has. The sequence gate lets entries through in the order of their
    sequences, so the server has no entry after that one. Entries that the server has lost and that are not kept any
    more are a hole. The entries after the hole are sent with the sequences that they have: if the lost data comes back,
    with a restore or another backup, the gate does not let them through a second time.

    The server removes the record of a producer that has been silent for long. The stream IDs of the kept entries then
    show which of them the stream has had: see `last_of`.

    Args:
        keep_bytes: About how many bytes of confirmed entries to keep.
        producer: Name of the queue at the sequence gate; `None` for a new name.
        confirmed: The last sequence that is already confirmed.
        since: A stream ID that no entry of the queue precedes, except those up to `confirmed`.
        sent: The last sequence that may have been sent.

    Attributes:
        producer: Name of the queue at the sequence gate.
        confirmed: The last confirmed sequence: that of the last entry in `kept`, if there is one.
        since: The stream ID of the last confirmed entry, or a lower bound of it; the next entry gets a later one.
        sent: If higher than `confirmed`: the last sequence that may be in the stream without being confirmed, because
            the reply to it is missing or proves too little. If not higher, it has no meaning.
        kept: Confirmed entries, the latest last.
        hole: The last sequence before the hole, and the last one in it; `None` if there is none. After another hole, it
            is the later one.
        waiting: Unconfirmed entries; the first has the sequence `confirmed + 1`.
    """

    __slots__ = (
        "_dropped_since",
        "_keep_bytes",
        "_kept_bytes",
        "confirmed",
        "hole",
        "kept",
        "producer",
        "resume_at",
        "sent",
        "since",
        "waiting",
    )

    def __init__(
        self, keep_bytes: int, producer: str | None = None, confirmed: int = 0, since: str = START, sent: int = 0
    ) -> None:
        self._keep_bytes = keep_bytes
        self.waiting: deque[SealedEntry] = deque()
        self.kept: deque[SealedEntry] = deque()
        self.hole: tuple[int, int] | None = None
        self._kept_bytes = 0
        self.resume_at = 0.0
        """Monotonic second before which nothing is sent; 0 at first.

        The appender sets it when the stream is full, held by a reset, or closed, or when the partition has lost a key.
        """
        self.producer = producer or new_name()
        self.confirmed = confirmed
        self.since = self._dropped_since = since
        self.sent = sent

    def confirm(self, stream_id: str = "") -> SealedEntry:
        """Move the first waiting entry to the kept ones, raise `confirmed` by 1, and return the entry.

        There must be a waiting entry. The oldest kept entries over `keep_bytes` are dropped. `stream_id` becomes
        `since`; if it is empty, because it is not known, `since` stays.
        """
        entry = self.waiting.popleft()
        self.confirmed += 1
        self.since = entry.since = stream_id or self.since
        self.kept.append(entry)
        self._kept_bytes += len(entry.payload) + _ENTRY_BYTES
        while self._kept_bytes > self._keep_bytes:
            dropped = self.kept.popleft()
            self._dropped_since = dropped.since
            self._kept_bytes -= len(dropped.payload) + _ENTRY_BYTES
        return entry

    def confirm_to(self, last: int) -> list[SealedEntry]:
        """Take every waiting entry up to the sequence `last` for confirmed, and return them.

        `confirmed` becomes `last` even if fewer entries wait, and stays if it is higher.
        """
        entries = []
        while self.waiting and self.confirmed < last:
            entries.append(self.confirm())
        self.confirmed = max(self.confirmed, last)
        return entries

    def is_forgotten(self, record: GateRecord) -> bool:
        """Return whether the server may have removed this queue's record, rather than lost its confirmed entries.

        This is so if there is no record, and `since` is before the horizon: only records of entries before the horizon
        may have been removed. The entries themselves stay in the stream.
        """
        return record.last == 0 and parse_id(self.since) < record.horizon

    def last_of(self, record: GateRecord) -> int:
        """Return the last sequence that the stream has, or may have, according to the server's record of this queue.

        If there is a record, this is its sequence. If there is none, the server may have removed it: each removed
        record named an entry before `record.horizon`. So the result is the sequence of the last confirmed entry before
        the horizon: the stream does not have the later ones, because their record would not have been removed. If all
        confirmed entries are before the horizon, entries whose replies are missing may be in the stream as well; they
        are included. If no entry of the queue can have been in a removed record, the result is 0.
        """
        if record.last > 0:
            return record.last
        if self.is_forgotten(record):
            return max(self.confirmed, self.sent)
        last = self.confirmed
        for entry in reversed(self.kept):
            if parse_id(entry.since) < record.horizon:
                return last
            last -= 1
        return last if parse_id(self._dropped_since) < record.horizon else 0

    @property
    def skip(self) -> int | None:
        """The last sequence before the `hole`, if no entry after the hole is confirmed; else `None`.

        If it is not `None`, the first waiting entry directly follows the hole; but there may be no waiting entry.
        """
        return self.hole[0] if self.hole is not None and self.hole[1] == self.confirmed else None

    def confirmed_after(self, last: int) -> int:
        """Return what `roll_back(last)` makes of `confirmed`, without a change."""
        return min(self.confirmed, max(last, self.confirmed - len(self.kept)))

    def roll_back(self, last: int) -> Rollback:
        """Make the kept entries after `last` wait again; `last` is the last sequence that the server still has.

        They are sent again with the same sequences. If the server has also lost entries that are not kept any more,
        these become the hole. Those of an earlier hole are not counted as lost again. `confirmed` becomes the sequence
        before the first waiting entry; `since` and `sent` do not change, so the caller must set them. If `last` is not
        lower than `confirmed`, do nothing, and return zeros.
        """
        dropped = self.confirmed - len(self.kept)  # the last sequence that is not kept
        lost = max(0, dropped - last)
        if self.hole is not None:
            after, until = self.hole
            lost -= max(0, min(until, dropped) - max(after, last))
        again = 0
        while self.kept and self.confirmed > last:
            entry = self.kept.pop()
            self._kept_bytes -= len(entry.payload) + _ENTRY_BYTES
            self.waiting.appendleft(entry)
            self.confirmed -= 1
            again += 1
        if self.confirmed > last:
            self.hole = (last, self.confirmed)
        return Rollback(again, lost)

    def rename(self, name: str, since: str) -> None:
        """Give the queue a new name: the first waiting entry gets sequence 1, and the kept entries are dropped.

        The waiting entries stay. `since` is a stream ID that no entry under the new name precedes.
        """
        self.producer = name
        self.hole = None
        self.confirmed = self.sent = 0
        self.since = since
        self.forget()

    def forget(self) -> None:
        """Drop the kept entries, so that they cannot be sent again if the server loses them; they stay confirmed."""
        self.kept.clear()
        self._kept_bytes = 0
        self._dropped_since = self.since


def new_name(prefix: str = "") -> str:
    """Return a new random name for a queue or a folder: `prefix`, then 16 hexadecimal digits.

    The server takes names of this form, without a prefix or with `spool:`, for those of producers, and may remove
    their records after a long silence.
    """
    return prefix + uuid.uuid4().hex[:16]


def another_name(name: str) -> str:
    """Return a new random name for a queue of the same kind as that with `name`: with a spool, or without."""
    return new_name(SPOOL if name.startswith(SPOOL) else "")
