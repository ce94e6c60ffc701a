"""Applies a batch: one script call that acknowledges its entries and adds its deltas, or changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tallystream.keys import GROUP
from tallystream.script import Script

if TYPE_CHECKING:
    import redis

    from tallystream.keys import PartitionKeys
    from tallystream_worker.fold import Batch, Parked

_APPLY: Final = Script("tallystream_worker", "apply")
_encode: Final = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True)
class Applied:
    """Every entry of the batch is acknowledged and counted or parked."""


@dataclass(frozen=True)
class Stale:
    """Somebody else has applied part of it; nothing was done, and these entries are still pending."""

    pending: frozenset[str]


@dataclass(frozen=True)
class Refused:
    """These totals cannot take their delta; nothing was done."""

    totals: frozenset[tuple[str, str]]


Verdict = Applied | Stale | Refused


def apply(client: redis.Redis, keys: PartitionKeys, batch: Batch) -> Verdict:
    """Apply a batch.

    Raises:
        redis.ResponseError: `NOGROUP` where the stream or the group is gone, and whatever else makes the server
            refuse a write; nothing was done.
        redis.ConnectionError, redis.TimeoutError: nothing is known; applying the batch again is safe.
    """
    packed = _encode(
        {
            "ids": batch.ids,
            "totals": (
                [
                    prefix + subject
                    for prefix, sums in ((keys.total(metric, ""), sums) for metric, sums in batch.totals.items())
                    for subject in sums
                ],
                [delta for sums in batch.totals.values() for delta in sums.values()],
            ),
            # As text: a Lua number would print large amounts in a form that HINCRBY does not take.
            "ledger": [part for name, amount in batch.ledger.items() for part in (name, str(amount))],
        }
    )
    parked = [argument for entry in batch.parked for argument in _dead_entry(entry)]
    answer, *details = _APPLY(client, [keys.stream, keys.dead, keys.ledger], [GROUP, packed, *parked])
    if answer == b"applied":
        return Applied()
    if answer == b"stale":
        return Stale(frozenset(detail.decode() for detail in details))
    counters = [(metric, subject) for metric, sums in batch.totals.items() for subject in sums]
    return Refused(frozenset(counters[int(detail) - 1] for detail in details))


def _dead_entry(parked: Parked) -> list[Any]:
    """Return the arguments for one parked entry: how many follow, then what is known, then the entry itself.

    The entry's own fields keep their names behind `e.`, so that any client can read what was parked.
    """
    fields: list[Any] = ["source", parked.source, "reason", parked.reason]
    fields += ["events", parked.events, "attempts", parked.deliveries]
    for name, value in parked.fields.items():
        fields += [b"e." + name, value]
    return [len(fields), *fields]
