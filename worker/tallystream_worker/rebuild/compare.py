"""Compares two generations of counters on one server, to show which counters a switch would change."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from tallystream_worker.rebuild.removed import RemovedPeriods
from tallystream_worker.rebuild.values import Difference, Piece, chunks, differing, pieces, replies_of, shrunk_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import PartitionKeys

_LOOKS: Final = 5
_PAUSE: Final = 0.05


def compare(client: redis.Redis, deployment: Deployment, generation: int) -> Iterator[Difference]:
    """Yield one `Difference` for each counter whose value in `generation` (`found`) is not the live value (`expected`).

    An absent counter and one of 0 are equal. Counters that arriving events are changing differ briefly. So a `Piece`
    that differs is read up to five times, 50 ms apart, and only the counters that still differ in the last read are
    yielded. Not compared are the counters that `pieces` leaves out, the ledgers, the periods that one of the
    generations has removed (see `RemovedPeriods`), and keys that have another type than they should in both. Of the
    leaderboards of some metrics, only subjects that both list are compared (see `differing`).

    Both generations must exist in the live topic. If a key has another type in one of them, its counters have a text
    there as their value; a plain number counts as absent.

    Raises:
        ConfigurationError: `generation` has no stored rules, and no rules are published.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    rules = deployment.rules_of(generation)
    for present, new in zip(deployment.layout.keys, deployment.layout.of(generation).keys, strict=True):
        seen: set[str] = set()
        removed = RemovedPeriods(rules)
        for keys in (present, new):
            removed.learn(_hash(client, keys.forgotten))
        shrunk = shrunk_in(*(_hash(client, keys.ledger) for keys in (present, new)))
        for keys in (present, new):
            for chunk in chunks(pieces(client, keys, rules, wanted=removed.can_compare)):
                yield from _differences(client, present, new, chunk, seen, shrunk)


def _differences(
    client: redis.Redis,
    present: PartitionKeys,
    new: PartitionKeys,
    chunk: list[Piece],
    seen: set[str],
    shrunk: frozenset[str],
) -> Iterator[Difference]:
    for look in range(_LOOKS):
        if not chunk:
            return
        if look:
            time.sleep(_PAUSE)
        replies = _read(client, present, new, chunk)
        pairs = [
            (piece, piece.values(replies[2 * n]), piece.values(replies[2 * n + 1])) for n, piece in enumerate(chunk)
        ]
        unequal = [pair for pair in pairs if differing(*pair, shrunk)]
        chunk = [piece for piece, _, _ in unequal]
    for piece, before, after in unequal:
        for name in differing(piece, before, after, shrunk):
            if name not in seen:
                seen.add(name)
                yield Difference(present.stream, name, before.get(name), after.get(name))


def _read(client: redis.Redis, present: PartitionKeys, new: PartitionKeys, chunk: list[Piece]) -> list[Any]:
    with client.pipeline(transaction=True) as pipeline:
        for piece in chunk:
            pipeline.execute_command(*piece.command(present))
            pipeline.execute_command(*piece.command(new))
        return replies_of(pipeline)


def _hash(client: redis.Redis, key: str) -> dict[bytes, bytes]:
    """Return a hash; an empty one if the key does not exist or has another type."""
    with client.pipeline(transaction=False) as pipeline:
        pipeline.hgetall(key)
        (stored,) = replies_of(pipeline)
    return stored if isinstance(stored, dict) else {}
