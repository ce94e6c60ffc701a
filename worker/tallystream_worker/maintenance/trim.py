"""Trimming: the log is kept for a time and up to a size, and never shorter than somebody needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tallystream.storage.scripts import Script

if TYPE_CHECKING:
    import redis

    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.settings.settings import RetentionSettings

_TRIM: Final = Script("tallystream_worker.maintenance", "trim")
_STEP: Final = 2000
"""Entries that one call removes at most: bounds the time for which it holds the server."""


@dataclass(frozen=True)
class Trimmed:
    """What one call did, and found.

    Attributes:
        removed: Entries that it removed.
        entries: Entries left.
        bytes: Memory that the stream took before, as the server estimates it.
        limit: Entries at which appends are refused, 0 for none.
        holder: Who needs the oldest entries: a consumer group, or the name of a hold.
    """

    removed: int
    entries: int
    bytes: int
    limit: int
    holder: str

    @property
    def nearly_full(self) -> bool:
        """Tell whether appends are refused, or soon will be."""
        return 0 < self.limit * 0.8 <= self.entries


def trim(client: redis.Redis, keys: PartitionKeys, retention: RetentionSettings, *, step: int = _STEP) -> Trimmed:
    """Remove up to `step` of the oldest entries that are counted and out of retention; publish the limits.

    The server removes whole nodes of a stream, so up to a hundred small entries stay longer than they have to.

    Raises:
        redis.ResponseError: there is no stream, or a hold is no stream ID.
    """
    age = retention.age_seconds
    removed, entries, size, limit, holder = _TRIM(
        client,
        [keys.stream, keys.retention_holds, keys.log_ledger, keys.sequences],
        [
            keys.group,
            0 if age is None else age * 1000,
            retention.bytes,
            retention.backlog_bytes,
            step,
            retention.dead_bytes,
        ],
    )
    return Trimmed(removed, entries, size, limit, holder.decode())
