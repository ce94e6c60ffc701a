"""Applies a batch: one script call that acknowledges its entries and adds its deltas, or changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tallystream.client.durability import MEMORY
from tallystream.storage.scripts import Script

if TYPE_CHECKING:
    import redis

    from tallystream.client.durability import DurabilityCheck
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.counting.fold_result import DeadEntry, FoldResult

_APPLY: Final = Script("tallystream_worker.counting", "apply")


@dataclass(frozen=True)
class Applied:
    """Every entry of the batch is acknowledged and counted or parked.

    `is_confirmed` tells whether that is as safe as was asked for: on a replica, or on disk.
    """

    is_confirmed: bool = True


@dataclass(frozen=True)
class Stale:
    """Somebody else has applied part of it; nothing was done, and these entries are still pending."""

    pending: frozenset[str]


@dataclass(frozen=True)
class Switched:
    """Another generation is the live one by now; nothing was done."""


@dataclass(frozen=True)
class TotalsRejected:
    """These totals cannot take their delta; nothing was done."""

    totals: frozenset[tuple[str, str]]


Verdict = Applied | Stale | Switched | TotalsRejected


def apply(
    client: redis.Redis,
    keys: PartitionKeys,
    folded: FoldResult,
    durability: DurabilityCheck = MEMORY,
    *,
    beside: bool = False,
) -> Verdict:
    """Apply a batch.

    Args:
        client: Where.
        keys: Those of the generation that is counted.
        folded: The batch.
        durability: What it needs beside the server's answer.
        beside: Whether or not that generation is the live one: how a rebuild counts.

    Raises:
        redis.ResponseError: `NOGROUP` where the stream or the group is gone, and whatever else makes the server
            refuse a write; nothing was done.
        redis.ConnectionError, redis.TimeoutError: nothing is known; applying the batch again is safe.
    """
    names = [keys.stream, keys.dead, keys.ledger, keys.live]
    generation = "" if beside else keys.generation
    arguments = [keys.group, folded.encode(), generation, *dead_entry_arguments(folded)]
    (answer, *details), is_confirmed = durability.run(_APPLY, client, names, arguments)
    if answer == b"applied":
        return Applied(is_confirmed)
    if answer == b"moved":
        return Switched()
    texts = [detail.decode() for detail in details]
    if answer == b"stale":
        return Stale(frozenset(texts))
    return TotalsRejected(frozenset(zip(texts[::2], texts[1::2], strict=True)))


def dead_entry_arguments(folded: FoldResult) -> list[Any]:
    """Return what a batch parks, as the scripts read it."""
    return [argument for part in folded.parked for argument in dead_entry(part)]


def dead_entry(parked: DeadEntry) -> list[Any]:
    """Return the arguments for one parked entry: how many follow, then what is known, then the entry itself.

    The entry's own fields keep their names behind `e.`, so that any client can read what was parked.
    """
    fields: list[Any] = ["source", parked.source, "reason", parked.reason]
    fields += ["events", parked.events, "attempts", parked.deliveries]
    if parked.metric:
        fields += ["metric", parked.metric]
    for name, value in parked.fields.items():
        fields += [b"e." + name, value]
    return [len(fields), *fields]
