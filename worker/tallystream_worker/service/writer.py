"""Owns the producer with which the service appends and decides events."""

from contextlib import suppress
from typing import Final

import structlog

from tallystream.aio import Producer
from tallystream.client.durability import Durability
from tallystream.errors import TallyError
from tallystream_worker.service.stream_capacity import StreamCapacity
from tallystream_worker.settings.settings import RedisSettings

MAX_HELD: Final = 40_000
"""Most events that are buffered while Redis accepts none; the producer's buffer has room for so many largest events."""


class Writer:
    """The producer of the service, for one event loop.

    `producer` returns it, for each write; `give_up` and `close` end it. The first write creates the producer, so a
    service that is only read needs no right to write.

    Args:
        store: The server and the namespace.
        durability: When an event counts as appended, and a decision as made.
    """

    def __init__(self, store: RedisSettings, durability: Durability) -> None:
        self._store = store
        self._durability = durability
        self._producer: Producer | None = None
        self._is_stalled = False
        self.room = StreamCapacity()
        """The check whether the streams accept entries."""

    @property
    def is_stalled(self) -> bool:
        """Whether events of an earlier request, which were not appended in time, may still be in the buffer.

        The route sets it to true after a timeout, and rejects more events with 503 while it is true. A read of this
        property sets it to false if the buffer is empty, or if there is no producer.
        """
        self._is_stalled = self._is_stalled and self._producer is not None and self._producer.stats.buffered > 0
        return self._is_stalled

    @is_stalled.setter
    def is_stalled(self, stalled: bool) -> None:
        self._is_stalled = stalled

    def producer(self) -> Producer:
        """Return the producer, whose `emit` raises `BufferFull` at once if the buffer is full; create it if needed.

        Call it for each write: after `give_up` or `close` it creates and returns a new producer.
        """
        if self._producer is None:
            self._producer = Producer(
                self._store.url,
                namespace=self._store.namespace,
                durability=self._durability,
                when_full="raise",
                buffer_events=MAX_HELD,
            )
        return self._producer

    def is_using(self, producer: Producer) -> bool:
        """Return whether a producer that `producer` returned is still in use: neither given up nor closed."""
        return self._producer is producer

    async def give_up(self, producer: Producer) -> None:
        """Close a producer that has failed permanently, so that the next write creates a new one.

        Its buffered events may be lost. Do nothing if the producer is not in use any more.
        """
        if self._producer is producer:
            self._producer = None
            with suppress(TallyError):
                await producer.close(0)

    async def close(self) -> None:
        """Send the buffered events, and close the producer; do nothing if there is none.

        If some cannot be sent within 5 seconds, or Redis refuses them, they may be lost, and an error is logged.
        """
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                await producer.close()
            except TallyError as error:
                structlog.get_logger().error("service.append_failed", problem=str(error))
