"""Compares two generations of counters on one server, to show which counters a switch would change."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from tallystream_worker.rebuild.values import Difference, Piece, chunks, differing, pieces, shrunk_in
from tallystream_worker.snapshot.names import bucket_of, parse, period_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import PartitionKeys

_LOOKS: Final = 5
_PAUSE: Final = 0.05


def compare(client: redis.Redis, deployment: Deployment, generation: int) -> Iterator[Difference]:
    """Yield one `Difference` for each counter whose value in `generation` (`found`) is not the live value (`expected`).

    Counters that arriving events are changing differ briefly. So a `Piece` that differs is read up to five times, 50 ms
    apart, and only the counters that still differ in the last read are yielded. The metrics that `pieces` leaves out
    are not compared.
    """
    rules = deployment.rules_of(generation)
    for present, new in zip(deployment.layout.keys, deployment.layout.of(generation).keys, strict=True):
        seen: set[str] = set()
        wanted = _remembered(client, present, new, rules)
        shrunk = shrunk_in(*(client.execute_command("HGETALL", keys.ledger) for keys in (present, new)))
        for keys in (present, new):
            for chunk in chunks(pieces(client, keys, rules, wanted=wanted)):
                yield from _differences(client, present, new, chunk, seen, shrunk)


def _remembered(client: redis.Redis, present: PartitionKeys, new: PartitionKeys, rules: Rules) -> Callable[[str], bool]:
    """Return a function that returns `False` for the name of a key whose period either generation has removed."""
    ends: dict[str, int] = {}
    for keys in (present, new):
        for kind, end in client.execute_command("HGETALL", keys.forgotten).items():
            if not kind.startswith(b"!"):
                ends[kind.decode()] = max(int(end), ends.get(kind.decode(), 0))

    def wanted(name: str) -> bool:
        name = name.removeprefix("top:")
        end = ends.get(":".join(name.split(":", 2)[:2]))
        found = parse(name, rules) if end is not None else None
        kept = None if found is None else period_of(bucket_of(found[0]) or name, rules)
        return end is None or kept is None or kept[0].end * 1000 > end

    return wanted


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
        return pipeline.execute()
