"""The producer's buffer: a bounded amount of events that are not confirmed yet, packed by partition."""

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
"""Actions of `Producer.emit` when the buffer is full."""

Event = tuple[str, str, int, float, str | None, str | None]
"""An event: metric, subject, amount, time in seconds since 1970, actor, id."""

_UNROUTED_BYTES = 100
"""About how many bytes an event takes, in addition to its subject, while its partition is not known."""


@dataclass(frozen=True)
class BufferSettings:
    """Limits of an entry and of the buffer, and the action when the buffer is full; see also `Producer`.

    Attributes:
        linger: Seconds that an event may wait for others to share its entry, 0 to 3,600.
        entry_events: Events at which an entry is full, at most 1,000,000.
        entry_bytes: About the bytes at which an entry is full, at most 1 MiB.
        buffer_events: Most events that are not confirmed; at least `entry_events`.
        buffer_bytes: About the most bytes that are not confirmed; at least `entry_bytes`.
        when_full: Action when the buffer is full: `block`, `raise` or `drop`.
        block_timeout: Most seconds that `block` waits for room, 0 to 3,600.

    Raises:
        ConfigurationError: a setting has a value that is not allowed.
    """

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
    """Buffers events between the threads that emit them and the one thread that sends them; safe across threads.

    Events are packed by partition. A pack is an entry that is being filled; sealing a pack ends it, so that it can be
    sent. The emitting threads call `put` and `wait_until_appended`. The sending thread calls `open` once, then `seal`
    to take out packs, and `settle` when they are confirmed. To end, call `refuse_more` and `close`.

    Attributes:
        wake: Set when the sending thread has something to do; `put` does not set it when it adds an event, its caller
            must.
        hurry: Set when the sending thread must not linger.
        emitted: Events that were added: the appended ones and those still in the buffer.
        appended: Events that are confirmed, or given up because it is not known whether the server has them.
        dropped: Events for which there was no room: dropped, or refused with `BufferFull`.
        is_closing: Whether `refuse_more` was called: then further events are refused.
        is_closed: Whether `close` was called: then the sending thread must end.
    """

    def __init__(self, settings: BufferSettings) -> None:
        self._settings = settings
        self._entry_events = settings.entry_events
        self._entry_bytes = settings.entry_bytes
        self._buffer_events = settings.buffer_events
        self._buffer_bytes = settings.buffer_bytes
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # notified of room, confirmed entries, failure and end
        self.wake = threading.Event()
        self.hurry = threading.Event()
        self._demand = False  # a caller waits: seal also packs that are not full
        self._unrouted: list[Event] = []
        self._packs: dict[int, EntryBuilder] = {}  # by route; has no routes of earlier topics
        self._routes = range(0)
        self._turn = ANYWHERE  # the route of spread events, until the pack of that route is sealed
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

    # -- for the threads that emit ----------------------------------------------------------------------

    def put(
        self, route: int, metric: str, subject: str, amount: int, at: float, actor: str | None, id_: str | None
    ) -> bool:
        """Add one valid event; return `False` if it was dropped because the buffer is full and `when_full` is `drop`.

        If the buffer is full and `when_full` is `block`, wait for room, at most `block_timeout` seconds. After `True`,
        the caller must set `wake`, or the event may not be sent. An event for which there is no room is counted in
        `dropped`.

        `route` is one of `Layout.routes` of the present topic, or `ANYWHERE` for a spread event. An event with another
        route gets its partition when it is sealed. `at` is in seconds since 1970.

        Raises:
            BufferFull: the buffer is full and `when_full` is `raise`, or `block` has waited too long.
            ConfigurationError: the sending thread has failed, and no event will be sent any more.
            TallyError: `refuse_more` was called.
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
            if route == ANYWHERE and metric in self.spread:  # again: may not be spread in the present topic
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
        """Wait until every event added before this call is confirmed, at most until the monotonic second `deadline`.

        With `None`, wait without limit. If they are confirmed already, return at once, also after the deadline. The
        events are sent without waiting for `linger`. Events that were given up count as confirmed.

        Raises:
            FlushTimeout: the deadline has passed, or `close` was called before the events were confirmed.
            ConfigurationError: the sending thread has failed, and some of the events will not be sent any more.
        """
        with self._changed:
            target = self._target()
            while not self._reached(target):
                if self._failure is not None:
                    raise self._failure
                if self.is_closed:
                    left = self.emitted - self.appended
                    raise FlushTimeout(f"the producer was closed before all events were appended: {left:,} are missing")
                self._request_flush()
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    left = self.emitted - self.appended
                    raise FlushTimeout(f"the flush timed out: {left:,} events are not appended yet")
                self._changed.wait(remaining)

    def refuse_more(self) -> bool:
        """Make `put` raise an error from now on, and return `True`.

        If `close` was called before, change nothing and return `False`. After this call, `Buffer.seal` takes out all
        packs, without waiting for `linger`.
        """
        with self._changed:
            if self.is_closed:
                return False
            self.is_closing = True
            self._changed.notify_all()
            return True

    def hasten(self) -> None:
        """Wake the sending thread, and end its lingering: set `wake` and `hurry`."""
        self.wake.set()
        self.hurry.set()

    def close(self) -> None:
        """Tell the sending thread to end, and return at once.

        If the thread is making a pass, it ends after that; if it waits for events, it makes one more; if it waits after
        a pass without success, it makes none. It does not send events that are in the buffer after that. A
        `wait_until_appended` that still waits raises `FlushTimeout` at once. This alone does not make `put` refuse
        events; call `refuse_more` before.
        """
        with self._changed:
            self.is_closed = True
            self.hasten()
            self._changed.notify_all()

    # -- for the thread that sends ----------------------------------------------------------------------

    def open(self, layout: Layout) -> None:
        """Set the first layout whose partitions events are packed for; earlier events get theirs at the next `seal`.

        For another layout, call `reopen`: a second `open` would lose the events that are packed.
        """
        with self._lock:
            self._begin(layout)

    def reopen(self, layout: Layout) -> tuple[int, list[tuple[int, EntryBuilder]]]:
        """Set the layout of another topic; take out all packs for the earlier partitions, full or not.

        They have all events in the buffer that were not sealed before. Call `open` before the first call.

        Returns:
            As `seal`: the number of this seal, and pairs of partition (in the earlier layout) and pack.
        """
        with self._lock:
            self._route()
            sealed, self._full = self._full, []
            sealed.extend((route % MAX_PARTITIONS, pack) for route, pack in self._packs.items() if pack.events)
            self._begin(layout)
            cycle = self._cycle
            self._cycle += 1
        return cycle, sealed

    def seal(self) -> tuple[int, list[tuple[int, EntryBuilder]]]:
        """Take out the packs to send now: all if `linger` has passed, a caller waits or the buffer closes, else full.

        Return at once, also if there is nothing to take out. `linger`, in seconds, begins when all packs were last
        taken out by this method. If only full packs may be taken out now, set `wake`: then the thread, which itself
        lingers after a wake-up, calls this again for the others. Only the sending thread calls this, after `open`. A
        `Buffer` raises no error here; a `Spool` does.

        Spread events all go to one partition until its pack is sealed, then to the next partition, so that a subject
        with many events is still one sum in each entry.

        Returns:
            The number of this seal (its cycle; 1 for the first, also if nothing is taken out), and pairs of partition
            and pack; a partition may occur several times.
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
                self.wake.set()  # only full packs now: the others gather more events until `linger` has passed
            cycle = self._cycle
            self._cycle += 1
        return cycle, sealed

    def settle(self, confirmed: Sequence[SealedEntry], cycle: int) -> None:
        """Count the events of confirmed entries as appended, free their room, and wake the callers that wait.

        Pass each entry once, when it is first confirmed or given up. `cycle` is the number of the last seal up to which
        all entries are confirmed.
        """
        with self._changed:
            for entry in confirmed:
                self.appended += entry.events
                self._held_bytes -= entry.size
            if confirmed or cycle != self._confirmed_cycle:  # only then: a waiter requests a flush whenever it wakes
                self._confirmed_cycle = cycle
                self._changed.notify_all()

    def fail(self, error: TallyError) -> None:
        """Make every call that adds an event or waits for an unconfirmed one raise `error`, also those that wait now.

        After `refuse_more`, a call that adds an event still raises the error for a closed producer. The sending thread
        calls this before it ends; the events in the buffer stay there.
        """
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds` seconds, or until `close` is called; return at once if it was called before."""
        with self._changed:
            if not self.is_closed:
                self._changed.wait_for(lambda: self.is_closed, seconds)

    # -- called with the lock ---------------------------------------------------------------------------

    def _make_room(self) -> bool:
        """Return `True` when the buffer has room; if it is full, wait, return `False` or raise, as `put` does.

        The caller must have the lock, which is free during the wait. If the producer is closed or has failed, raise
        that error. An event that is refused because the buffer is full is counted as dropped.
        """
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
        self.hasten()

    def _route(self) -> None:
        """Find the partition of each event that has none yet, and move the event to the pack of that partition.

        A pack that is full then is put among the full packs, which `seal` takes out, and a new pack takes its place.
        """
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
        self._turn = random.choice(layout.routes)  # noqa: S311  # producers begin at different partitions

    def _fill(self, route: int, pack: EntryBuilder) -> None:
        self._full.append((route % MAX_PARTITIONS, pack))
        self._packs[route] = EntryBuilder()
        if route == self._turn:
            self._take_turns()

    def _take_turns(self) -> None:
        """Choose the next partition for spread events."""
        if self._routes:
            self._turn = self._routes[(self._turn % MAX_PARTITIONS + 1) % len(self._routes)]

    def _holds_unsealed(self) -> bool:
        return bool(self._unrouted or self._full or any(pack.events for pack in self._packs.values()))


def partition_for(event: Event, partitions: int, spread: Collection[str], turn: int) -> int:
    """Return the partition of an event: `turn` if it is spread (and has no id), otherwise its subject's partition."""
    metric, subject, _, _, _, id_ = event
    return turn if metric in spread and is_spreadable(id_) else partition_of(subject, partitions)
