"""Producer for asyncio: wraps the threaded producer, and never waits for the server in the event loop."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from tallystream.aio.threads import in_thread
from tallystream.client.connect import DEFAULT_URL
from tallystream.errors import BufferFull, TallyError
from tallystream.producing.producer import Producer as ThreadedProducer

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from tallystream.producing.buffer import WhenFull
    from tallystream.producing.decider import Decision
    from tallystream.producing.stats import ProducerStats

_LOOK: Final = 0.005
"""Seconds between two attempts to add an event to a full buffer."""

_DECISIONS: Final = 16
"""Most decisions under way at once; further ones wait for a free thread. With fewer threads the processor is idle
during round trips; with more, the threads contend with each other."""


class Producer:
    """Counts events from asyncio: `emit` adds an event to a buffer, and `decide` counts one at once.

    `flush` waits until the events are sent or counted. The event loop never waits for the server.

    With a spool, `emit` passes each event to the operating system in the event loop, which takes microseconds. With
    `spool_sync="disk"`, which waits for the disk, a thread does this, and `emit` suspends the caller meanwhile. The
    thread of the threaded producer sends the events: redis-py packs commands in C for the synchronous client only
    (about twice as fast), and a busy event loop does not delay the events.

    Call `close` at the end, as for the threaded producer. After a `fork`, create a new producer in the child.

    Args:
        url: URL of Redis or Valkey.
        when_full: Action of `emit` when the buffer is full: `block` suspends the caller until there is room, `raise`
            raises `BufferFull`, and `drop` drops the event.
        block_timeout: Seconds after which `emit` raises `BufferFull` with `block`.
        settings: Any other argument of `tallystream.Producer`, by name.

    Raises:
        ConfigurationError: the URL or another setting is invalid, or the folder of the spool cannot be written.
            `partitions` is compared with the deployment only later, by the other methods.
        OSError: the folder of the spool cannot be listed.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        when_full: WhenFull = "block",
        block_timeout: float = 30.0,
        **settings: Any,
    ) -> None:
        # The threaded producer must not block the event loop, so it raises `BufferFull` and `emit` tries again.
        inner: WhenFull = "raise" if when_full == "block" else when_full
        self._inner = ThreadedProducer(url, when_full=inner, block_timeout=block_timeout, **settings)
        self._patience = block_timeout if when_full == "block" else 0.0
        self._retries = 0
        # A decision blocks a thread and a connection for one round trip. Decisions have their own pool: in the event
        # loop's executor, they and the application's other calls would delay each other. `close` waits until the
        # pool is idle, which takes at most the client's timeouts.
        self._decisions = ThreadPoolExecutor(_DECISIONS, thread_name_prefix="tallystream-decide")
        # A write that waits for the disk blocks a thread; more threads would only wait for each other.
        in_sync = settings.get("spool") is not None and settings.get("spool_sync") == "disk"
        self._writes = ThreadPoolExecutor(1, thread_name_prefix="tallystream-spool") if in_sync else None
        self._closed = False

    async def emit(
        self,
        metric: str,
        subject: str,
        amount: int = 1,
        *,
        actor: str | None = None,
        at: float | None = None,
        id: str | None = None,  # noqa: A002  # the name of the event's field
    ) -> None:
        """Add one event to the buffer; a thread sends it later.

        If the buffer is full: with `when_full` `block`, suspend the caller until there is room; with `drop`, return
        without adding the event. With a spool and `spool_sync="disk"`, the caller is also suspended until the event is
        on disk; a call that is cancelled then may still add its event. Until the rules were first read, or while no
        worker has published any, every valid event is accepted. If the rules then do not allow it, it becomes a dead
        letter. See `tallystream.Event` for the arguments.

        Raises:
            EventError: the event is invalid, or the rules do not allow its metric, amount or actor; it was not added.
                If its metric is not declared, the rules are read again: a metric that was declared a moment ago is
                accepted by a later call. An event over a limit is no error.
            BufferFull: the buffer is full and `when_full` is `raise`, or stayed full for `block_timeout` seconds.
            SpoolError: the spool cannot be written; the event was not added.
            ConfigurationError: this producer cannot work with the deployment that is stored in Redis, or the server
                refuses it for good, such as for its password or `durability`: it sends no events any more. The event
                was not added.
            TallyError: the producer is closed, also if it was closed while the call waited for room; the event was not
                added.
        """
        began = time.monotonic()
        while True:
            if self._closed:
                raise TallyError("this producer is closed")
            try:
                if self._writes is None:
                    self._inner.emit(metric, subject, amount, actor=actor, at=at, id=id)
                else:
                    moment = time.time() if at is None else at  # the time of the call, not of the write
                    call = partial(self._inner.emit, metric, subject, amount, actor=actor, at=moment, id=id)
                    await asyncio.get_running_loop().run_in_executor(self._writes, call)
            except BufferFull:
                if time.monotonic() - began >= self._patience:
                    raise
                self._retries += 1  # the threaded producer counted this attempt as a dropped event
            else:
                return
            if at is None:
                at = time.time()  # the time of the call, not of the attempt that finds room
            await asyncio.sleep(_LOOK)

    async def decide(
        self,
        metric: str,
        subject: str,
        amount: int = 1,
        *,
        actor: str | None = None,
        at: float | None = None,
        id: str | None = None,  # noqa: A002  # the name of the event's field
    ) -> Decision:
        """Count one event now, in a thread, and return the decision: for limits and votes.

        A rejection is a decision, not an error. At most 16 decisions run at once; further calls wait for one of them. A
        cancelled call may still count its event. `stats` and `flush` do not include decided events. See
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
            TallyError: the producer is closed.
            redis.RedisError: the event may or may not be counted. Deciding it again may count it twice. It counts once
                if both calls state the same `at`, and either its metric counts once per actor, or the event has an id
                and the metric counts ids once.
        """
        if self._closed:
            raise TallyError("this producer is closed")
        call = partial(self._inner.decide, metric, subject, amount, actor=actor, at=at, id=id)
        return await asyncio.get_running_loop().run_in_executor(self._decisions, call)

    async def flush(self, timeout: float | None = None, *, wait: Literal["appended", "counted"] = "appended") -> None:
        """Wait until every event emitted before this call is in the stream, or with `wait="counted"` in the totals.

        An event that a rule rejects, or that becomes a dead letter, is in no total: it is waited for until it has this
        outcome. An event whose `emit` has not returned yet may be left out. Dropped events, and those of dead processes
        in the spool, are not waited for. Given-up entries (`stats.unknown_entries`) count as appended, and
        `wait="counted"` does not wait for them either. The buffered events are sent without waiting for `linger`, also
        if the call is cancelled.

        Args:
            timeout: Most seconds to wait; `None` for no limit.
            wait: `appended` (confirmed with the producer's `durability`) or `counted` (also in the totals, and this
                confirmed in the same way).

        Raises:
            FlushTimeout: `timeout` seconds have passed; the events are still sent and counted. Also raised, at once, if
                the producer was closed before all events were sent: they are in the spool or are lost; or if the system
                refuses the producer's thread: then the events are kept, and the next call tries again.
            ConfigurationError: this producer cannot work with the deployment that is stored in Redis, or the server
                refuses it for good.
            DeploymentChanged: only with `wait="counted"`: a restore has not finished.
            DamagedValue: only with `wait="counted"`: the deployment has a stored value that tallystream never writes.
            KeyLost: only with `wait="counted"`: the deployment was deleted, or has lost a field; or, with another
                `durability` than `memory`, a partition has lost a key.
            redis.RedisError: only with `wait="counted"`: the server cannot be read.
            RuntimeError: the system refuses the thread that waits; the events are still sent.
        """
        await in_thread(lambda: self._inner.flush(timeout, wait=wait))

    async def close(self, timeout: float = 5.0) -> None:
        """Wait for decisions and writes under way, deliver the buffered events, then stop; a second call does nothing.

        From now on `emit` and `decide` raise a `TallyError`. If all events were delivered, the producer checks that the
        server has the latest confirmed entries, and sends lost ones again if it still keeps them. If the server does
        not answer within 2 seconds, or before `timeout` has passed, the check is left out, and logged; see
        `tallystream.Producer.close` for a cluster. If the call is cancelled, the producer is still stopped, in a
        thread; also if an error is raised, except `RuntimeError`.

        Args:
            timeout: Most seconds for the delivery. The wait for the decisions and writes before it, and the wait for
                the sender thread after it (at most as long again, or 1 second), are not included.

        Raises:
            FlushTimeout: some events could not be delivered within `timeout` seconds: they stay in the spool, or may be
                lost if there is no spool. Also raised if the server has lost confirmed entries, and not all of them
                could be sent again in this time.
            ConfigurationError: this producer cannot work with the deployment that is stored in Redis, or the server
                refuses it for good; its events stay in the spool or are lost.
            OSError: a file of the spool could not be closed.
            RuntimeError: the system refuses the thread that stops the producer; call this again.
        """
        self._closed = True

        def close() -> None:
            self._decisions.shutdown()  # before its connections are closed
            if self._writes is not None:
                self._writes.shutdown()
            self._inner.close(timeout)

        await in_thread(close)

    @property
    def stats(self) -> ProducerStats:
        """Counts of this producer's events and entries so far; those of `decide` are in no count.

        An event whose `emit` still waits for room is not counted as dropped; one whose `emit` raised `BufferFull` is.
        """
        stats = self._inner.stats
        return replace(stats, dropped=stats.dropped - self._retries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
