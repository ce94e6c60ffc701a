"""The producer: `emit` returns at once, a thread in the background packs, appends and retries."""

from __future__ import annotations

import atexit
import os
import random
import threading
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from redis.exceptions import RedisError

from tallystream import event as rule
from tallystream.append import Appender, Entry
from tallystream.codec import MAX_EVENTS, Pack
from tallystream.connection import DEFAULT_URL, connect, is_refusal
from tallystream.decide import Decider, Outcome
from tallystream.errors import BufferFull, ConfigurationError, EventError, FlushTimeout, TallyError
from tallystream.keys import partition_of
from tallystream.meta import Meta, establish
from tallystream.position import parse_id, parse_position, position_commands

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

WhenFull = Literal["block", "raise", "drop"]

_KNOWN_SUBJECTS: Final = 100_000
"""Subjects remembered as checked, with their partition; beyond it the memory is begun anew."""

_RULES_AGE: Final = 10.0
"""Seconds after which the published rules are read again."""

_BACKOFF: Final = (0.05, 2.0)
"""Seconds to wait after the first failure, and at the most."""

_COUNTED_POLL: Final = 0.003
"""Seconds between looks at how far the worker has come."""


@dataclass(frozen=True)
class ProducerStats:
    """What became of the events given to one producer so far.

    `emitted = appended + buffered`; dropped ones were never taken in.
    """

    emitted: int
    appended: int
    buffered: int
    dropped: int
    resent_entries: int
    rewound_streams: int


