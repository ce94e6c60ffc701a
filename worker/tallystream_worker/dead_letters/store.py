"""Dead letters: entries that could not be counted, to be looked at, counted after all, or dropped.

A retry folds the parked entry as the entry that it came from, with that one's ID and so its time: what is late or
lies in the future is judged as it was. It is not appended again. So a replay of the log, which meets the original
under today's rules, gives the same totals as the retry did.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import StreamError
from tallystream.storage.scripts import Script
from tallystream.wire.codec import was_decided
from tallystream_worker.counting.apply import dead_entry
from tallystream_worker.counting.entry import Entry
from tallystream_worker.counting.fold import OVERFLOW, Fold

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import redis

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout, PartitionKeys
    from tallystream_worker.counting.fold import FoldFault

_RETRY: Final = Script("tallystream_worker.dead_letters", "retry")
_DROP: Final = Script("tallystream_worker.dead_letters", "drop")
_PAGE: Final = 100


@dataclass(frozen=True)
class DeadLetter:
    """A parked entry.

    Attributes:
        partition: Where it is.
        id: Its ID in the dead stream; the millisecond is when it was parked.
        source: ID of the stream entry that it is, or is part of.
        reason: Why it was not counted.
        events: How many events it holds.
        attempts: How often it has been tried.
        metric: What it counts, `""` where that is not known or not declared.
        fields: The entry itself.
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
        """Return what names it on the command line: partition and ID."""
        return f"{self.partition}/{self.id}"


@dataclass(frozen=True)
class Retried:
    """What became of a retried entry's events: `counted` covers those that a rule rejected or that came late."""

    counted: int
    parked: int


def letters(client: redis.Redis, layout: Layout, partition: int, first: str = "-") -> Iterator[DeadLetter]:
    """Yield the parked entries of one partition, the oldest first, a page at a time."""
    start = first
    while page := _page(client, layout.keys[partition], start, "+"):
        yield from (_letter(partition, id_.decode(), fields) for id_, fields in page)
        start = f"({page[-1][0].decode()}"


def find(client: redis.Redis, layout: Layout, partition: int, id_: str) -> DeadLetter | None:
    """Return one parked entry, `None` where it is not parked (any more)."""
    found = _page(client, layout.keys[partition], id_, id_)
    return _letter(partition, id_, found[0][1]) if found else None


def retry(client: redis.Redis, layout: Layout, rules: Rules, letter: DeadLetter) -> Retried | None:
    """Count a parked entry under today's rules, once, however many do so at a time.

    What still cannot be counted is parked again, with one attempt more. `None` where it is not parked any more.

    Raises:
        StreamError: its fields hold another number of events than the books say; or another generation is live by now.
        redis.RedisError: it is not known whether it was counted; retrying again is safe.
    """
    keys = layout.keys[letter.partition]
    fold = Fold(layout, letter.partition, rules)
    excluded: dict[FoldFault, str] = {}
    while True:
        folded, _ = fold([Entry(letter.source, letter.fields)], excluded)
        parked = [replace(part, deliveries=letter.attempts + 1) for part in folded.parked]
        kept = sum(part.events for part in parked)
        settled = folded.settled.total() + folded.late.total()
        if was_decided(letter.fields) or settled + kept != letter.events:
            raise StreamError(f"{letter.name}: does not hold the {letter.events} events that it states; drop it")
        moves = Counter(
            {name: by for name, by in folded.ledger.items() if not name.startswith(("appended", "entries:"))}
        )
        moves["dead"] -= letter.events
        if letter.metric:
            moves[f"dead@{letter.metric}"] -= letter.events
        batch = folded.batch.encode([letter.id], {name: by for name, by in moves.items() if by})
        again = [argument for part in parked for argument in dead_entry(part)]
        answer, *details = _RETRY(
            client, [keys.dead, keys.dead, keys.ledger, keys.live], [batch, keys.generation, *again]
        )
        if answer == b"applied":
            return Retried(settled, kept)
        if answer == b"moved":
            raise StreamError(f"{keys.dead}: the counters were rebuilt meanwhile; list the parked entries again")
        if answer == b"stale":
            return None
        names = [detail.decode() for detail in details]
        excluded |= dict.fromkeys(zip(names[::2], names[1::2], strict=True), OVERFLOW)


def drop(client: redis.Redis, keys: PartitionKeys, ids: Sequence[str]) -> tuple[int, int]:
    """Remove parked entries for good; return how many of them were there, and their events."""
    entries, events = _DROP(client, [keys.dead, keys.ledger], list(ids))
    return entries, events


def shorten(client: redis.Redis, keys: PartitionKeys, most_bytes: int) -> tuple[float, int, int]:
    """Drop the oldest parked entries, up to a page of them, where the dead stream is larger than `most_bytes`.

    Returns:
        The part of its bytes that it takes; the entries and the events that were dropped.
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
