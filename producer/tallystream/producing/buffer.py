"""The buffer: events taken from the caller and not confirmed yet, bounded, and packed by partition."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tallystream.errors import BufferFull, ConfigurationError, FlushTimeout, TallyError
from tallystream.producing.validation import ANYWHERE, is_spreadable
from tallystream.storage.keys import MAX_PARTITIONS, partition_of
from tallystream.wire.codec import MAX_EVENTS
from tallystream.wire.packer import EntryBuilder

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from tallystream.producing.partition_queue import SealedEntry
    from tallystream.storage.keys import Layout

WhenFull = Literal["block", "raise", "drop"]

Event = tuple[str, str, int, float, str | None, str | None]
"""Metric, subject, amount, second, actor, id."""

_UNROUTED_BYTES = 100
"""About what an event takes, beside its subject, while its partition is not known."""


@dataclass(frozen=True)
class BufferSettings:
    """When an entry is full, when the buffer is, and what happens then; see `Producer` for each."""

    linger: float = 0.005
    entry_events: int = 1000
    entry_bytes: int = 65536
    buffer_events: int = 1_000_000
    buffer_bytes: int = 64 * 2**20
    when_full: WhenFull = "block"
    block_timeout: float = 30.0

    def __post_init__(self) -> None:
        if self.when_full not in ("block", "raise", "drop"):
            raise ConfigurationError(f"when_full must be block, raise or drop, not {self.when_full!r}")
        for name in ("linger", "block_timeout"):
            if not 0 <= (seconds := getattr(self, name)) <= 3600:  # noqa: PLR2004  # an hour
                raise ConfigurationError(f"{name} must be 0 to 3,600 seconds, not {seconds}")
        for name, most in (("entry_events", MAX_EVENTS), ("entry_bytes", 2**20)):
            if not 1 <= (value := getattr(self, name)) <= most:
                raise ConfigurationError(f"{name} must be 1 to {most:,}, not {value}")
        if self.buffer_events < self.entry_events or self.buffer_bytes < self.entry_bytes:
            raise ConfigurationError("the buffer must hold at least one entry: raise buffer_events or buffer_bytes")


class Buffer:
    """Holds events between those who emit and the one thread that sends; safe across threads.

    `emitted = appended + held`. Whoever empties it is told by two signals: `wake` (there is something to do) and
    `hurry` (do not linger).
    """

    def __init__(self, settings: BufferSettings) -> None:
        self._settings = settings
        self._entry_events = settings.entry_events
        self._entry_bytes = settings.entry_bytes
        self._buffer_events = settings.buffer_events
        self._buffer_bytes = settings.buffer_bytes
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # room, durability, failure or the end
        self.wake = threading.Event()
        self.hurry = threading.Event()
        self._demand = False  # somebody waits: seal also what is not full
        self._unrouted: list[Event] = []
        self._packs: dict[int, EntryBuilder] = {}  # by route: one that belongs to another log is not found
        self._routes = range(0)
        self._turn = ANYWHERE  # the route of what may be counted anywhere, until its pack is sealed
        self._full: list[tuple[int, EntryBuilder]] = []
        self._cycle = 1
        self._confirmed_cycle = 0
        self._sealed_at = 0.0
        self._held_bytes = 0
        self._failure: TallyError | None = None
        self.emitted = self.appended = self.dropped = 0
        self.spread: frozenset[str] = frozenset()
        """The metrics whose events may be counted in any partition."""
        self.is_closing = False
        self.is_closed = False

    # -- those who emit ---------------------------------------------------------------------------------

    def put(
        self, route: int, metric: str, subject: str, amount: int, at: float, actor: str | None, id_: str | None
    ) -> bool:
        """Take one valid event; return whether it was taken (`drop` is the policy where it was not).

        `route` is one of `Layout.routes`; of any other number, the event is routed when it is sealed.

        Raises:
            BufferFull: there is no room, and the policy is to say so, or waiting took too long.
            ConfigurationError: nothing will be sent any more.
            TallyError: the buffer is closed.
        """
        with self._lock:
            if (
                self.emitted - self.appended >= self._buffer_events
                or self._held_bytes >= self._buffer_bytes
                or self.is_closing
                or self._failure
            ) and not self._make_room():
                return False
            self.emitted += 1
            if route == ANYWHERE and metric in self.spread:  # looked at again: in another log it may not be
                route = self._turn
            pack = self._packs.get(route)
            if pack is None:
                self._unrouted.append((metric, subject, amount, at, actor, id_))
                self._held_bytes += len(subject) + _UNROUTED_BYTES
            else:
                self._held_bytes += pack.add(metric, subject, amount, at, actor, id_)
                if pack.events >= self._entry_events or pack.size >= self._entry_bytes:
                    self._fill(route, pack)
                    self.hurry.set()
        return True

    def wait_until_appended(self, deadline: float | None) -> None:
        """Wait until everything taken before this call is confirmed.

        Raises:
            FlushTimeout: the monotonic second `deadline` has passed.
            ConfigurationError: nothing will be sent any more.
        """
        with self._changed:
            target = self._target()
            while not self._reached(target):
                if self._failure is not None:
                    raise self._failure
                self._request_flush()
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    left = self.emitted - self.appended
                    raise FlushTimeout(f"not everything was appended in time: {left:,} events are left")
                self._changed.wait(remaining)

    def refuse_more(self) -> bool:
        """Take no more events from now on; return whether that was so before the end had come."""
        with self._changed:
            if self.is_closed:
                return False
            self.is_closing = True
            self._changed.notify_all()
            return True

    def close(self) -> None:
        """End: what is held now is held for nobody."""
        with self._changed:
            self.is_closed = True
            self.wake.set()
            self.hurry.set()
            self._changed.notify_all()

    # -- the one who sends ------------------------------------------------------------------------------

    def open(self, layout: Layout) -> None:
        """Learn the partitions; until then everything waits unrouted."""
        with self._lock:
            self._begin(layout)

    def reopen(self, layout: Layout) -> tuple[int, list[tuple[int, EntryBuilder]]]:
        """Learn of another log's partitions; hand over what was packed by those before, all of it, as `seal` does."""
        with self._lock:
            self._route()
            sealed, self._full = self._full, []
            sealed.extend((route % MAX_PARTITIONS, pack) for route, pack in self._packs.items() if pack.events)
            self._begin(layout)
            cycle = self._cycle
            self._cycle += 1
        return cycle, sealed

    def seal(self) -> tuple[int, list[tuple[int, EntryBuilder]]]:
        """Hand over what is to be sent now: full packs, and the others once they have lingered or are asked for.

        Events that may be counted anywhere go to one partition after another, entry by entry: so a subject that gets
        many of them is still one sum in each entry.

        Returns:
            The number of this seal, and partitions with their packs.
        """
        with self._lock:
            self._route()
            sealed, self._full = self._full, []
            now = time.monotonic()
            if self._demand or self.is_closing or now - self._sealed_at >= self._settings.linger:
                sealed.extend((route % MAX_PARTITIONS, pack) for route, pack in self._packs.items() if pack.events)
                self._packs = {route: EntryBuilder() for route in self._packs}
                self._take_turns()
                self._demand = False
                self._sealed_at = now
            else:
                self.wake.set()  # full packs only: the others go on gathering until they have lingered
            cycle = self._cycle
            self._cycle += 1
        return cycle, sealed

    def settle(self, confirmed: Sequence[SealedEntry], cycle: int) -> None:
        """Let go of confirmed entries; `cycle` is the last seal of which nothing is left to confirm."""
        with self._changed:
            for entry in confirmed:
                self.appended += entry.events
                self._held_bytes -= entry.size
            if confirmed or cycle != self._confirmed_cycle:  # who waits demands something each time it is woken
                self._confirmed_cycle = cycle
                self._changed.notify_all()

    def fail(self, error: TallyError) -> None:
        """Tell everybody who waits, and everybody who emits, that nothing will be sent any more."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def sleep(self, seconds: float) -> None:
        """Wait, though not beyond the end."""
        with self._changed:
            if not self.is_closed:
                self._changed.wait_for(lambda: self.is_closed, seconds)

    # -- with the lock held -----------------------------------------------------------------------------

    def _make_room(self) -> bool:
        """Apply `when_full`; tell whether the event may be taken."""
        settings = self._settings
        deadline = time.monotonic() + settings.block_timeout
        while True:
            if self.is_closing:
                raise TallyError("this producer is closed")
            if self._failure is not None:
                raise self._failure
            if self._has_room():
                return True
            if settings.when_full == "drop":
                self.dropped += 1
                return False
            remaining = deadline - time.monotonic()
            if settings.when_full == "raise" or remaining <= 0:
                self.dropped += 1
                raise BufferFull(f"{self._full_text()}: Redis is unreachable or slower than the load")
            self._request_flush()
            self._changed.wait(remaining)

    def _has_room(self) -> bool:
        return self.emitted - self.appended < self._buffer_events and self._held_bytes < self._buffer_bytes

    def _full_text(self) -> str:
        return (
            f"{self.emitted - self.appended:,} events ({self._held_bytes:,} bytes) wait to be sent, the limits are "
            f"{self._buffer_events:,} and {self._buffer_bytes:,}"
        )

    def _target(self) -> int:
        return self._cycle if self._holds_unsealed() else self._cycle - 1

    def _reached(self, target: int) -> bool:
        return self._confirmed_cycle >= target

    def _request_flush(self) -> None:
        self._demand = True
        self.hurry.set()
        self.wake.set()

    def _route(self) -> None:
        """Put what was emitted before the partitions were known where it belongs."""
        for event in self._unrouted:
            partition = partition_for(event, len(self._routes), self.spread, self._turn % MAX_PARTITIONS)
            route = self._routes[partition]
            pack = self._packs[route]
            self._held_bytes += pack.add(*event) - len(event[1]) - _UNROUTED_BYTES
            if pack.events >= self._entry_events or pack.size >= self._entry_bytes:
                self._fill(route, pack)
        self._unrouted = []

    def _begin(self, layout: Layout) -> None:
        self._routes = layout.routes
        self._packs = {route: EntryBuilder() for route in layout.routes}
        self._turn = random.choice(layout.routes)  # noqa: S311  # so that producers do not go round in step

    def _fill(self, route: int, pack: EntryBuilder) -> None:
        self._full.append((route % MAX_PARTITIONS, pack))
        self._packs[route] = EntryBuilder()
        if route == self._turn:
            self._take_turns()

    def _take_turns(self) -> None:
        """Let what may be counted anywhere go to the next partition."""
        if self._routes:
            self._turn = self._routes[(self._turn % MAX_PARTITIONS + 1) % len(self._routes)]

    def _holds_unsealed(self) -> bool:
        return bool(self._unrouted or self._full or any(pack.events for pack in self._packs.values()))


def partition_for(event: Event, partitions: int, spread: Collection[str], turn: int) -> int:
    """Return where an event goes: to the partition whose turn it is, or to its subject's."""
    metric, subject, _, _, _, id_ = event
    return turn if metric in spread and is_spreadable(id_) else partition_of(subject, partitions)
