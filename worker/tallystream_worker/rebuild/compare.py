"""Compares two generations of counters on one server, to show which counters a switch would change."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from tallystream.rules.windows import labelled_id_period
from tallystream_worker.rebuild.values import Difference, Piece, chunks, differing, pieces, shrunk_in

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
    """Return a function that returns `False` for the name of a period of ids that either generation has forgotten."""
    ends: dict[str, int] = {}
    for keys in (present, new):
        for metric, end in client.execute_command("HGETALL", keys.forgotten_ids).items():
            ends[metric.decode()] = max(int(end), ends.get(metric.decode(), 0))

    def wanted(name: str) -> bool:
        kind, _, rest = name.partition(":")
        metric, _, label = rest.partition(":")
        rule = rules.metric.get(metric) if kind == "seen" else None
        period = labelled_id_period(rule.ids, label) if rule is not None and rule.ids is not None else None
        return period is None or period.end * 1000 > ends.get(metric, 0)

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
