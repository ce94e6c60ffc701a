"""The producer behind everything that the service writes."""

from contextlib import suppress
from typing import Final

import structlog

from tallystream.aio import Producer
from tallystream.errors import TallyError
from tallystream_worker.service.stream_capacity import StreamCapacity
from tallystream_worker.settings.settings import RedisSettings

MAX_HELD: Final = 40_000
"""Events held while Redis does not take them; so many of the largest ones fit in the producer's bytes."""


class Writer:
    """Holds a producer; for one event loop.

    It is made by the first write: a service that is only read from needs no right to write.
    """

    def __init__(self, store: RedisSettings) -> None:
        self._store = store
        self._producer: Producer | None = None
        self._is_stalled = False
        self.room = StreamCapacity()

    @property
    def is_stalled(self) -> bool:
        """Whether events that were taken did not get through in time, and still wait: a full stream, a server away.

        Whoever sends more is told to come again, rather than being kept waiting for what is then held as well.
        """
        self._is_stalled = self._is_stalled and self._producer is not None and self._producer.stats.buffered > 0
        return self._is_stalled

    @is_stalled.setter
    def is_stalled(self, stalled: bool) -> None:
        self._is_stalled = stalled

    def producer(self) -> Producer:
        """Return the producer; it refuses an event that it has no room for at once."""
        if self._producer is None:
            self._producer = Producer(
                self._store.url, namespace=self._store.namespace, when_full="raise", buffer_events=MAX_HELD
            )
        return self._producer

    async def give_up(self, producer: Producer) -> None:
        """Part with a producer that has failed for good, so that the next write finds a new one."""
        if self._producer is producer:
            self._producer = None
            with suppress(TallyError):
                await producer.close(0)

    async def close(self) -> None:
        """Deliver what is held, then stop."""
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                await producer.close()
            except TallyError as error:
                structlog.get_logger().error("service.append_failed", problem=str(error))
