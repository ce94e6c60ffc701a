"""An outbox: a buffer and the appender that empties it, one step at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.append import KEEP_BYTES, Appender
from tallystream.lane import Entry, Lane
from tallystream.spool import Spool

if TYPE_CHECKING:
    import redis
    from redis.exceptions import RedisError

    from tallystream.buffer import Buffer
    from tallystream.confirm import Confirmation
    from tallystream.meta import Meta


class Outbox:
    """Sends what a buffer holds. Not safe across threads: the flusher owns it.

    Args:
        client: A client that never sends anything twice.
        meta: What is stored there.
        buffer: What is to be sent.
        confirmation: What counts as sent.

    Raises:
        SpoolError: what is spooled cannot be delivered here.
    """

    def __init__(self, client: redis.Redis, meta: Meta, buffer: Buffer, confirmation: Confirmation) -> None:
        self.buffer = buffer
        buffer.open(meta.layout.partitions)
        keep = KEEP_BYTES // meta.layout.partitions
        lanes, on_rename = None, None
        if isinstance(buffer, Spool):
            begun = zip(buffer.names, buffer.confirmed_sequences, strict=True)
            lanes = [Lane(keep, name, confirmed) for name, confirmed in begun]
            on_rename = buffer.rename
        self.appender = Appender(client, meta.layout, meta.epoch, confirmation, lanes, on_rename)

    def step(self) -> tuple[bool, RedisError | None]:
        """Seal what has gathered, send a burst.

        Returns:
            Whether that led on, and the first error that the server answered with.

        Raises:
            SpoolError: the spool cannot be written; nothing was sent.
            redis.RedisError: the connection broke.
        """
        appender = self.appender
        cycle, sealed = self.buffer.seal()
        for partition, pack in sealed:
            appender.push(partition, Entry(cycle, pack.events, pack.size, pack.seal()))
        confirmed, error = appender.send()
        oldest = appender.oldest_cycle
        self.buffer.settle(confirmed, cycle if oldest is None else oldest - 1)
        return bool(confirmed) or oldest is None or appender.due != 0, error
