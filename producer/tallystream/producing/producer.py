"""The producer: `emit` returns at once, a thread in the background packs, appends and retries."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tallystream.client.connect import DEFAULT_URL, connect
from tallystream.client.durability import Durability, DurabilityCheck
from tallystream.errors import EventError
from tallystream.producing.buffer import Buffer, BufferSettings, WhenFull
from tallystream.producing.counted import wait_until_counted
from tallystream.producing.decider import Decider, Decision
from tallystream.producing.lifetime import follow_process
from tallystream.producing.sender import Sender
from tallystream.producing.spool.buffer import Spool
from tallystream.producing.spool.settings import SpoolSettings, Sync
from tallystream.producing.stats import ProducerStats
from tallystream.producing.validation import EventValidator
from tallystream.wire import event as rule

if TYPE_CHECKING:
    import os
    from types import TracebackType
    from typing import Self


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
        durability: When an event counts as appended, and a decision as made: once it is in the server's `memory`, on a
            `replica`, or on the server's disk (`fsync`). What is not confirmed is sent again. See docs/durability.md.
        spool: A folder on a local disk. Events are written there before `emit` returns, so they survive the death of
            this process and an outage of Redis of any length; what a dead process has left there is sent by
            whoever uses the folder next. One folder for each deployment; any number of processes. See
            docs/durability.md.
        spool_bytes: The most bytes that this producer may have in the spool; then `when_full` holds.
        spool_sync: `os`: an event is with the operating system when `emit` returns. `disk`: it is on disk, and survives
            a power cut as well; that takes as long as the disk takes for each event.
        partitions: The number of partitions, where the caller wants it checked; `None` takes what is stored.
        namespace: The first part of every key.

    Raises:
        ConfigurationError: the URL or another setting cannot be used.
    """

    def __init__(  # noqa: PLR0913  # each is a setting with a default, and given by name
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
        durability: Durability = "memory",
        spool: str | os.PathLike[str] | None = None,
        spool_bytes: int = 256 * 2**20,
        spool_sync: Sync = "os",
        partitions: int | None = None,
        namespace: str = "tally",
    ) -> None:
        self._settings = BufferSettings(
            linger, entry_events, entry_bytes, buffer_events, buffer_bytes, when_full, block_timeout
        )
        self._durability = DurabilityCheck(durability)
        self._url = url
        self._partitions = partitions
        self._namespace = namespace
        self._spool = None if spool is None else SpoolSettings(Path(spool), spool_bytes, spool_sync, namespace)
        self._begin()
        if self._spool is not None and any(folder.is_dir() for folder in self._spool.folder.iterdir()):
            self._sender.start()  # somebody has left something, or is at work
        follow_process(self, restart=Producer._restart, close=Producer.close)

    def _restart(self) -> None:
        """Start empty in the child after a fork."""
        self._sender.abandon()
        self._begin()

    def _begin(self) -> None:
        self._client = connect(self._url)
        self._validator = EventValidator(self._client, self._partitions, self._namespace)
        self._buffer = Buffer(self._settings) if self._spool is None else Spool(self._settings, self._spool)
        self._wake = self._buffer.wake
        self._sender = Sender(
            self._client, self._validator, self._buffer, self._settings.linger, self._durability, self._spool
        )
        self._decider: Decider | None = None

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
            SpoolError: the spool cannot be written; the event was not taken.
            ConfigurationError: this producer cannot work with what is stored in Redis.
            TallyError: the producer is closed.
        """
        # The common case costs three look-ups: text that has been checked before is not checked again.
        validator = self._validator
        route = validator.known.get(subject) if subject.__class__ is str else None
        if route is None:
            subject, route = validator.subject(subject)
        if metric not in validator.metrics:
            self._admit_metric(metric)
        if amount.__class__ is not int or not -rule.MAX_AMOUNT <= amount <= rule.MAX_AMOUNT:
            rule.check_amount(amount)
        if metric in validator.needs_check:
            route = validator.admit(metric, amount, actor, id, route)
        now = time.time()
        if at is None:
            at = now
        else:
            rule.check_at(at, now)
        if actor is not None:
            actor = rule.check_text("actor", actor, rule.MAX_ACTOR_BYTES)
        if id is not None:
            id = rule.check_text("id", id, rule.MAX_ID_BYTES)  # noqa: A001
        if self._buffer.put(route, metric, subject, amount, at, actor, id) and not self._wake.is_set():
            self._sender.start()

    def decide(
        self,
        metric: str,
        subject: str,
        amount: int = 1,
        *,
        actor: str | None = None,
        at: float | None = None,
        id: str | None = None,  # noqa: A002  # the event's own word
    ) -> Decision:
        """Count one event now and return the verdict, in one round trip: for limits and votes.

        The event is in the stream like an emitted one, and a replay counts it the same. What was emitted before
        and is not counted yet is not in the verdict.

        Raises:
            EventError: the event breaks a rule; it was not counted.
            ConfigurationError: no worker has published the rules yet.
            Backlogged: the stream has as many entries as it may; nothing was counted.
            Unconfirmed: it was counted, and that was not confirmed in time.
            redis.RedisError: it is not known whether it was counted; see `Decider`.
        """
        event = rule.Event(metric, subject, amount, actor, at, id)
        decider = self._decider
        if decider is None or not self._validator.is_fresh:
            deployment = self._validator.deployment
            if deployment is None or deployment.declared is None:
                self._validator.forget()  # a worker may have published them since
            deployment = self._validator.refresh()
            if decider is None or decider.deployment.rules != deployment.rules:
                decider = self._decider = Decider(self._client, deployment, self._durability)
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
        self._buffer.wait_until_appended(deadline)
        if wait == "counted" and (appender := self._sender.appender) is not None:  # else nothing was ever appended
            wait_until_counted(self._client, self._namespace, appender, deadline)

    def close(self, timeout: float = 5.0) -> None:
        """Deliver what is held, then stop; further calls change nothing.

        Raises:
            FlushTimeout: something could not be delivered within `timeout` seconds, and is lost with this producer, or
                waits in its spool.
        """
        if not self._buffer.refuse_more():
            return
        try:
            self.flush(timeout)
        finally:
            self._buffer.close()
            self._sender.join(max(timeout, 1.0))
            self._sender.release()
            self._client.close()

    @property
    def stats(self) -> ProducerStats:
        """What became of the events so far."""
        buffer, appender = self._buffer, self._sender.appender
        appended, emitted = buffer.appended, buffer.emitted
        return ProducerStats(
            emitted=emitted,
            appended=appended,
            buffered=emitted - appended,
            dropped=buffer.dropped,
            resent_entries=0 if appender is None else appender.resent,
            rewound_streams=0 if appender is None else appender.rewound,
            lost_entries=0 if appender is None else appender.lost,
            backlogged=0 if appender is None else appender.backlogged,
            unconfirmed=0 if appender is None else appender.unconfirmed,
            spooled_bytes=buffer.size if isinstance(buffer, Spool) else 0,
            adopted=self._sender.adopted_events,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _admit_metric(self, metric: str) -> None:
        try:
            self._validator.metric(metric)
        except EventError:
            self._sender.start()  # it may have been declared since: look before the next refusal
            raise