class Producer:
    """Counts events without making the caller wait.

    Safe across threads and after `fork` (the child starts empty; what the parent holds is the parent's to send).
    Reconnects for as long as it lives. At interpreter exit it tries for five seconds to deliver what it holds.

    Args:
        url: Where Redis or Valkey is: `redis://`, `rediss://` or `unix://`.
        linger: Seconds that an event may wait for others to share its entry; also the most that is lost when the
            process is killed.
        entry_events: An entry is sent as soon as it holds this many events,
        entry_bytes: or about this many bytes.
        buffer_events: The most events held while they cannot be sent,
        buffer_bytes: and about the most bytes.
        when_full: What `emit` does when the buffer is full: `block` until there is room (for `block_timeout`
            seconds, then as `raise`), `raise` `BufferFull`, or `drop` the event; each is counted in `stats`.
        block_timeout: Seconds that `block` waits.
        partitions: The number of partitions, where the caller wants it checked; `None` takes what is stored.
        namespace: The first part of every key.

    Raises:
        ConfigurationError: the URL or another setting cannot be used.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        linger: float = 0.005,
        entry_events: int = 1000,
        entry_bytes: int = 65536,
        buffer_events: int = 1_000_000,
        buffer_bytes: int = 64 * 2**20,
        when_full: WhenFull = "block",
        block_timeout: float = 30.0,
        partitions: int | None = None,
        namespace: str = "tally",
    ) -> None:
        if when_full not in ("block", "raise", "drop"):
            raise ConfigurationError(f"when_full must be block, raise or drop, not {when_full!r}")
        for name, value in (("linger", linger), ("block_timeout", block_timeout)):
            if not 0 <= value <= 3600:  # noqa: PLR2004  # an hour
                raise ConfigurationError(f"{name} must be 0 to 3,600 seconds, not {value}")
        for name, value, most in (("entry_events", entry_events, MAX_EVENTS), ("entry_bytes", entry_bytes, 2**20)):
            if not 1 <= value <= most:
                raise ConfigurationError(f"{name} must be 1 to {most:,}, not {value}")
        if buffer_events < entry_events or buffer_bytes < entry_bytes:
            raise ConfigurationError("the buffer must hold at least one entry: raise buffer_events or buffer_bytes")
        self._url = url
        self._linger = linger
        self._entry_events = entry_events
        self._entry_bytes = entry_bytes
        self._buffer_events = buffer_events
        self._buffer_bytes = buffer_bytes
        self._when_full = when_full
        self._block_timeout = block_timeout
        self._partitions = partitions
        self._namespace = namespace
        self._begin()
        _producers.add(self)
        atexit.register(_close_at_exit, weakref.ref(self))

    def _begin(self) -> None:
        """Start empty: at construction, and in the child after a fork."""
        self._client = connect(self._url)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # room, confirmation, failure or the end
        self._wake = threading.Event()  # there is something to do
        self._hurry = threading.Event()  # do not linger
        self._demand = False  # somebody waits: seal also what is not full
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._meta: Meta | None = None
        self._meta_read = 0.0
        self._appender: Appender | None = None
        self._known: dict[str, int] = {}
        self._metrics: set[str] = set()
        self._picky: set[str] = set()  # metrics whose rules have no place for some events
        self._decider: Decider | None = None
        # Until the number of partitions is known, everything waits in one pack per would-be entry, unrouted.
        self._unrouted: list[tuple[str, str, int, float, str | None, str | None]] = []
        self._packs: list[Pack] = []
        self._full: list[tuple[int, Pack]] = []
        self._cycle = 1
        self._sealed_at = 0.0
        self._confirmed_cycle = 0
        self._emitted = self._appended = self._dropped = 0
        self._held_bytes = 0
        self._closing = False
        self._closed = False
        self._failure: TallyError | None = None

    # -- the caller's side ------------------------------------------------------------------------------

    def emit(
        self,
        metric: str,
        subject: str,
        amount: int = 1,
        *,
        actor: str | None = None,
        at: float | None = None,
        id: str | None = None,  # noqa: A002  # the event's own word
    ) -> None:
        """Take one event and return; see `Event` for the arguments.

        Raises:
            EventError: the event breaks a rule; it was not taken.
            BufferFull: there is no room, and `when_full` says to raise (or blocking took too long).
            ConfigurationError: this producer cannot work with what is stored in Redis.
            TallyError: the producer is closed.
        """
        # The common case costs three look-ups: text that has been checked before is not checked again.
        partition = self._known.get(subject) if subject.__class__ is str else None
        if partition is None:
            subject, partition = self._admit(subject)
        if metric not in self._metrics:
            self._admit_metric(metric)
        if amount.__class__ is not int or not -rule.MAX_AMOUNT <= amount <= rule.MAX_AMOUNT:
            rule.check_amount(amount)
        if metric in self._picky:
            self._refuse(metric, amount, actor)
        now = time.time()
        if at is None:
            at = now
        else:
            rule.check_at(at, now)
        if actor is not None:
            actor = rule.check_text("actor", actor, rule.MAX_ACTOR_BYTES)
        if id is not None:
            id = rule.check_text("id", id, rule.MAX_ID_BYTES)  # noqa: A001
        with self._lock:
            held = self._emitted - self._appended
            if held >= self._buffer_events or self._held_bytes >= self._buffer_bytes or self._closing or self._failure:
                if not self._make_room():
                    return
                partition = self._known.get(subject, partition)
            self._emitted += 1
            if partition < 0:
                self._unrouted.append((metric, subject, amount, at, actor, id))
                self._held_bytes += len(subject) + 100
            else:
                pack = self._packs[partition]
                self._held_bytes += pack.add(metric, subject, amount, at, actor, id)
                if pack.events >= self._entry_events or pack.size >= self._entry_bytes:
                    self._full.append((partition, pack))
                    self._packs[partition] = Pack()
                    self._hurry.set()
        if not self._wake.is_set():
            self._start()

    def decide(
        self,
        metric: str,
        subject: str,
        amount: int = 1,
        *,
        actor: str | None = None,
        at: float | None = None,
        id: str | None = None,  # noqa: A002  # the event's own word
    ) -> Outcome:
        """Count one event now and return the verdict, in one round trip: for limits and votes.

        The event is in the stream like an emitted one, and a replay counts it the same. What was emitted before
        and is not counted yet is not in the verdict.

        Raises:
            EventError: the event breaks a rule; it was not counted.
            ConfigurationError: no worker has published the rules yet.
            redis.RedisError: it is not known whether it was counted; see `Decider`.
        """
        event = rule.Event(metric, subject, amount, actor, at, id)
        decider = self._decider
        if decider is None or time.monotonic() - self._meta_read > _RULES_AGE:
            if self._meta is None or self._meta.rules is None:
                self._meta_read = 0.0  # a worker may have published them since
            self._connect()
            assert self._meta is not None  # noqa: S101  # _connect read it
            decider = self._decider = self._decider or Decider(self._client, self._meta)
        return decider(event)

    def flush(self, timeout: float | None = None, *, wait: Literal["appended", "counted"] = "appended") -> None:
        """Wait until everything emitted before this call is in the stream, or with `wait="counted"` in the totals.

        Args:
            timeout: Seconds to wait at most; `None` waits for as long as it takes.
            wait: `appended` (durable as far as the server's settings go) or `counted` (readable).

        Raises:
            FlushTimeout: not in time; the events stay buffered and are still sent.
            ConfigurationError: this producer cannot work with what is stored in Redis.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            target = self._cycle if self._holds_unsealed() else self._cycle - 1
            while self._confirmed_cycle < target:
                if self._failure is not None:
                    raise self._failure
                self._demand = True
                self._hurry.set()
                if not self._wake.is_set():
                    self._start()
                if not self._changed.wait(_remaining(deadline, "appended", self._emitted - self._appended)):
                    continue  # the next round's _remaining raises
            appender = self._appender
            last_ids = [] if appender is None else list(appender.last_ids)
        if wait == "counted":
            self._wait_until_counted(last_ids, deadline)

    def close(self, timeout: float = 5.0) -> None:
        """Deliver what is held, then stop; further calls change nothing.

        Raises:
            FlushTimeout: something could not be delivered within `timeout` seconds, and is lost with this producer.
        """
        with self._changed:
            if self._closed:
                return
            self._closing = True
            self._changed.notify_all()
        try:
            self.flush(timeout)
        finally:
            with self._changed:
                self._closed = True
                thread = self._thread
                self._wake.set()
                self._hurry.set()
                self._changed.notify_all()
            if thread is not None:
                thread.join(timeout=max(timeout, 1.0))
            self._client.close()

    @property
    def stats(self) -> ProducerStats:
        """What became of the events so far."""
        with self._lock:
            appender = self._appender
            return ProducerStats(
                emitted=self._emitted,
                appended=self._appended,
                buffered=self._emitted - self._appended,
                dropped=self._dropped,
                resent_entries=0 if appender is None else appender.resent,
                rewound_streams=0 if appender is None else appender.rewound,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- taking events in -------------------------------------------------------------------------------

    def _admit(self, subject: str) -> tuple[str, int]:
        """Check a subject that is not remembered; return its normal form and partition (-1: not known yet)."""
        given, subject = subject, rule.check_text("subject", subject, rule.MAX_SUBJECT_BYTES)
        with self._lock:
            if self._meta is None:
                return subject, -1
            partition = partition_of(subject, self._meta.layout.partitions)
            if len(self._known) >= _KNOWN_SUBJECTS:
                self._known = {}
            # Only the normal form is remembered: a spelling that needs normalising must come here each time.
            if given is subject or given == subject:
                self._known[subject] = partition
            return subject, partition

    def _admit_metric(self, metric: str) -> None:
        rule.check_metric(metric)
        meta = self._meta
        if meta is not None and meta.rules is not None:
            try:
                meta.rules.refuse_undeclared(metric)
            except EventError:
                self._meta_read = 0.0  # it may have been declared since: look before the next refusal
                self._start()
                raise
            declared = meta.rules.metric[metric]
            if declared.once is not None or declared.limit is not None or not declared.exact:
                self._picky.add(metric)
            self._metrics.add(metric)

    def _refuse(self, metric: str, amount: int, actor: str | None) -> None:
        meta = self._meta
        if meta is not None and meta.rules is not None:
            meta.rules.refuse(metric, amount, actor)

    def _make_room(self) -> bool:
        """Apply `when_full`; called with the lock held. Tell whether the event may be taken."""
        deadline = time.monotonic() + self._block_timeout
        while True:
            if self._closing:
                raise TallyError("this producer is closed")
            if self._failure is not None:
                raise self._failure
            held = self._emitted - self._appended
            if held < self._buffer_events and self._held_bytes < self._buffer_bytes:
                return True
            if self._when_full == "drop":
                self._dropped += 1
                return False
            remaining = deadline - time.monotonic()
            if self._when_full == "raise" or remaining <= 0:
                self._dropped += 1
                raise BufferFull(
                    f"{held:,} events ({self._held_bytes:,} bytes) wait to be sent, the limits are "
                    f"{self._buffer_events:,} and {self._buffer_bytes:,}: Redis is unreachable or slower than the load"
                )
            self._demand = True
            self._hurry.set()
            self._start()
            self._changed.wait(remaining)

    def _start(self) -> None:
        """Wake the flusher, starting it where there is none: lazily, so that a fork before the first emit is free."""
        self._wake.set()
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="tallystream-producer", daemon=True)
                    thread.start()
                    self._thread = thread

    # -- the flusher's side -----------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        while not self._closed:
            self._wake.wait()
            if not self._closing:
                self._hurry.wait(self._linger)
            self._wake.clear()
            self._hurry.clear()
            try:
                self._connect()
                progress = self._seal_and_send()
                failures = 0 if progress else failures + 1
            except ConfigurationError as error:
                self._fail(error)
                return
            except RedisError as error:
                if is_refusal(error):
                    self._fail(ConfigurationError(f"Redis refuses this producer: {error}"))
                    return
                failures += 1
            if failures:
                first, most = _BACKOFF
                # Jitter, so that a fleet of producers does not come back in step.
                pause = min(most, first * 2 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0)  # noqa: S311
                with self._changed:
                    if not self._closed:
                        self._changed.wait_for(lambda: self._closed, pause)
                self._wake.set()

    def _connect(self) -> None:
        if self._meta is None or self._meta_read == 0 or time.monotonic() - self._meta_read > _RULES_AGE:
            meta = establish(self._client, self._partitions, self._namespace)
            with self._lock:
                self._meta_read = time.monotonic()
                if self._appender is None:
                    self._appender = Appender(self._client, meta.layout)
                    self._packs = [Pack() for _ in meta.layout.keys]
                if self._meta is not None and meta.layout != self._meta.layout:
                    raise ConfigurationError("the number of partitions changed under this producer: start it anew")
                if self._meta is None or meta.rules != self._meta.rules:
                    self._metrics = set()
                    self._picky = set()
                    self._decider = None
                self._meta = meta

    def _seal_and_send(self) -> bool:
        """Seal what has gathered, send a burst; tell whether the server took it."""
        appender = self._appender
        assert appender is not None  # noqa: S101  # _connect made it
        with self._lock:
            self._route()
            sealed, self._full = self._full, []
            now = time.monotonic()
            if self._demand or self._closing or now - self._sealed_at >= self._linger:
                sealed.extend((i, pack) for i, pack in enumerate(self._packs) if pack.events)
                self._packs = [Pack() for _ in self._packs]
                self._demand = False
                self._sealed_at = now
            else:
                self._wake.set()  # full packs only: the others go on gathering until they have lingered
            cycle = self._cycle
            self._cycle += 1
        for partition, pack in sealed:
            appender.push(partition, Entry(cycle, pack.events, pack.size, pack.seal()))
        confirmed, error = appender.send()
        with self._changed:
            self._appended += sum(entry.events for entry in confirmed)
            self._held_bytes -= sum(entry.size for entry in confirmed)
            oldest = appender.oldest_cycle
            self._confirmed_cycle = cycle if oldest is None else oldest - 1
            self._changed.notify_all()
        if oldest is not None:
            self._wake.set()
            self._hurry.set()
        if error is not None and is_refusal(error):
            raise error
        return bool(confirmed) or oldest is None

    def _route(self) -> None:
        """Put what was emitted before the partitions were known where it belongs; called with the lock held."""
        assert self._meta is not None  # noqa: S101  # _connect read it
        for event in self._unrouted:
            partition = partition_of(event[1], self._meta.layout.partitions)
            pack = self._packs[partition]
            self._held_bytes += pack.add(*event) - len(event[1]) - 100
            if pack.events >= self._entry_events or pack.size >= self._entry_bytes:
                self._full.append((partition, pack))
                self._packs[partition] = Pack()
        self._unrouted = []

    def _fail(self, error: TallyError) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    # -- waiting ----------------------------------------------------------------------------------------

    def _holds_unsealed(self) -> bool:
        return bool(self._unrouted or self._full or any(pack.events for pack in self._packs))

    def _wait_until_counted(self, last_ids: list[str | None], deadline: float | None) -> None:
        assert self._meta is not None or not last_ids  # noqa: S101  # entries were appended through it
        for partition, last_id in enumerate(last_ids):
            if last_id is None or self._meta is None:
                continue
            keys = self._meta.layout.keys[partition]
            while True:
                with self._client.pipeline(transaction=False) as pipeline:
                    for command in position_commands(keys):
                        pipeline.execute_command(*command)
                    position = parse_position(pipeline.execute(raise_on_error=False))
                if parse_id(position.as_of) >= parse_id(last_id):
                    break
                time.sleep(min(_COUNTED_POLL, _remaining(deadline, "counted", position.lag or 0) or _COUNTED_POLL))


def _remaining(deadline: float | None, wanted: str, left: int) -> float | None:
    if deadline is None:
        return None
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        unit = "events" if wanted == "appended" else "entries"
        raise FlushTimeout(f"not everything was {wanted} in time: {left:,} {unit} are left")
    return remaining


_producers: Final[weakref.WeakSet[Producer]] = weakref.WeakSet()


def _begin_in_child() -> None:
    for producer in list(_producers):
        producer._begin()  # noqa: SLF001  # the same module


def _close_at_exit(reference: weakref.ref[Producer]) -> None:
    producer = reference()
    if producer is not None:
        try:
            producer.close()
        except (TallyError, RedisError) as error:
            # There is nobody left to catch it: say it where a person will see it.
            os.write(2, f"tallystream: {error}\n".encode())


os.register_at_fork(after_in_child=_begin_in_child)
