"""One who follows: holds the latest of what it has not been sent yet, and no more than that."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from tallystream_worker.live.messages import Message, ResetMessage

if TYPE_CHECKING:
    from tallystream_worker.live.messages import MessageBatch
    from tallystream_worker.live.subscription import Subscription

MAX_HELD: Final = 2000
"""Counters held for a reader that is slower than they change; beyond it, it is told to read anew."""


class LiveReader:
    """The broadcaster hands in, the connection takes out, at its own pace.

    Args:
        wanted: The counters it follows; `None` for none.
        every: The least seconds between two updates, where the broadcaster's own pace is not enough.
        overview: Whether it gets the overview.
        top: The window whose leaderboards it gets; `None` for none.
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
        """Send nothing until `release`: what comes first is still being read."""
        self._held_back = True

    def first(self, batch: MessageBatch) -> None:
        """Put a batch in front of what has come in meanwhile."""
        later, self._batch = self._batch, batch
        if later is not None:
            self.counters(later)

    def release(self) -> None:
        """Begin to send."""
        self._held_back = False
        self._wake.set()

    def counters(self, batch: MessageBatch) -> None:
        """Take totals; they replace older ones of the same counters."""
        self._batch = batch if self._batch is None else batch.after(self._batch)
        if len(self._batch.values) > MAX_HELD:
            self.reset("too many counters changed since the last update", self._batch.id)
        self._wake.set()

    def reset(self, reason: str, at: str) -> None:
        """Drop what is held: the reader must read anew, and is then at the position `at`."""
        self._batch = None
        self._others["reset"] = Message("reset", ResetMessage(reason), at)
        self._wake.set()

    def tell(self, message: Message) -> None:
        """Take a message; it replaces an older one of the same name."""
        self._others[message.event] = message
        self._wake.set()

    def end(self) -> None:
        """Let the connection end."""
        self._ended = True
        self._wake.set()

    async def next(self) -> list[Message] | None:
        """Return what is to be sent, nothing where a sign of life is due, or `None` at the end."""
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
        # A reset first: what comes behind it is new.
        messages = [others.pop("reset")] if "reset" in others else []
        if batch is not None:
            messages.append(batch.message)
        return [*messages, *others.values()]

    async def watch(self, patience: float) -> None:
        """Ask for a sign of life after `patience` seconds without news; return once nothing was taken for so long.

        One timer for many updates, instead of two for each.
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
