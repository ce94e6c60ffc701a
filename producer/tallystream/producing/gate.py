"""Reads the records of the sequence gate: the last entry of each queue, and how far records were removed.

The reaper removes the records of producers that have been silent for long, and stores a *horizon* before it: each
removed record named an entry with a stream ID before the horizon. The horizon is in the same key as the records, so a
failover or a restored backup rewinds both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tallystream.storage.keys import REAPED, REAPED_SPOOL
from tallystream.wire.stream_id import StreamID, parse_id

if TYPE_CHECKING:
    import redis

    from tallystream.storage.keys import Layout, PartitionKeys

START: Final = "0-0"
"""A stream ID that is not greater than any other."""

SPOOL: Final = "spool:"
"""The prefix of the names of queues whose entries are in a spool; the server keeps their records for longer."""


@dataclass(frozen=True, slots=True)
class GateRecord:
    """The record of one queue at the sequence gate.

    Attributes:
        last: The last sequence that the stream has; 0 if there is no record.
        last_id: The stream ID of that entry; `0-0` if there is no record.
        horizon: Records of entries before this ID may have been removed, others not; `(0, 0)`: no record can have been.
        newest: A recent ID of the stream, not before the horizon: entries appended from now on get later ones. `0-0`
            if the server has recorded none.
    """

    last: int
    last_id: str
    horizon: StreamID
    newest: str


def queue_read(pipeline: Any, keys: PartitionKeys, producer: str) -> None:
    """Add to a pipeline the command that reads the record of the queue `producer`; `parse_record` parses its reply."""
    pipeline.execute_command("HMGET", keys.sequences, producer, _field(producer))


def parse_record(reply: list[bytes | None]) -> GateRecord:
    """Return the record in the reply to the command of `queue_read`; the reply must not be an error."""
    record, reaped = reply
    last, last_id = record.decode().split() if record else ("0", START)
    horizon, newest = reaped.decode().split() if reaped else (START, START)
    return GateRecord(int(last), last_id, parse_id(horizon), newest)


def newest_ids(client: redis.Redis, layout: Layout, *, spool: bool) -> list[str]:
    """Return a recent stream ID of each partition, to begin new queues with; `0-0` if the server has recorded none.

    `spool` is whether the entries of the queues are in a spool: the server keeps a separate ID for these.

    Raises:
        redis.RedisError: the server does not answer, or refuses the command.
    """
    with client.pipeline(transaction=False) as pipeline:
        for keys in layout.keys:
            pipeline.execute_command("HGET", keys.sequences, _field(SPOOL if spool else ""))
        return [reply.split()[1].decode() if reply else START for reply in pipeline.execute()]


def _field(producer: str) -> str:
    return REAPED_SPOOL if producer.startswith(SPOOL) else REAPED
