"""A moment of one partition, held open while its values are read: what is written meanwhile is told to us first.

The hot path pays one PTTL a script call, and more only while a cut is open.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import TallyError
from tallystream.storage.scripts import Script
from tallystream.wire.codec import was_decided
from tallystream.wire.stream_id import parse_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis

    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.counting.entry import Entry

SILENCE: Final = 30_000
"""Milliseconds after which a cut that nobody works on is given up, and what it holds in memory with it."""

MOST_PENDING: Final = 10_000
"""The pending entries that `open.lua` asks for at most."""

_TAKE: Final = 5000

_OPEN: Final = Script("tallystream_worker.snapshot", "open")
_CLOSE: Final = Script("tallystream_worker.snapshot", "close")


class ViewLost(TallyError):
    """The moment could not be held: another snapshot is being taken, or this one was silent for too long."""


@dataclass(frozen=True)
class SnapshotPosition:
    """What is applied at a moment: everything up to `delivered` but `pending`, and decided entries up to `generated`.

    Attributes:
        taken: Milliseconds since 1970, by the server's clock.
        delivered: The last entry that was handed to a worker.
        generated: The last entry that was appended.
        pending: Entries that were handed out and not applied.
    """

    taken: int
    delivered: str
    generated: str
    pending: tuple[str, ...] = ()

    @property
    def floor(self) -> str:
        """The entry up to which everything is applied: what a restore needs of the log lies behind it."""
        if not self.pending:
            return self.delivered
        milliseconds, number = parse_id(self.pending[0])
        before = (milliseconds, number - 1) if number else (milliseconds - 1, 2**64 - 1)
        return "{}-{}".format(*min(before, parse_id(self.delivered)))

    def includes(self, entry: Entry, generation: int) -> bool:
        """Tell whether an entry's effect was in the counters of a generation at this moment."""
        if was_decided(entry.fields, generation):
            return parse_id(entry.id) <= parse_id(self.generated)
        return parse_id(entry.id) <= parse_id(self.delivered) and entry.id not in self.pending

    def is_reached(self, client: redis.Redis, stream: str) -> bool:
        """Tell whether a stream still holds everything that was not applied at this moment.

        The server does not say which entries were trimmed. But the entry where the snapshot ends is kept as long as
        the snapshot's hold is (trimming by MINID leaves the one that it names), and so is the first pending one.
        """
        about: Any = client.xinfo_stream(stream)
        if about["entries-added"] == about["length"]:
            return True
        last = parse_id(self.pending[0] if self.pending else self.delivered)
        if about["first-entry"] is None:
            return not self.pending and parse_id(about["last-generated-id"].decode()) <= last
        return parse_id(about["first-entry"][0].decode()) <= last


@dataclass
class PointInTimeView:
    """An open cut.

    Attributes:
        position: What is applied.
        ledger: The books.
        strings: By key, what was there at the moment, of strings written since; `None`: nothing.
        fields: The same by key and field.
        copies: Keys that were copied, or (`False`) were not there.
    """

    client: redis.Redis
    key: str
    token: str
    position: SnapshotPosition
    ledger: dict[bytes, bytes]
    strings: dict[bytes, bytes | None] = field(default_factory=dict)
    fields: dict[tuple[bytes, bytes], bytes | None] = field(default_factory=dict)
    copies: dict[bytes, bool] = field(default_factory=dict)
    _words: list[bytes] = field(default_factory=list)

    def take(self) -> None:
        """Take over what has been said so far, and show that we are alive.

        Raises:
            ViewLost: the moment is gone.
        """
        with self.client.pipeline(transaction=False) as pipeline:
            pipeline.pexpire(self.key, SILENCE)
            pipeline.lpop(f"{self.key}:before", _TAKE)
            alive, words = pipeline.execute()
        if not alive:
            raise ViewLost(f"{self.key}: the snapshot was silent for more than {SILENCE // 1000} s; it is taken anew")
        self._words += words or []
        self._hear()

    def close(self) -> None:
        """End the cut; what was read is complete with this.

        Raises:
            ViewLost: the moment is gone.
        """
        while True:
            answer, *words = _CLOSE(self.client, [self.key], [self.token])
            if answer == b"closed":
                self._words += words
                self._hear()
                return
            if answer == b"lost":
                raise ViewLost(
                    f"{self.key}: the snapshot was silent for more than {SILENCE // 1000} s; it is taken anew"
                )
            self.take()

    def give_up(self) -> None:
        """Let the moment go."""
        if self.client.get(self.key) == self.token.encode():
            self.client.delete(self.key, f"{self.key}:before", f"{self.key}:copied")

    def _hear(self) -> None:
        """Note every statement that is complete; the first about a key or field counts."""
        words, at = self._words, 0
        while at + 2 < len(words):
            match words[at]:
                case b"s":
                    end = at + 2 + 2 * int(words[at + 1])
                    if end > len(words):
                        break
                    for name, value in zip(words[at + 2 : end : 2], words[at + 3 : end : 2], strict=True):
                        self.strings.setdefault(name, value or None)
                case b"h":
                    end = at + 3 + 2 * int(words[at + 2])
                    if end > len(words):
                        break
                    key = words[at + 1]
                    for name, value in zip(words[at + 3 : end : 2], words[at + 4 : end : 2], strict=True):
                        self.fields.setdefault((key, name), value or None)
                case _:
                    end = at + 3
                    self.copies.setdefault(words[at + 1], words[at + 2] == b"1")
            at = end
        del words[:at]


def open_view(client: redis.Redis, keys: PartitionKeys, copy: Sequence[str]) -> PointInTimeView:
    """Open a cut.

    Args:
        client: Where.
        keys: The partition's.
        copy: Keys that are copied at the moment: those of few structures that change all over.

    Raises:
        ViewLost: another snapshot is being taken.
        redis.ResponseError: `NOGROUP` where the group is gone.
    """
    key = keys.ledger.removesuffix("ledger") + "cut"
    token = uuid.uuid4().hex
    answer, *state = _OPEN(
        client, [keys.stream, key, keys.ledger, keys.topic_ledger], [keys.group, token, SILENCE, *copy]
    )
    if answer == b"busy":
        raise ViewLost(f"{key}: another snapshot of this partition is being taken")
    taken, delivered, generated, pending, ledger, log = state
    if len(pending) >= MOST_PENDING:
        client.delete(key)
        raise ViewLost(f"{keys.stream}: {MOST_PENDING:,} entries or more are pending; a snapshot waits until fewer are")
    position = SnapshotPosition(
        int(taken), delivered.decode(), generated.decode(), tuple(each.decode() for each in pending)
    )
    books = _pairs(ledger)
    if keys.ledger != keys.topic_ledger:
        # What the gate let in is in the log's books: see tallystream.reading.ledger.
        appended, plain = (int(events or 0) for events in log)
        books[b"appended"] = b"%d" % (int(books.get(b"appended", 0)) + appended - plain)
        books.pop(b"plain", None)
    return PointInTimeView(client, key, token, position, books)


def _pairs(reply: Any) -> dict[bytes, bytes]:
    return dict(reply) if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
