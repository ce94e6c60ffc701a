"""Checks whether a partition has lost a key, with commands that only read: for Redis users that may not call scripts.

Scripts make the same check before they write: see `lua/lib/sentinels.lua`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tallystream.storage.keys import FIRST

if TYPE_CHECKING:
    from collections.abc import Collection

    from tallystream.storage.keys import PartitionKeys


def sentinels_command(keys: PartitionKeys) -> tuple[Any, ...]:
    """Return the command that counts how many of a partition's keys with sentinels exist; see `has_sentinels`.

    These keys are the sequences, the ledger of the topic, and the live generation; in a later generation, also its
    ledger. Lost fields of these keys are not found.
    """
    return ("EXISTS", *_sentinels(keys))


def has_sentinels(keys: PartitionKeys, reply: int) -> bool:
    """Return whether the reply to `sentinels_command` states that all its keys exist; `False` for a dropped topic."""
    return reply == len(_sentinels(keys))


def _sentinels(keys: PartitionKeys) -> Collection[str]:
    return dict.fromkeys((keys.sequences, keys.topic_ledger, keys.live, keys.ledger))


def lost_commands(keys: PartitionKeys) -> list[tuple[Any, ...]]:
    """Return the commands whose replies show `parse_lost` whether a key is lost; run them in one transaction."""
    return [
        ("HMGET", keys.sequences, "!begun", "!closed"),
        ("HGET", keys.topic_ledger, "entries:gated"),
        ("GET", keys.live),
        ("EXISTS", keys.ledger),
        ("HGET", keys.ledger, "counted"),
        ("EXISTS", keys.forgotten),
        ("EXISTS", keys.begun),
    ]


def parse_lost(keys: PartitionKeys, replies: list[Any]) -> str | None:
    """Return the name of a lost key without which a partition is not counted; `None` if the replies show no loss.

    The partition must be one of a stored deployment. If its topic was dropped, only the sequences and the live
    generation can be lost. Lost ids and limits of periods are not found here.

    Args:
        keys: The keys of the partition in the live generation.
        replies: The replies to `lost_commands`, in order; none may be an error.
    """
    (begun, closed), gated, live, has_ledger, counted, has_forgotten, has_begun = replies
    if begun is None:
        return keys.sequences
    if gated is None and not closed:
        return keys.topic_ledger
    if live is None:
        return keys.live
    if gated is None:
        return None  # the topic was dropped
    if keys.generation != FIRST and not has_ledger:
        return keys.ledger
    if int(counted or 0) > 0 and not has_forgotten:
        return keys.forgotten
    return keys.begun if keys.generation != FIRST and not has_begun else None
