"""Lists, finds and drops the dead letters of a partition: entries that could not be counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tallystream.storage.scripts import Script

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import redis

    from tallystream.storage.keys import Layout, PartitionKeys

_DROP: Final = Script("tallystream_worker.dead_letters", "drop")
_PAGE: Final = 100


@dataclass(frozen=True)
class DeadLetter:
    """A dead letter: an entry, or a part of one, that could not be counted.

    Attributes:
        partition: The number of its partition.
        id: Its ID in the dead stream; the millisecond in it is the time at which it was dead-lettered.
        source: The stream ID of the original entry.
        reason: Why it could not be counted.
        events: How many events it contains.
        attempts: How often a worker has received it, and a retry has tried to count it.
        metric: The metric of its events; `""` if it is not known or not declared.
        fields: The fields of the entry, or of an entry that contains only this part.
    """

    partition: int
    id: str
    source: str
    reason: str
    events: int
    attempts: int
    metric: str
    fields: Mapping[bytes, bytes]

    @property
    def name(self) -> str:
        """The name of the dead letter on the command line: `<partition>/<ID>`."""
        return f"{self.partition}/{self.id}"


def letters(client: redis.Redis, layout: Layout, partition: int, first: str = "-") -> Iterator[DeadLetter]:
    """Yield the dead letters of a partition from ID `first` of the dead stream on, oldest first; read 100 at a time."""
    start = first
    while page := _page(client, layout.keys[partition], start, "+"):
        yield from (_letter(partition, id_.decode(), fields) for id_, fields in page)
        start = f"({page[-1][0].decode()}"


def find(client: redis.Redis, layout: Layout, partition: int, id_: str) -> DeadLetter | None:
    """Return the dead letter of a partition with this ID in the dead stream; `None` if it does not exist."""
    found = _page(client, layout.keys[partition], id_, id_)
    return _letter(partition, id_, found[0][1]) if found else None


def drop(client: redis.Redis, keys: PartitionKeys, ids: Sequence[str]) -> tuple[int, int]:
    """Delete dead letters for good, and add their events to the ledger's `dropped`; they also stay in its `dead`.

    Args:
        client: The server.
        keys: The keys of the partition.
        ids: The IDs of the dead letters in the dead stream; an ID that does not exist is ignored.

    Returns:
        The number of the dead letters that existed, and of their events.
    """
    _, entries, events = _DROP(client, [keys.dead, keys.ledger], list(ids))
    return entries, events


def shorten(client: redis.Redis, keys: PartitionKeys, most_bytes: int) -> tuple[float, int, int]:
    """Drop the 100 oldest dead letters if the dead stream uses more than `most_bytes` bytes of memory (0: no limit).

    One call may not be enough: call again until the returned fraction is at most 1.

    Returns:
        The memory of the dead stream before the call, as a fraction of `most_bytes` (0 without a limit); the number of
        dead letters, and of their events, that were dropped.
    """
    used = (client.memory_usage(keys.dead) or 0) / most_bytes if most_bytes else 0.0
    if used <= 1:
        return used, 0, 0
    oldest = _page(client, keys, "-", "+")
    return used, *drop(client, keys, [id_.decode() for id_, _ in oldest])


def _page(client: redis.Redis, keys: PartitionKeys, first: str, last: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    page: Any = client.xrange(keys.dead, min=first, max=last, count=_PAGE)
    return page or []


def _letter(partition: int, id_: str, fields: Mapping[bytes, bytes]) -> DeadLetter:
    def text(name: bytes) -> str:
        return fields.get(name, b"").decode(errors="replace")

    def number(name: bytes) -> int:
        return int(fields[name]) if fields.get(name, b"").isdigit() else 0

    entry = {name[2:]: value for name, value in fields.items() if name.startswith(b"e.")}
    return DeadLetter(
        partition, id_, text(b"source"), text(b"reason"), number(b"events"), number(b"attempts"), text(b"metric"), entry
    )
