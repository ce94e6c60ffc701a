"""Applies a batch: one script call acknowledges its entries and adds its deltas, or changes nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from tallystream.client.durability import MEMORY
from tallystream.client.replies import is_group_missing
from tallystream.errors import StreamError
from tallystream.storage.deployment_hash import live_mark
from tallystream.storage.scripts import Script
from tallystream_worker.counting.fold_result import parse_faults
from tallystream_worker.process import failpoints

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis

    from tallystream.client.durability import DurabilityCheck
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.counting.fold_result import DeadEntry, FoldFault, FoldResult

_APPLY: Final = Script("tallystream_worker.counting", "apply")


@dataclass(frozen=True)
class Applied:
    """A result of `apply`: the batch was counted.

    Its entries are acknowledged, and the ledger has the outcome of each of its events.

    Attributes:
        unconfirmed: Why the write is not as durable as configured; empty if it is.
        seconds: How long the script call took; network and the wait for durability are included.
    """

    unconfirmed: str = ""
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Stale:
    """A result of `apply`: some entries of the batch are no longer pending, and nothing was counted.

    Usually another worker has applied these entries, or this worker has, in a call whose reply was lost. An entry that
    was trimmed meanwhile may have been acknowledged without being counted.

    Attributes:
        pending: The IDs of the entries of the batch that are still pending; it may be empty.
    """

    pending: frozenset[str]


@dataclass(frozen=True)
class Early:
    """A result of `apply`: other entries must be counted before the batch, and nothing was counted.

    A reset is counted after every earlier entry, and every later entry after the reset.

    Attributes:
        earlier: The IDs of entries that must be counted before; they are pending. At most 1,000 are listed, so after
            these are counted, the next attempt may return more.
    """

    earlier: tuple[str, ...]


@dataclass(frozen=True)
class Switched:
    """A result of `apply`: the generation of the batch must not be counted now, and nothing was changed.

    Another generation is live, the partition is closed, or a restore has not finished. For a batch of a restore: this
    restore is not, or no longer, the one that replaces the counters of the partition.
    """


@dataclass(frozen=True)
class Outdated:
    """A result of `apply`: newer rules than those of the batch count the partition, and nothing was changed.

    Attributes:
        revision: The number of the newer rules.
    """

    revision: int


@dataclass(frozen=True)
class TotalsRejected:
    """A result of `apply`: some counters cannot be changed, and nothing was counted.

    They cannot take their delta, or a key that they need has another type.

    Attributes:
        totals: By metric and subject (`None` for all subjects of the metric), the reason; at most 2,000. If there are
            more, the next attempt returns them, after these are excluded.
    """

    totals: Mapping[FoldFault, str]


@dataclass(frozen=True)
class GroupMissing:
    """A result of `try_apply`: the stream or its consumer group does not exist, and nothing was counted.

    Attributes:
        error: The server's error, which is not raised.
    """

    error: Exception


@dataclass(frozen=True)
class Failed:
    """A result of `try_apply`: `apply` raised an error other than that of a missing stream or group.

    An entry or the server may have caused it: see `is_entry_error`. After a connection error or a timeout, the batch
    may have been applied.

    Attributes:
        error: The error, which is not raised.
    """

    error: Exception


Outcome = Applied | Stale | Early | Switched | Outdated | TotalsRejected
"""What `apply` returns: the reply of the script."""


def apply(
    client: redis.Redis,
    keys: PartitionKeys,
    batch: FoldResult,
    durability: DurabilityCheck = MEMORY,
    *,
    live_only: bool = True,
    restoring: str = "",
) -> Outcome:
    """Acknowledge the entries of a batch and add its deltas and dead letters, in one script call.

    Args:
        client: Runs the script.
        keys: The keys of the partition, in the generation to count into.
        batch: The folded entries.
        durability: What must have the write, after the server's reply, before it counts as confirmed. If it does not
            have the write within a second, this is no error: `Applied.unconfirmed` has the reason.
        live_only: Change nothing if the generation is not the live one, or if newer rules count the partition. If
            false, neither is checked, and the rules that count the partition do not change.
        restoring: If a restore counts the batch, the value that `PartitionKeys.live` has during this restore: change
            nothing if it has another one. Empty for no restore. Ignored with `live_only`.

    Returns:
        `Applied` if the batch was applied. Otherwise `Stale`, `Early`, `Switched`, `Outdated` or `TotalsRejected`,
        which state why it was not: nothing was counted or acknowledged. With `live_only`, the rules of an applied batch
        count the partition from now on if they are newer.

    Raises:
        redis.ResponseError: `NOGROUP` if the stream or the group is gone, or any other reply with which the server
            rejects a write; nothing was counted.
        redis.ConnectionError, redis.TimeoutError: the batch may or may not have been applied; applying it again is
            safe, because it returns `Stale` if it has been applied.
        KeyLost: the partition has lost a key; nothing was counted.
        StreamError: the script returned an unknown reply; it is not known whether the batch was applied.

    Any error of `batch.encode` is raised too; nothing was changed then.
    """
    names = [keys.stream, keys.dead, keys.ledger, keys.live]
    generation = live_mark(keys.generation, batch.revision) if live_only else restoring
    arguments = [keys.group, batch.encode(), generation, *dead_entry_arguments(batch)]
    failpoints.reach("before-dead-letter" if batch.dead else "before-apply")
    began = time.perf_counter()
    (answer, *details), unconfirmed = durability.run(_APPLY, client, names, arguments)
    seconds = time.perf_counter() - began
    failpoints.reach("after-dead-letter" if batch.dead else "after-apply")
    texts = [detail.decode() for detail in details]
    if answer == b"applied":
        return Applied(unconfirmed, seconds)
    if answer == b"stale":
        return Stale(frozenset(texts))
    if answer == b"early":
        return Early(tuple(texts))
    if answer == b"switched":
        return Switched()
    if answer == b"outdated":
        return Outdated(int(texts[0]))
    if answer == b"rejected":
        return TotalsRejected(parse_faults(details))
    raise StreamError(f"{keys.stream}: apply.lua returned {answer!r}")


def try_apply(
    client: redis.Redis,
    keys: PartitionKeys,
    batch: FoldResult,
    durability: DurabilityCheck,
    *,
    live_only: bool,
    restoring: str = "",
) -> Outcome | GroupMissing | Failed:
    """Call `apply` with these arguments and return its result; never raise an `Exception`.

    Instead, return `GroupMissing` if the stream or its group does not exist, and `Failed` for any other error.
    """
    try:
        return apply(client, keys, batch, durability, live_only=live_only, restoring=restoring)
    except Exception as error:  # noqa: BLE001  # the caller decides whether it is about an entry
        if isinstance(error, RedisError) and is_group_missing(error):
            return GroupMissing(error)
        return Failed(error)


def dead_entry_arguments(batch: FoldResult) -> list[Any]:
    """Return the arguments of all dead letters of a batch, see `dead_entry`, one dead letter after the other."""
    return [argument for dead in batch.dead for argument in dead_entry(dead)]


def dead_entry(dead: DeadEntry) -> list[Any]:
    """Return the script arguments of one dead letter: the number of arguments that follow, then names and values.

    The dead letter's own fields come first (`source`, `reason`, `events`, ...), then those of an entry with its events,
    each under its name with the prefix `e.`.
    """
    fields: list[Any] = ["source", dead.source, "reason", dead.reason]
    fields += ["events", dead.events, "attempts", dead.deliveries]
    if dead.metric:
        fields += ["metric", dead.metric]
    for name, value in dead.fields.items():
        fields += [b"e." + name, value]
    return [len(fields), *fields]
