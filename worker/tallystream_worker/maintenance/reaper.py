"""Reaping: names of consumers and producers that will not come back are forgotten, and nothing with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.storage.scripts import Script

if TYPE_CHECKING:
    import redis

    from tallystream.storage.keys import PartitionKeys

_CONSUMERS: Final = Script("tallystream_worker.maintenance", "reap_consumers")
_PRODUCERS: Final = Script("tallystream_worker.maintenance", "reap_producers")
_STEP: Final = 500

CONSUMER_SILENCE: Final = 86_400.0
"""Seconds without a read after which a consumer is taken for gone. One that comes back all the same is made anew."""

PRODUCER_SILENCE: Final = 30 * 86_400.0
"""Seconds without an append after which a producer's sequence is forgotten. One that was cut off in mid-append for
longer could append that entry a second time."""


def reap_consumers(
    client: redis.Redis, keys: PartitionKeys, heir: str, *, silence: float = CONSUMER_SILENCE, step: int = _STEP
) -> tuple[int, int]:
    """Take over what silent consumers hold and forget those that hold nothing; return how many, and the entries.

    One call takes over at most `step` entries; a consumer that holds more is forgotten by a later one.
    """
    forgotten, taken = _CONSUMERS(client, [keys.stream], [keys.group, heir, int(silence * 1000), step])
    return forgotten, taken


def reap_producers(
    client: redis.Redis, keys: PartitionKeys, cursor: str, *, silence: float = PRODUCER_SILENCE, step: int = _STEP
) -> tuple[str, int]:
    """Forget silent producers among about `step` names; return where to go on (`0`: from the start), and how many."""
    following, forgotten = _PRODUCERS(client, [keys.sequences], [cursor, int(silence * 1000), step])
    return following.decode(), forgotten
