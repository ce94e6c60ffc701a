"""Reads live counters together with a checkpoint, which states the entries that these values contain."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tallystream.client.replies import is_wrong_type
from tallystream.errors import ConsumerGroupMissing, StreamError
from tallystream.wire.codec import was_decided
from tallystream.wire.stream_id import StreamID, id_text, parse_id
from tallystream_worker.rebuild.source import stream_entries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import redis

    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.counting.entry import Entry

_MOST_PENDING: Final = 20_000
_TRIES: Final = 50


@dataclass(frozen=True)
class Checkpoint:
    """States which entries of one partition the live counters contain at one moment.

    These are all entries up to `delivered` that are not pending, and all entries up to `generated` that a decision
    counted in the live generation.

    Attributes:
        delivered: The last ID that was delivered to the consumer group of the live generation.
        pending: The IDs of the pending entries of this group.
        generated: The last ID that the stream has generated, even if that entry was trimmed.
    """

    delivered: StreamID
    pending: frozenset[str]
    generated: StreamID


def checkpoint(
    client: redis.Redis, keys: PartitionKeys, commands: Sequence[tuple[Any, ...]], *, counters: int = 0
) -> tuple[Checkpoint, list[Any]]:
    """Run read commands and get the checkpoint of a partition in one transaction; return it, and their replies.

    While 20,000 or more entries are pending, run the transaction again, 50 times in all, 0.1 seconds apart. If the key
    of one of the first `counters` commands has another type, the error is the reply of that command.

    Raises:
        ConsumerGroupMissing: the consumer group of `keys` is missing, so the applied entries are unknown.
        StreamError: 20,000 or more entries stayed pending.
        redis.RedisError: the stream does not exist, the server cannot be read, or a command failed for another reason.
    """
    for _ in range(_TRIES):
        with client.pipeline(transaction=True) as pipeline:
            pipeline.xinfo_stream(keys.stream)
            pipeline.xinfo_groups(keys.stream)
            pipeline.xpending_range(keys.stream, keys.group, "-", "+", _MOST_PENDING)
            for command in commands:
                pipeline.execute_command(*command)
            info, groups, pending, *replies = pipeline.execute(raise_on_error=False)
        if isinstance(groups, Exception):
            raise groups
        group = next((each for each in groups if each["name"] == keys.group.encode()), None)
        if group is None:
            raise ConsumerGroupMissing(keys.stream, keys.group)
        for at, reply in enumerate((info, pending, *replies), -2):
            if isinstance(reply, Exception) and not (0 <= at < counters and is_wrong_type(reply)):
                raise reply
        if len(pending) < _MOST_PENDING:
            ids = frozenset(row["message_id"].decode() for row in pending)
            delivered = parse_id(group["last-delivered-id"].decode())
            return Checkpoint(delivered, ids, parse_id(info["last-generated-id"].decode())), replies
        time.sleep(0.1)
    raise StreamError(f"{keys.stream}: {_MOST_PENDING:,} or more entries are pending: wait until the workers catch up")


class AppliedEntries:
    """Yields, by `until`, the entries of a partition that were applied between consecutive checkpoints, each once.

    Entries that are trimmed before `until` begins to read the stream are missing, without an error. If the live
    generation changes, make a new object.

    Args:
        client: Client of the server of the stream.
        keys: The keys of the live generation in the partition.
        after: The ID after which to begin, `""` to begin with the first entry.
    """

    def __init__(self, client: redis.Redis, keys: PartitionKeys, after: str = "") -> None:
        self._client = client
        self._keys = keys
        self._passed = after
        """The ID up to which every entry was yielded or is in `_held`."""
        self._held: dict[str, Entry] = {}
        self._ahead: set[str] = set()
        self._looked: StreamID = (0, 0)

    def until(self, checkpoint: Checkpoint) -> Iterator[Entry]:
        """Yield the entries that are applied at this checkpoint and were not at that of the previous call.

        The order is not that of the IDs. The first call yields every entry after `after` that is applied. Each iterator
        must be read to its end before the next call.

        Raises:
            EntriesTrimmed: entries were trimmed while the stream was read.
            KeyLost, StreamError: the stream was deleted or replaced while it was read.
            redis.RedisError: the server does not reply, or rejects a command.
        """
        for id_ in [id_ for id_ in self._held if id_ not in checkpoint.pending]:
            yield self._held.pop(id_)
        if parse_id(self._passed or "0-0") < checkpoint.delivered:
            for entry in stream_entries(self._client, self._keys, self._passed, id_text(checkpoint.delivered)):
                self._passed = entry.id
                if entry.id in self._ahead:
                    self._ahead.discard(entry.id)
                elif entry.id in checkpoint.pending and not self._is_decided(entry):
                    self._held[entry.id] = entry
                else:
                    yield entry
            self._passed = id_text(checkpoint.delivered)
        # Decided entries are in the counters before a worker fetches them.
        self._looked = max(self._looked, checkpoint.delivered)
        if self._looked < checkpoint.generated:
            for entry in stream_entries(self._client, self._keys, id_text(self._looked), id_text(checkpoint.generated)):
                if self._is_decided(entry):
                    self._ahead.add(entry.id)
                    yield entry
            self._looked = checkpoint.generated

    def _is_decided(self, entry: Entry) -> bool:
        return was_decided(entry.fields, self._keys.generation)
