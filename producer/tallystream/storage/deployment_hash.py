"""The fields of the hashes that describe a deployment: `tally:meta`, the root, and one hash for each later topic.

The hash of a topic has its layout version, partitions, tags, epoch, and in `rules` the rules of the generation that
readers begin with. A rebuild adds fields: `generation` is the number of that generation, `newest` the newest one,
`building` the one that is being counted, and `rules@<generation>` has the rules of each other existing generation.
While a generation is being removed, the hash has `dropping@<generation>`. `turn` is the number of the last command that
changes generations.
`revision` is the number of `rules`, and `revision@<generation>` that of other rules; `newest-revision` is the highest.
Different rules never have the same number. Each partition stores its own live generation (`PartitionKeys.live`), and
the number of the rules that count it, because the scripts read them there.
`spread@<metric>` marks a metric whose events may be in any partition of this topic. It belongs to the topic, not to a
generation: it stays, and the rules of every generation are read with it.

The root is the hash of the first topic. After a repartition, its field `log` is the number of the live topic, which has
its own hash (`Layout.meta`) with the same fields. In the root, `partitions@<topic>` is the number of partitions of an
earlier topic, `kept` is the earlier topic that still exists, and `moving` is the topic that is being filled.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import DamagedValue
from tallystream.storage.keys import FIRST_TOPIC, LAYOUT, Layout, tag_of
from tallystream.storage.stored_values import NUMBER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SNAPSHOT_AT: Final = "snapshot"
"""Field for monitoring: the second (since 1970) of the latest snapshot."""

SNAPSHOT_EVERY: Final = "snapshot-every"
"""Field for monitoring: seconds between two snapshots. A worker that takes snapshots periodically writes it, and
removes it when it stops."""

VERIFIED: Final = "verified"
"""Field for monitoring: three numbers about the last verification by a worker: when it ended (seconds since 1970), how
many kinds of faults it found, how many checks could not be made."""

ARCHIVE_LOST: Final = "archive-lost"
"""Field for monitoring: number of archived entries that the server has lost, and that producers had not sent again when
the archiver found the loss; 0 when their files were moved away."""

CLOCK_STEP: Final = "clock-step"
"""Field for monitoring: the last step of a server's clock that a worker noticed; see `tallystream.reading.clocks`."""

RESTORING: Final = "restoring"
"""Field that the root has, instead of a description, while a restore replaces the counters; if it is interrupted,
until it is repeated. Its value has the retractions of the restored rules, for the repetition."""

DURABILITY: Final = "durability"
"""Field of the root: what workers wait for after each batch, and commands after each of their steps (`Durability`). A
worker writes it when it starts; without it, the memory of the server is enough."""

_REQUIRED: Final = ("layout", "partitions", "epoch")
"""The fields that every hash of a topic has, and without which it cannot be read."""

_HASH: Final = "the hash that describes the deployment (tallystream verify names it)"
_DIGITS: Final = 16

_SPREAD: Final = "spread@"
_RESTORING: Final = re.compile(rb" restoring ([0-9]+)")
_LIVE: Final = re.compile(rb"([1-9]\d*)(?: [1-9]\d*)?((?: restoring \d+ \S+)?(?: closed)?)")


def fields_of(layout: Layout, epoch: str) -> dict[str, Any]:
    """Return the fields of a new topic's hash: layout version, number of partitions, hash tags (one text), `epoch`."""
    tags = " ".join(tag_of(i) for i in range(layout.partitions))
    return {"layout": LAYOUT, "partitions": layout.partitions, "tags": tags, "epoch": epoch}


def live_mark(generation: int, revision: int) -> str:
    """Return the value of `PartitionKeys.live` of an open partition: the generation, and the number of its rules.

    `revision` is the number of the rules; 0 leaves it out.
    """
    return f"{generation} {revision}" if revision else str(generation)


