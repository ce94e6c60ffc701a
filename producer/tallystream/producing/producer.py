"""The producer: `emit` only adds an event to a buffer; a background thread packs, appends and retries."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tallystream.client.connect import DEFAULT_URL, connect
from tallystream.client.durability import Durability, DurabilityCheck
from tallystream.errors import BufferFull, EventError, FlushTimeout, TallyError
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

    from tallystream.deployment import Deployment


class Producer:
    """Counts events: `emit` returns without waiting for the server, unless the buffer is full; `decide` waits.

    `flush` waits until the events are sent, `close` also stops the producer, and `stats` has its counts. Safe across
    threads and after `fork`: the child starts with an empty buffer, and the parent sends its own events. Reconnects
    without limit. The constructor does not wait for the server. As a context manager, it calls `close` at the end.

    Call `close` at the end. If `close` was not called, the producer tries for five seconds at interpreter exit to
    deliver the buffered events, unless it was garbage-collected before. A process that ends without running its exit
    handlers (`os._exit`, a signal without a handler, most children of `multiprocessing`) does not try this.

    Args:
        url: URL of Redis or Valkey: `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `redis+cluster://`.
        linger: Seconds that an event may wait for others to share its entry. If a process without a spool is killed,
            its buffered events are lost: usually those of the last `linger` seconds, and during an outage of the server
            all since the outage began.
        entry_events: Events at which an entry is sent without waiting for `linger`.
        entry_bytes: About the most bytes of an entry. Without a spool, an entry with so many is sent without waiting
            for `linger`.
        buffer_events: Most events in the buffer (not confirmed yet); not used with a spool.
        buffer_bytes: About the most bytes in the buffer; not used with a spool.
        when_full: Action of `emit` when the buffer is full. `block`: wait for room, and raise `BufferFull` after
            `block_timeout` seconds. `raise`: raise `BufferFull` at once. `drop`: return without adding the event. In
            all three cases, `stats.dropped` counts the events that were not added.
        block_timeout: Most seconds that `block` waits.
        durability: When an event counts as appended, and a decision as made: once it is in the server's `memory`, on a
            `replica`, or on the server's disk (`fsync`). Unconfirmed entries are sent again. See docs/durability.md.
        spool: A folder on a local disk. Events are written there before `emit` returns, so they survive a crash of
            this process and an outage of any length. A producer also sends the events that dead processes have left in
            its folder: a new producer at once, a running one after its first `emit`. Use one folder for each deployment
            and namespace, with any number of processes. Not for Windows. See docs/durability.md.
        spool_bytes: About the most bytes of this producer in the spool, at least 1 MiB; when they are reached,
            `when_full` applies.
        spool_sync: `os`: `emit` returns when the operating system has the event. `disk`: `emit` returns when the event
            is on disk, so that it also survives a power cut; each event then waits for the disk.
        partitions: Expected number of partitions. If the deployment has another number when the producer first reads
            it, this is an error. A new deployment gets this number. A later repartition is no error. `None`: accept the
            stored number; a new deployment gets 4.
        namespace: First part of every key.

    Raises:
        ConfigurationError: the URL or another setting is invalid, or the folder of the spool cannot be written.
            `partitions` is compared with the deployment only later: then `emit`, `decide`, `flush` or `close` raises
            this error.
        OSError: the folder of the spool cannot be listed.
    """

    def __init__(  # noqa: PLR0913  # every argument is a setting with a default, passed by name
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
            self._sender.start()  # a dead process may have left events there
        follow_process(self, restart=Producer._restart, close=Producer.close)

    def _restart(self) -> None:
        """Begin again with an empty buffer in the child process after a fork, also if the producer was closed before.

        The child gets its own client, and closes its copies of the file descriptors of the parent's spool. The sender
        thread of the child starts with its first event.
        """
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
        id: str | None = None,  # noqa: A002  # the name of the event's field
    ) -> None:
        """Add one event to the buffer; the background thread sends it. See `tallystream.Event` for the arguments.

        `at` may be at most 3,600 seconds ahead of this host's clock; `None` is the present by that clock.

        If the buffer is full: with `when_full` `block`, wait for room; with `drop`, return without adding the event.
        If the operating system cannot start the background thread, the event stays in the buffer, and the next call
        tries to start the thread again.

        The background thread reads the rules after the first event, and again before it sends later events if the last
        read is over 10 seconds ago. So the first events after a pause are checked by the rules of the last read. Until
        the thread has read any rules, or while no worker has published any, every valid event is accepted. If the rules
        then do not allow it, it becomes a dead letter. If its metric is not declared, the thread logs
        `metric.undeclared` when it has read the rules.

        Raises:
            EventError: the event is invalid, or the rules do not allow its metric, amount or actor; it was not added.
                If its metric is not declared, the rules are read again: a metric that was declared a moment ago is
                accepted by a later call. An event over a limit is no error.
            BufferFull: the buffer is full and `when_full` is `raise`, or stayed full for `block_timeout` seconds.
            SpoolError: the spool cannot be written; the event was not added.
            ConfigurationError: the background thread has found that this producer cannot work with the deployment that
                is stored in Redis, or that the server refuses it for good, such as for its password or `durability`: it
                sends no events any more. The event was not added.
            TallyError: the producer is closed; the event was not added.
        """
        # The common case costs two look-ups: text that was checked before is not checked again.
        validator = self._validator
        route = validator.known.get(subject) if subject.__class__ is str else None
        if route is None:
            subject, route = validator.subject(subject)
        needs_check = validator.metrics.get(metric)
        if needs_check is None:
            needs_check = self._admit_metric(metric)
        if amount.__class__ is not int or not -rule.MAX_AMOUNT <= amount <= rule.MAX_AMOUNT:
            rule.check_amount(amount)
        if needs_check:
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
        try:
            is_added = self._buffer.put(route, metric, subject, amount, at, actor, id)
        except BufferFull:
            self._sender.start_if_refused()
            raise
        if not is_added:
            self._sender.start_if_refused()
        elif not self._wake.is_set():
            self._sender.start()

    def decide(
        self,
        metric: str,
        subject: str,
        amount: int = 1,
        *,
        actor: str | None = None,
        at: float | None = None,
        id: str | None = None,  # noqa: A002  # the name of the event's field
    ) -> Decision:
        """Count one event now and return the decision, usually in one round trip: for limits and votes.

        A rejection is no error: see `Decision.accepted`. Calls wait for the server, not for the buffer. The first call,
        and one every 10 seconds, may also read the deployment. The event is appended to the stream like an emitted one,
        also if it is rejected, and a replay counts it in the same way. The decision does not include events that were
        emitted before and are not counted yet. `stats` and `flush` do not include decided events. See
        `tallystream.Event` for the arguments.

        Raises:
            EventError: the event is invalid; its metric is undeclared, spread or in a sketch; the rules do not allow
                its amount, actor or time; or the total would exceed 2^53 - 1. It was not counted.
            ConfigurationError: no worker has published the rules yet, or this producer cannot work with the deployment
                that is stored in Redis; the event was not counted.
            StreamFull: the stream has reached its limit of entries; the event was not counted.
            KeyLost: the partition or the deployment has lost a key; the event was not counted.
            StreamError: a key of the event's metric has another type, or the deployment has a stored value that
                tallystream never writes (`DamagedValue`); the event was not counted.
            Unconfirmed: the event was decided (counted or rejected), but the server did not confirm its `durability`
                within 1 second, or cannot confirm it; deciding it again may count it twice.
            GenerationSwitched: the counters were being switched for more than 5 seconds; the event was not counted.
            DeploymentChanged: a restore has not finished; the event was not counted.
            TallyError: the producer is closed; the event was not counted.
            redis.RedisError: the event may or may not be counted. Deciding it again may count it twice. It counts once
                if both calls state the same `at`, and either its metric counts once per actor, or the event has an id
                and the metric counts ids once.
        """
        if self._buffer.is_closed:
            raise TallyError("this producer is closed")
        event = rule.Event(metric, subject, amount, actor, at, id)
        decider = self._decider
        if decider is None or not self._validator.is_fresh:
            deployment = self._validator.deployment
            if deployment is None or deployment.declared is None:
                self._validator.forget()  # a worker may have published the rules since
            deployment = self._validator.refresh()
            if decider is None or _is_older(decider.deployment, deployment):
                decider = self._decider = Decider(self._client, deployment, self._durability)
        return decider(event)

    def flush(self, timeout: float | None = None, *, wait: Literal["appended", "counted"] = "appended") -> None:
        """Wait until every event emitted before this call is in the stream, or with `wait="counted"` in the totals.

        An event that a rule rejects, or that becomes a dead letter, is in no total: `flush` waits until the event has
        this outcome.

        The buffered events are sent without waiting for `linger`. Events that were dropped, and those of dead processes
        in the spool, are not waited for. Given-up entries (`stats.unknown_entries`) count as appended, and
        `wait="counted"` does not wait for them either.

        Args:
            timeout: Most seconds to wait; `None` for no limit.
            wait: `appended` (confirmed with the producer's `durability`) or `counted` (also in the totals, and this
                confirmed in the same way).

        Raises:
            FlushTimeout: `timeout` seconds have passed; the events are still sent and counted. Also raised at once, in
                two cases. If the producer was closed before all events were sent, they are in the spool or are lost. If
                the system refuses the background thread, the events are kept, and the next call tries again. If the
                reason is known, such as a lost key, the message states it.
            ConfigurationError: this producer cannot work with the deployment that is stored in Redis, or the server
                refuses it for good.
            DeploymentChanged: only with `wait="counted"`: a restore has not finished.
            DamagedValue: only with `wait="counted"`: the deployment has a stored value that tallystream never writes.
            KeyLost: only with `wait="counted"`: the deployment was deleted, or has lost a field; or, with another
                `durability` than `memory`, a partition has lost a key.
            redis.RedisError: only with `wait="counted"`: the server cannot be read.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._sender.start_if_refused() and (left := self._buffer.emitted - self._buffer.appended):
            raise FlushTimeout(f"{left:,} events are not appended yet: {self._sender.problem}")
        try:
            self._buffer.wait_until_appended(deadline)
        except FlushTimeout as error:
            if (problem := self._sender.problem) is None:
                raise
            raise FlushTimeout(f"{error}. {problem}") from None
        if wait == "counted" and (appender := self._sender.appender) is not None:  # else nothing was appended
            wait_until_counted(self._client, self._namespace, appender, deadline, self._durability)

    def close(self, timeout: float = 5.0) -> None:
        """Deliver the buffered events, waiting at most `timeout` seconds, then stop.

        If all of them were delivered, the producer checks once more that the server has its latest confirmed entries.
        Entries that the server has lost, in a failover or because a backup was restored, are sent again if the producer
        still keeps them. If the server does not answer within 2 seconds, or before `timeout` has passed, the check is
        left out, and logged as `producer.unchecked`. If only some nodes of a cluster do not answer, it is left out for
        their entries, and not logged.

        To stop, it waits for the sender thread, at most `timeout` seconds more, or 1 second if that is longer. `emit`
        raises a `TallyError` from now on. The producer is stopped even if an error is raised: a later call does
        nothing.

        Raises:
            FlushTimeout: some events could not be delivered within `timeout` seconds: they stay in the spool, or may be
                lost if there is no spool. Also raised if the server has lost confirmed entries, and not all of them
                could be sent again in this time.
            ConfigurationError: this producer cannot work with the deployment that is stored in Redis, or the server
                refuses it for good; its events stay in the spool or are lost.
            OSError: a file of the spool could not be closed.
        """
        if not self._buffer.refuse_more():
            return
        deadline = time.monotonic() + timeout
        with ExitStack() as stop:  # each step is taken even if one before it fails; the last one comes first
            stop.callback(self._client.close)
            stop.callback(self._sender.release)
            stop.callback(self._sender.join, max(timeout, 1.0))
            stop.callback(self._buffer.close)
            self.flush(timeout)
            self._sender.check(deadline)

    @property
    def stats(self) -> ProducerStats:
        """Counts of this producer's events and entries so far; in a child after a fork, they begin at 0 again."""
        buffer, appender = self._buffer, self._sender.appender
        appended, emitted = buffer.appended, buffer.emitted
        return ProducerStats(
            emitted=emitted,
            appended=appended,
            buffered=emitted - appended,
            dropped=buffer.dropped,
            resent_entries=0 if appender is None else appender.resent,
            rewound_streams=self._sender.rewound,
            lost_entries=self._sender.lost,
            unknown_entries=self._sender.unknown,
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

    def _admit_metric(self, metric: str) -> bool:
        try:
            return self._validator.metric(metric)
        except EventError:
            self._sender.start()  # it makes the validator read the rules again before the next call
            raise


def _is_older(known: Deployment, found: Deployment) -> bool:
    """Return whether the rules of `found` have a higher number; if the numbers are equal, whether the rules differ.

    `known` may be newer, because a decision reads the rules too.

    Raises:
        ConfigurationError: the numbers are equal, and the rules of one of the two are not published.
    """
    if known.revision != found.revision:
        return known.revision < found.revision
    return known.rules != found.rules
