"""One who follows: holds the latest of what it has not been sent yet, and no more than that."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from tallystream_worker.live.messages import Message, Reset

if TYPE_CHECKING:
    from tallystream_worker.live.messages import Batch
    from tallystream_worker.live.wanted import Wanted

MAX_HELD: Final = 2000
"""Counters held for a reader that is slower than they change; beyond it, it is told to read anew."""


class Reader:
    """The hub hands in, the connection takes out, at its own pace.

    Args:
        wanted: The counters it follows; `None` for none.
        every: The least seconds between two updates.
        overview: Whether it gets the overview.
        top: The window whose leaderboards it gets; `None` for none.
    """

    def __init__(self, wanted: Wanted | None, every: float, *, overview: bool = False, top: str | None = None) -> None:
        self.wanted = wanted
        self.overview = overview
        self.top = top
        self.spread = 0.0
        """The least seconds between two updates that the number of readers allows."""
        self._every = every
        self._next_at = 0.0
        self._batch: Batch | None = None
        self._others: dict[str, Message] = {}
        self._wake = asyncio.Event()
        self._held_back = False
        self._ended = False

    def hold_back(self) -> None:
        """Send nothing until `release`: what comes first is still being read."""
        self._held_back = True

    def first(self, batch: Batch) -> None:
        """Put a batch in front of what has come in meanwhile."""
        later, self._batch = self._batch, batch
        if later is not None:
            self.counters(later)

    def release(self) -> None:
        """Begin to send."""
        self._held_back = False
        self._wake.set()

    def counters(self, batch: Batch) -> None:
        """Take totals; they replace older ones of the same counters."""
        self._batch = batch if self._batch is None else batch.after(self._batch)
        if len(self._batch.values) > MAX_HELD:
            self.reset("too many counters changed since the last update", self._batch.id)
        self._wake.set()

    def reset(self, reason: str, at: str) -> None:
        """Drop what is held: the reader must read anew, and is then at the position `at`."""
        self._batch = None
        self._others["reset"] = Message("reset", Reset(reason), at)
        self._wake.set()

    def tell(self, message: Message) -> None:
        """Take a message; it replaces an older one of the same name."""
        self._others[message.event] = message
        self._wake.set()

    def end(self) -> None:
        """Let the connection end."""
        self._ended = True
        self._wake.set()

    async def next(self, patience: float) -> list[Message] | None:
        """Return what is to be sent, nothing after `patience` seconds without news, or `None` at the end."""
        try:
            async with asyncio.timeout(patience):
                await self._news()
        except TimeoutError:
            return []
        if self._ended:
            return None
        self._next_at = time.monotonic() + max(self._every, self.spread)
        self._wake.clear()
        others, self._others = self._others, {}
        batch, self._batch = self._batch, None
        # A reset first: what comes behind it is new.
        messages = [others.pop("reset")] if "reset" in others else []
        if batch is not None:
            messages.append(batch.message)
        return [*messages, *others.values()]

    async def _news(self) -> None:
        while True:
            await self._wake.wait()
            if self._ended:
                return
            if self._held_back or not (self._batch or self._others):
                self._wake.clear()
                continue
            if (pause := self._next_at - time.monotonic()) <= 0:
                return
            await asyncio.sleep(pause)
