"""A reader of live updates: keeps the latest messages until its connection sends them, in bounded memory."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from tallystream_worker.live.messages import Message, ResetMessage

if TYPE_CHECKING:
    from tallystream_worker.live.messages import MessageBatch
    from tallystream_worker.live.subscription import Subscription

MAX_HELD: Final = 2000
"""The largest number of changed counters that are kept for a slow reader; if there are more, the reader is reset."""


class LiveReader:
    """A reader of live updates: the broadcaster adds messages, and the reader's connection takes them and sends them.

    The connection calls `next` in a loop, and runs `watch` in another task. The broadcaster calls the other methods.

    Args:
        wanted: The counters that the reader follows; `None` if it follows no counters.
        every: The shortest time between two results of `next` with messages, in seconds; 0 for the pace of the
            broadcaster.
        overview: Whether the reader gets the overview.
        top: The window whose leaderboards the reader gets; `None` if it gets no leaderboards.

    Attributes:
        wanted: The counters that the reader follows; `None` if it follows no counters.
        overview: Whether the reader gets the overview.
        top: The window whose leaderboards the reader gets; `None` if it gets no leaderboards.
    """

    def __init__(
        self, wanted: Subscription | None, every: float = 0.0, *, overview: bool = False, top: str | None = None
    ) -> None:
        self.wanted = wanted
        self.overview = overview
        self.top = top
        self._every = every
        self._sent_at = time.monotonic()
        self._is_sending = False
        self._is_silent = False
        self._is_pausing = False
        self._batch: MessageBatch | None = None
        self._others: dict[str, Message] = {}
        self._wake = asyncio.Event()
        self._held_back = False
        self._ended = False

    def hold_back(self) -> None:
        """Keep messages until `release`: `next` returns none of them, but still heartbeats and the end."""
        self._held_back = True

    def first(self, batch: MessageBatch) -> None:
        """Add a batch of older totals: if a counter's total was added before and is unsent, that newer total is kept.

        Call it between `hold_back` and `release`: it does not wake a waiting `next`. If totals were added before, and
        there are more than `MAX_HELD` (2,000) afterwards, the reader is reset as by `counters`.
        """
        later, self._batch = self._batch, batch
        if later is not None:
            self.counters(later)

    def release(self) -> None:
        """Let `next` return the kept messages and later ones, after `hold_back`."""
        self._held_back = False
        self._wake.set()

    def counters(self, batch: MessageBatch) -> None:
        """Add totals, which replace unsent totals of the same counters.

        If more than `MAX_HELD` (2,000) totals are unsent afterwards, drop them and add a message `reset`. Totals of
        counters that the reader follows by name stay: see `reset`.
        """
        self._batch = batch if self._batch is None else batch.after(self._batch)
        if len(self._batch.values) > MAX_HELD:
            self.reset("too many counters changed since the last update", self._batch.id)
        self._wake.set()

    def reset(self, reason: str, at: str, *, is_other_data: bool = False) -> None:
        """Drop the unsent totals, and add a message `reset` with a reason; it moves the reader's position to `at`.

        Unsent totals of counters that the reader follows by name are kept; with `is_other_data`, they are dropped too,
        and the caller must add them again. `at` is a position as `cursor_text` encodes it, or `""` to leave the reader
        without a position.
        """
        if self._batch is not None:
            kept = () if self.wanted is None or is_other_data else self.wanted.named
            self._batch = self._batch.only(kept, at)
        self._others["reset"] = Message("reset", ResetMessage(reason), at)
        self._wake.set()

    def tell(self, message: Message) -> None:
        """Add a message, which replaces an unsent message with the same `event`."""
        self._others[message.event] = message
        self._wake.set()

    def end(self) -> None:
        """Let `next` return `None` from now on, so that the connection ends; unsent messages are lost."""
        self._ended = True
        self._wake.set()

    async def next(self) -> list[Message] | None:
        """Wait for messages, a heartbeat or the end; return the messages and forget them.

        After `hold_back`, messages wait until `release`; after a call that returned some, for `every` seconds. A call
        also tells `watch` that the messages of the call before were sent. One task may wait at a time.

        Returns:
            The messages to send: a reset first, then totals, then others; an empty list if a heartbeat is due, even if
            there are messages, which the next call returns; `None` if the connection must end.
        """
        self._is_sending = False
        while not (self._ended or self._is_silent or self._has_news):
            self._wake.clear()
            await self._wake.wait()
        if self._ended:
            return None
        self._sent_at, self._is_sending = time.monotonic(), True
        if self._is_silent:
            self._is_silent = False
            return []
        if self._every:
            self._is_pausing = True
            asyncio.get_running_loop().call_later(self._every, self._go_on)
        others, self._others = self._others, {}
        batch, self._batch = self._batch, None
        # The reset comes first: the totals after it are newer.
        messages = [others.pop("reset")] if "reset" in others else []
        if batch is not None:
            messages.append(batch.message)
        return [*messages, *others.values()]

    async def watch(self, patience: float) -> None:
        """Request a heartbeat after each `patience` seconds without messages; return only if the client does not read.

        For a heartbeat, `next` returns an empty list. The client does not read if the connection is still sending what
        `next` returned `patience` seconds ago.
        """
        while True:
            await asyncio.sleep(self._sent_at + patience - time.monotonic())
            if time.monotonic() < self._sent_at + patience:
                continue
            if self._is_sending:
                return
            self._is_silent = True
            self._wake.set()

    @property
    def _has_news(self) -> bool:
        return bool(self._batch or self._others) and not (self._held_back or self._is_pausing)

    def _go_on(self) -> None:
        self._is_pausing = False
        self._wake.set()
