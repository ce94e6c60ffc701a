"""Checks whether the streams are full, so that the service can reject events at once instead of buffering them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from tallystream.reading.query import Command, Query, raise_on_error
from tallystream.storage.keys import partition_of
from tallystream_worker.service.server_stats import LIMIT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tallystream.aio import Totals
    from tallystream.storage.keys import Layout
    from tallystream.wire.event import Event

_HOLDS: Final = 0.1
"""Seconds for which a result is used. Events that arrive just after a stream became full are buffered, not lost."""


class StreamCapacity:
    """Checks whether streams have room for events; each result that it reads is used for 0.1 seconds."""

    def __init__(self) -> None:
        self._full: frozenset[int] = frozenset()
        self._until = 0.0

    async def is_there_for(self, events: Sequence[Event], totals: Totals, layout: Layout) -> bool:
        """Return whether the streams of all events' subjects have room; see `query_full`.

        For an event of a spread metric, too, only the stream of its subject is checked. If the last result is 0.1
        seconds old, read the streams of all partitions; otherwise use that result.

        Raises:
            RedisError: the stream of a partition, also of one without these subjects, cannot be read.
        """
        if time.monotonic() >= self._until:
            self._full = await totals.run(query_full(layout))
            self._until = time.monotonic() + _HOLDS
        return not self._full or self._full.isdisjoint(
            partition_of(event.subject, layout.partitions) for event in events
        )


def query_full(layout: Layout) -> Query[frozenset[int]]:
    """Return a query for the numbers of the partitions whose streams are full, so that they accept no more entries.

    A stream without a limit is never full. The query raises the `RedisError` if a partition cannot be read.
    """
    commands: list[Command] = []
    for keys in layout.keys:
        commands += [("HGET", keys.sequences, LIMIT), ("XLEN", keys.stream)]

    def parse(replies: list[Any]) -> frozenset[int]:
        pairs = zip(replies[::2], replies[1::2], strict=True)
        return frozenset(
            partition
            for partition, (limit, length) in enumerate(pairs)
            if raise_on_error(limit) is not None and raise_on_error(length) >= int(limit)
        )

    return Query(commands, parse)
