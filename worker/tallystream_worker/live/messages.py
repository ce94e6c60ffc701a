"""The messages of a live stream, encoded as server-sent events and as WebSocket messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tallystream.reading.reach import UnreachablePartition  # noqa: TC001  # msgspec reads the type

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tallystream.reading.counters import Counter

HEARTBEAT: Final = b": still here\n\n"
"""The comment that a stream of server-sent events sends when there is no news."""

_encode: Final = msgspec.json.Encoder().encode


class CountedFigure(msgspec.Struct, frozen=True):
    """The total of one counter in a message.

    Attributes:
        metric: The metric of the counter.
        subject: The subject of the counter.
        value: The total, but at least the metric's `floor`.
        error: By how much an estimate may be too high (rarely by more; after negative amounts, it may be too low); 0 if
            the total is exact. The `floor` is not considered.
    """

    metric: str
    subject: str
    value: int
    error: int = 0


class CountersMessage(msgspec.Struct, frozen=True):
    """The data of the message `counters`: present totals, some of which may not have changed.

    Attributes:
        counters: The totals.
        as_of: The stream ID up to which every entry of every partition is in the totals.
        lag: The number of entries of all partitions that are not counted yet; `None` if it is not known.
    """

    counters: list[CountedFigure]
    as_of: str
    lag: int | None


class ResetMessage(msgspec.Struct, frozen=True):
    """The data of the message `reset`: some changes are not sent, so the reader must read every total that it shows.

    Attributes:
        reason: Why the changes are not sent.
    """

    reason: str


class StaleMessage(msgspec.Struct, frozen=True):
    """The data of the message `stale`: the counters cannot be read at present; updates resume automatically.

    Attributes:
        reason: Why the counters cannot be read.
        since: The time of the first failed read by this host's clock, in seconds since 1970.
    """

    reason: str
    since: float


class UnreachableMessage(msgspec.Struct, frozen=True):
    """The data of the message `unreachable`: the partitions that cannot be read; the others are sent as usual.

    It is sent when the list changes, and to a new reader if the list is not empty. After a message with an empty list,
    all partitions are read again.

    Attributes:
        unreachable: The partitions.
    """

    unreachable: list[UnreachablePartition]


@dataclass(frozen=True)
class Message:
    """A message to readers, which is encoded once, however many readers receive it.

    Attributes:
        event: The name of the message, such as `counters`.
        data: The data of the message: bytes that are JSON, or an object to encode as JSON.
        id: The position of a reader after the message; `None` if the message does not change the position; `""` if the
            reader has no position after it.
    """

    event: str
    data: Any
    id: str | None = None

    @cached_property
    def body(self) -> bytes:
        """The data of the message as JSON."""
        return self.data if isinstance(self.data, bytes) else _encode(self.data)

    @cached_property
    def sse(self) -> bytes:
        """The message as a server-sent event."""
        name = b"" if self.id is None else b"id: %b\n" % self.id.encode()
        return b"%bevent: %b\ndata: %b\n\n" % (name, self.event.encode(), self.body)

    @cached_property
    def text(self) -> str:
        """The message as the text of a WebSocket message: a JSON object with `event`, `id` (may be null) and `data`."""
        raw = {"event": self.event, "id": self.id, "data": msgspec.Raw(self.body)}
        return _encode(raw).decode()


@dataclass(frozen=True)
class MessageBatch:
    """The totals of one message to one or several readers, and their position after this message.

    Attributes:
        values: By counter (subject, metric), the total, and its error as in `CountedFigure`.
        id: The position of a reader after these totals, as `cursor_text` encodes it.
        as_of: The stream ID up to which every entry is in the values.
        lag: The number of entries that are not counted yet; `None` if it is not known.
    """

    values: dict[Counter, tuple[int, int]]
    id: str
    as_of: str
    lag: int | None
    _merged: dict[int, tuple[MessageBatch, MessageBatch]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def message(self) -> Message:
        """The message of type `counters` for readers, with these totals, `as_of`, `lag` and the position."""
        counters = [
            CountedFigure(metric, subject, value, error) for (subject, metric), (value, error) in self.values.items()
        ]
        return Message("counters", CountersMessage(counters, self.as_of, self.lag), self.id)

    def only(self, counters: Iterable[Counter], id_: str) -> MessageBatch | None:
        """Return a batch with only the totals of `counters`, and the position `id_`; `None` if it has none of them."""
        values = {counter: self.values[counter] for counter in counters if counter in self.values}
        return MessageBatch(values, id_, self.as_of, self.lag) if values else None

    def after(self, earlier: MessageBatch) -> MessageBatch:
        """Return a batch with the totals of `earlier` and of this batch; its other attributes are those of this batch.

        If both have a counter, the result has the total of this batch. Calls with the same earlier batch return the
        same object, so that the result is encoded once for all readers.
        """
        if id(earlier) not in self._merged:
            merged = MessageBatch(earlier.values | self.values, self.id, self.as_of, self.lag)
            self._merged[id(earlier)] = earlier, merged  # a reference to `earlier` keeps its id() from being reused
        return self._merged[id(earlier)][1]
