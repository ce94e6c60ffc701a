"""The fields of the hashes that describe a deployment: `tally:meta`, the root, and one for each later log.

The hash of a log says its layout version, partitions, tags, epoch and rules. Once a rebuild has begun it says more:
`generation`, the one that readers begin with, and for each other one that is there the rules that it counts by, in
`rules@<generation>`. Which generation is live in a partition is said by the partition itself (`PartitionKeys.live`),
where the scripts see it. `spread@<metric>` says that events of a metric may lie in any partition of this log: a fact of
the log, not of a generation, so it stays, and every generation's rules are read in its light.

The root is the hash of the first log. Once the events were moved to another number of partitions, its field `log` names
the log that is live, which has a hash of its own (`Layout.meta`) with the same fields. `partitions@<log>` says how many
partitions an earlier log had, `kept` which of them is still there, and `moving` the log that is being filled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tallystream.storage.keys import FIRST_TOPIC, LAYOUT, Layout, tag_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SNAPSHOT_AT: Final = "snapshot"
SNAPSHOT_EVERY: Final = "snapshot-every"
"""Fields for whoever watches: the second of the latest snapshot, and how many seconds lie between two, while a worker
takes them by itself."""
_SPREAD: Final = "spread@"


def fields_of(layout: Layout, epoch: str) -> dict[str, Any]:
    """Return the fields of the hash of a new log."""
    tags = " ".join(tag_of(i) for i in range(layout.partitions))
    return {"layout": LAYOUT, "partitions": layout.partitions, "tags": tags, "epoch": epoch}


def spread_fields(metrics: Iterable[str]) -> dict[Any, Any]:
    """Return the fields that say that events of metrics may lie in any partition."""
    return {f"{_SPREAD}{metric}": 1 for metric in sorted(metrics)}


def spread_metrics(fields: Mapping[bytes, bytes]) -> frozenset[str]:
    """Return the metrics whose events may lie in any partition."""
    return frozenset(name.decode() for name, _ in _beginning_with(fields, _SPREAD.encode()))


def live_topic(root: Mapping[bytes, bytes], namespace: str) -> Layout:
    """Return the log that is live, by the fields of the root: where its own hash lies, and nothing else of it."""
    return Layout(namespace=namespace, topic=int(root.get(b"log", FIRST_TOPIC)))


def by_number(fields: Mapping[bytes, bytes], prefix: bytes) -> dict[int, bytes]:
    """Return the values of the fields `prefix` + a number, by that number."""
    return {int(number): value for number, value in _beginning_with(fields, prefix)}


def number(fields: Mapping[bytes, bytes], name: bytes) -> int | None:
    """Return the number that a field holds, `None` without the field."""
    return int(fields[name]) if name in fields else None


def _beginning_with(fields: Mapping[bytes, bytes], prefix: bytes) -> list[tuple[bytes, bytes]]:
    return [(name.removeprefix(prefix), value) for name, value in fields.items() if name.startswith(prefix)]
