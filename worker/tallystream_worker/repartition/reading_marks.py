"""Records in each old partition up to where a repartition reads it, before any of that is copied to another node.

A failover of the old partition's node can take back entries that were copied already. Producers send them again, with
other IDs, and they would be copied twice. But a server loses its latest writes first. So as long as it has the record,
it has every entry up to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.errors import StreamError
from tallystream.storage.scripts import Script
from tallystream.wire.stream_id import parse_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import redis

    from tallystream.storage.keys import Layout

HOLDER: Final = "move"
"""The name of the retention hold on entries that are not copied yet.

A retention hold is a field of a hash of the partition, with a stream ID; no entry from this ID on is trimmed."""

_READ: Final = Script("tallystream_worker.repartition", "mark_read")


class EntriesGone(StreamError):
    """Raised if an old partition may lack entries that were copied: it does not have the record that they were read.

    Its server has gone back to older data. Unless the copies are lost too, the repartition must be given up: producers
    send the entries again, and they would count twice.
    """


class ReadingMarks:
    """The records of one repartition in the old partitions: the ID up to which it reads each of them.

    Args:
        client: The server.
        old: The topic that is read.
        topic: The number of the topic that is filled.
        confirm: Called with a text on what was written, before an entry is copied; see `process.barrier`.
    """

    def __init__(self, client: redis.Redis, old: Layout, topic: int, confirm: Callable[[str], None]) -> None:
        self._client = client
        self._old, self._topic = old, topic
        self._confirm = confirm

    def advance(self, copied: Sequence[str]) -> list[str]:
        """Record that each old partition is read up to its end; return the ends by partition.

        An end is the last ID of the stream, `0-0` if there is no stream.

        Args:
            copied: By partition, the ID up to which any of its entries were copied.

        Raises:
            EntriesGone: entries of a partition were copied, and it has no record, or one before the last of them. The
                partitions before it have new records.
            KeyLost: a partition has lost its sequences.
            StreamError: a partition lacks its retention hold: a failover has lost it, or the repartition was given up.
            redis.RedisError: the server does not reply, or rejects a command; some partitions may have new records.

        Any error of `confirm`, such as `Unconfirmed`, is raised too: then the records are written, but a failover may
        take them back, with entries before them.
        """
        ends = [self._record(partition, each) for partition, each in enumerate(copied)]
        self._confirm("the entries to copy are read")
        return ends

    def ensure(self, ends: Sequence[str]) -> None:
        """Raise `EntriesGone` if an old partition has no record of this repartition, or one before the ID in `ends`.

        `ends` is what `advance` returned.

        Raises:
            EntriesGone: see above; nothing was changed.
            redis.RedisError: the server does not reply, or rejects a command.
        """
        for keys, end in zip(self._old.keys, ends, strict=True):
            record: bytes = self._client.execute_command("HGET", keys.sequences, "!copying") or b""
            topic, _, id_ = record.decode().partition(" ")
            if topic != str(self._topic) or parse_id(id_) < parse_id(end):
                raise _gone(keys.stream)

    def _record(self, partition: int, copied: str) -> str:
        keys = self._old.keys[partition]
        names = [keys.stream, keys.sequences, keys.retention_holds]
        answer, *details = _READ(self._client, names, [self._topic, copied, HOLDER])
        if answer == b"gone":
            raise _gone(keys.stream)
        if answer == b"unheld":
            raise StreamError(
                f"{keys.stream}: the retention hold of this repartition is gone, and entries may have been trimmed "
                "before they were copied: a failover has lost the hold, or the repartition was given up. Run the "
                "command again"
            )
        end: bytes = details[0]
        return end.decode()


def _gone(stream: str) -> EntriesGone:
    return EntriesGone(
        f"{stream}: its server has gone back to older data, in a failover or a restart, and lacks entries that were "
        "copied to the new topic. Producers send them again, and they would count twice. Give the repartition up with "
        "tallystream rebuild --drop, then repartition again"
    )
