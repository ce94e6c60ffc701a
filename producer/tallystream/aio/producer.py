"""The producer for asyncio: the threaded one, and a caller that waits without blocking the loop."""

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
"""Seconds between looks for room in a full buffer."""

_DECISIONS: Final = 16
"""Decisions at once; more wait for their turn. With fewer, round trips would leave the processor idle; more threads
only get in each other's way."""


class Producer:
    """Counts events from asyncio without making the loop wait.

    Sending stays with the threaded producer and its thread: redis-py packs commands in C for the synchronous client
    only (about twice as fast), and a loop that is busy elsewhere delays no event.

    Args:
        url: Where Redis or Valkey is.
        when_full: What `emit` does when the buffer is full; `block` suspends the caller until there is room.
        block_timeout: Seconds after which `block` gives up, as `raise` does at once.
        settings: Everything else that `tallystream.producing.producer.Producer` takes.

    Raises:
        ConfigurationError: the URL or another setting cannot be used.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        when_full: WhenFull = "block",
        block_timeout: float = 30.0,
        **settings: Any,
    ) -> None:
        # Blocking would stop the whole loop: there the inner one refuses, and we try again.
        inner: WhenFull = "raise" if when_full == "block" else when_full
        self._inner = ThreadedProducer(url, when_full=inner, block_timeout=block_timeout, **settings)
        self._patience = block_timeout if when_full == "block" else 0.0
        self._retries = 0
        # Decisions block, each on a connection, for a round trip. The pool is their own: in the loop's they would
        # stand in line with whatever else the program sends there, and it with them. Their end is waited for, which
        # takes no longer than the client's timeouts.
        self._decisions = ThreadPoolExecutor(_DECISIONS, thread_name_prefix="tallystream-decide")
        self._closed = False

    async def emit(
        self,
        metric: str,
        subject: str,
        amount: int = 1,
        *,
        actor: str | None = None,
        at: float | None = None,
        id: str | None = None,  # noqa: A002  # the event's own word
    ) -> None:
        """Take one event; suspends only while the buffer is full and the policy is to block.

        Raises:
            EventError: the event breaks a rule; it was not taken.
            BufferFull: there is no room, and `when_full` says to raise (or blocking took too long).
            ConfigurationError: this producer cannot work with what is stored in Redis.
            TallyError: the producer is closed.
        """
        began = time.monotonic()
        while True:
            try:
                self._inner.emit(metric, subject, amount, actor=actor, at=at, id=id)
            except BufferFull:
                if time.monotonic() - began >= self._patience:
                    raise
                self._retries += 1  # the inner one took it for a drop
            else:
                return
            if at is None:
                at = time.time()  # it happened now, not when there is room
            await asyncio.sleep(_LOOK)

    async def decide(
        self,
        metric: str,
        subject: str,
        amount: int = 1,
        *,
        actor: str | None = None,
        at: float | None = None,
        id: str | None = None,  # noqa: A002  # the event's own word
    ) -> Decision:
        """Count one event now and return the verdict; see `tallystream.producing.producer.Producer.decide`.

        A call that is cancelled may have counted its event all the same.

        Raises:
            EventError: the event breaks a rule; it was not counted.
            ConfigurationError: no worker has published the rules yet.
            TallyError: the producer is closed.
            redis.RedisError: it is not known whether it was counted; see `tallystream.producing.decider.Decider`.
        """
        if self._closed:
            raise TallyError("this producer is closed")
        call = partial(self._inner.decide, metric, subject, amount, actor=actor, at=at, id=id)
        return await asyncio.get_running_loop().run_in_executor(self._decisions, call)

    async def flush(self, timeout: float | None = None, *, wait: Literal["appended", "counted"] = "appended") -> None:
        """Wait until everything emitted before this call is in the stream, or with `wait="counted"` in the totals.

        Raises:
            FlushTimeout: not in time; the events stay buffered and are still sent.
            ConfigurationError: this producer cannot work with what is stored in Redis.
        """
        await in_thread(lambda: self._inner.flush(timeout, wait=wait))

    async def close(self, timeout: float = 5.0) -> None:
        """End the decisions in hand, deliver what is held, then stop; further calls change nothing.

        Raises:
            FlushTimeout: something could not be delivered within `timeout` seconds, and is lost with this producer.
        """
        self._closed = True

        def close() -> None:
            self._decisions.shutdown()  # before its connections are closed
            self._inner.close(timeout)

        await in_thread(close)

    @property
    def stats(self) -> ProducerStats:
        """What became of the events so far; an event that waited for room is no dropped one."""
        stats = self._inner.stats
        return replace(stats, dropped=stats.dropped - self._retries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
