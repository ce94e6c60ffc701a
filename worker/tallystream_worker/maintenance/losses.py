"""Losses: entries that vanished before they were counted, because somebody trimmed the stream or deleted from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tallystream.storage.scripts import Script

if TYPE_CHECKING:
    import redis

    from tallystream.storage.keys import PartitionKeys

_LOSSES: Final = Script("tallystream_worker.maintenance", "losses")


@dataclass(frozen=True)
class Loss:
    """What is missing at rest.

    Attributes:
        entries: Stream entries that vanished.
        events: What they held.
        proved: The events are in the ledger as trimmed now; else nothing shows that entries vanished, and they
            stay unaccounted.
    """

    entries: int
    events: int
    proved: bool


def settle_losses(client: redis.Redis, keys: PartitionKeys) -> Loss | None:
    """Put what vanished uncounted into the books of one partition; `None` where nothing did, or entries wait.

    Raises:
        redis.ResponseError: `NOGROUP`, or there is no stream.
    """
    answer, *figures = _LOSSES(client, [keys.stream, keys.ledger, keys.log_ledger], [keys.group])
    if answer == b"waiting":
        return None
    entries, events = figures
    return Loss(entries, events, answer == b"settled") if events else None
