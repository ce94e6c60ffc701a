"""What is sent to those who follow: an event's name, its id, and its data, in the two forms in which it travels."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from tallystream.reading.counters import Counter

HEARTBEAT: Final = b": still here\n\n"

_encode: Final = msgspec.json.Encoder().encode


class CountedFigure(msgspec.Struct, frozen=True):
    """One counter's total; `error` is by how much it may be too high, 0 when it is exact."""

    metric: str
    subject: str
    value: int
    error: int = 0


class CountersMessage(msgspec.Struct, frozen=True):
    """Totals that changed, complete up to `as_of` but for `lag` entries."""

    counters: list[CountedFigure]
    as_of: str
    lag: int | None


class ResetMessage(msgspec.Struct, frozen=True):
    """What the reader holds may be old, and what changed is not known: it must read anew what it shows."""

    reason: str


class StaleMessage(msgspec.Struct, frozen=True):
    """Redis has not answered since second `since`; updates go on by themselves."""

    reason: str
    since: float


@dataclass(frozen=True)
class Message:
    """One event. It is encoded once, however many read it."""

    event: str
    data: Any
    id: str | None = None

    @cached_property
    def body(self) -> bytes:
        """The data as JSON."""
        return self.data if isinstance(self.data, bytes) else _encode(self.data)

    @cached_property
    def sse(self) -> bytes:
        """The form of server-sent events."""
        name = b"" if self.id is None else b"id: %b\n" % self.id.encode()
        return b"%bevent: %b\ndata: %b\n\n" % (name, self.event.encode(), self.body)

    @cached_property
    def text(self) -> str:
        """The form of a WebSocket message."""
        raw = {"event": self.event, "id": self.id, "data": msgspec.Raw(self.body)}
        return _encode(raw).decode()


@dataclass(frozen=True)
class MessageBatch:
    """Counters for one filter, and the position that a reader has reached once it has them.

    Attributes:
        values: Each with its error.
        id: The position.
        as_of: Stream ID up to which everything is in the values.
        lag: Entries that are not counted yet.
    """

    values: dict[Counter, tuple[int, int]]
    id: str
    as_of: str
    lag: int | None
    _merged: dict[int, tuple[MessageBatch, MessageBatch]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def message(self) -> Message:
        """The event that says it."""
        counters = [
            CountedFigure(metric, subject, value, error) for (subject, metric), (value, error) in self.values.items()
        ]
        return Message("counters", CountersMessage(counters, self.as_of, self.lag), self.id)

    def after(self, earlier: MessageBatch) -> MessageBatch:
        """Return the two as one, where this one is the later: the same one to all readers who hold the same."""
        if id(earlier) not in self._merged:
            merged = MessageBatch(earlier.values | self.values, self.id, self.as_of, self.lag)
            self._merged[id(earlier)] = earlier, merged  # the earlier one as well: its address stays its own
        return self._merged[id(earlier)][1]