def parse_live(value: bytes, key: str) -> tuple[int, bool]:
    """Return the generation in a value of `PartitionKeys.live`, and whether the partition is open.

    It is not open if the value has a word: `closed`, or `restoring`.

    Raises:
        DamagedValue: the value has another form than `live_mark` returns, with or without such words after it; the
            error names `key`. Scripts compare the value as a text, so they would take it for another generation.
    """
    found = _LIVE.fullmatch(value)
    if found is None:
        raise DamagedValue(key, value)
    return int(found[1]), not found[2]


def restoring_number(value: bytes) -> int:
    """Return the number after the word `restoring` in a value of `PartitionKeys.live`: that of the restore's closing.

    Return 0 if the value does not have the word: then no restore replaces the counters.
    """
    found = _RESTORING.search(value)
    return int(found[1]) if found else 0


def spread_fields(metrics: Iterable[str]) -> dict[Any, Any]:
    """Return a field `spread@<metric>` with the value 1 for each given metric: its events may be in any partition."""
    return {f"{_SPREAD}{metric}": 1 for metric in sorted(metrics)}


def spread_metrics(fields: Mapping[bytes, bytes]) -> frozenset[str]:
    """Return the metrics whose events may be in any partition, by the fields `spread@<metric>` of a topic's hash."""
    return frozenset(name.decode() for name, _ in _beginning_with(fields, _SPREAD.encode()))


def live_topic(root: Mapping[bytes, bytes], namespace: str) -> Layout:
    """Return a layout of the live topic; use only its `topic`, `root` and `meta`, because its partitions are not known.

    Args:
        root: The fields of the root hash; without a field `log`, the first topic is live.
        namespace: The first part of every key.

    Raises:
        DamagedValue: the field `log` is not a whole number.
    """
    return Layout(namespace=namespace, topic=number(root, b"log") or FIRST_TOPIC)


def lost_field(fields: Mapping[bytes, bytes]) -> str | None:
    """Return the name of a field that the hash of a topic has lost, and without which it must not be used.

    These are the fields that every such hash has, and `rules` if it has their number: a worker that publishes its rules
    in place of lost ones would remove metrics. `None` if no such field is missing.
    """
    required = (*_REQUIRED, "rules") if b"revision" in fields else _REQUIRED
    return next((name for name in required if name.encode() not in fields), None)


def lost_field_of_root(root: Mapping[bytes, bytes]) -> str | None:
    """Return the name of a field that the root has lost: `log`, `layout` or `epoch`; `None` if none is lost.

    A root without `log` has lost it only if it states the partitions of an earlier topic: else the first topic is live.
    """
    if b"log" not in root and _beginning_with(root, b"partitions@"):
        return "log"
    return next((name for name in ("layout", "epoch") if name.encode() not in root), None)


def by_number(fields: Mapping[bytes, bytes], prefix: bytes) -> dict[int, bytes]:
    """Return a mapping, number -> value, of the fields that begin with `prefix`.

    Raises:
        DamagedValue: after `prefix`, the name of a field is not a whole number.
    """
    found = _beginning_with(fields, prefix)
    return {whole_number(rest, (prefix + rest).decode(errors="replace")): value for rest, value in found}


def number(fields: Mapping[bytes, bytes], name: bytes) -> int | None:
    """Return the value of the field `name` as a whole number; `None` if there is no such field.

    Raises:
        DamagedValue: the value is not a whole number.
    """
    return whole_number(fields[name], name.decode()) if name in fields else None


def whole_number(value: bytes, field: str) -> int:
    """Return the value of a field of a topic's hash as a whole number.

    Raises:
        DamagedValue: the value is not a whole number, or has another form than tallystream writes, such as `01`; the
            error names the field.
    """
    if not NUMBER.fullmatch(value) or len(value) > _DIGITS:
        raise DamagedValue(_HASH, value, field=field)
    return int(value)


def _beginning_with(fields: Mapping[bytes, bytes], prefix: bytes) -> list[tuple[bytes, bytes]]:
    return [(name.removeprefix(prefix), value) for name, value in fields.items() if name.startswith(prefix)]
