"""What is stored in one generation of counters, in pieces small enough to be read at one moment and compared."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress, islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from tallystream_worker.rebuild.drop import counter_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from collections.abc import Set as AbstractSet

    import redis

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import PartitionKeys

_HASHES: Final = ("minute", "hour", "day", "month", "limit", "once", "seen")
_NUMBERS: Final = ("total", "up")
_PAGE: Final = 500
_CHUNK: Final = 1000

Value = int | str | None


@dataclass(frozen=True)
class Difference:
    """One counter that is not what it should be; `expected` and `found` are `None` where there is none.

    `counter` is its key behind the generation's prefix, and its field or member behind ` -> `.
    """

    stream: str
    counter: str
    expected: Value
    found: Value

    @property
    def difference(self) -> int | None:
        """By how much it is too high, where both are numbers."""
        if isinstance(self.expected, str) or isinstance(self.found, str):
            return None
        return (self.found or 0) - (self.expected or 0)


@dataclass(frozen=True)
class Piece:
    """Some counters that are read by one command.

    A key behind the prefix, with fields where it is a hash; or, where it is nothing but a number, many such keys.
    """

    name: str
    fields: tuple[bytes, ...] = ()
    numbers: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What it counts: `total`, `hour`, ..."""
        return self.name.partition(":")[0]

    @property
    def metric(self) -> str:
        """Whose it is."""
        return _metric(self.name)

    @property
    def size(self) -> int:
        """How many counters it is."""
        return len(self.fields) or len(self.numbers) or 1

    def names(self) -> Iterable[object]:
        """Return what tells its counters from all others."""
        if self.numbers:
            return self.numbers
        return ((self.name, field) for field in self.fields) if self.fields else (self.name,)

    def without(self, known: AbstractSet[int]) -> Piece | None:
        """Return what of it is not among these, given as hashes of `names`; `None` where all is."""
        left = [hash(name) not in known for name in self.names()]
        if not any(left):
            return None
        return Piece(self.name, tuple(compress(self.fields, left)), tuple(compress(self.numbers, left)))

    def command(self, keys: PartitionKeys) -> tuple[Any, ...]:
        """Return what reads it."""
        if self.numbers:
            prefix = keys.counters
            return ("MGET", *(prefix + name for name in self.numbers))
        key = keys.counters + self.name
        if self.fields:
            return ("HMGET", key, *self.fields)
        if self.kind == "top":
            return ("ZRANGE", key, 0, -1, "WITHSCORES")
        return ("PFCOUNT" if self.kind == "unique" else "GET", key)

    def values(self, reply: Any) -> Mapping[str, Value]:
        """Return what was read, by counter; nothing that is absent or 0."""
        if self.numbers:
            return {name: value for name, raw in zip(self.numbers, reply, strict=True) if (value := _value(raw))}
        if self.fields:
            named = {_text(field): _value(value) for field, value in zip(self.fields, reply, strict=True)}
            return {f"{self.name} -> {field}": value for field, value in named.items() if value}
        if self.kind == "top":
            # Whether a subject that came back to 0 is listed depends on how its events were batched.
            return {f"{self.name} -> {_text(member)}": int(float(score)) for member, score in reply if float(score)}
        value = reply if isinstance(reply, int) else _value(reply)
        return {self.name: value} if value else {}


def pieces(
    client: redis.Redis,
    keys: PartitionKeys,
    rules: Rules,
    *,
    wanted: Callable[[str], bool] = lambda _: True,
    agreed: Mapping[str, int] = MappingProxyType({}),
) -> Iterator[Piece]:
    """Yield what is stored in a partition, some of it perhaps twice, and only what follows from the events alone.

    Which copies a Bloom filter lets through, and which subjects are beyond `max_subjects`, depends on their order.

    Args:
        client: Where.
        keys: The partition's, of one generation.
        rules: Those that it is counted by.
        wanted: Is asked about each key's name behind the prefix.
        agreed: Hashes that have nothing new as long as they have just so many fields.
    """
    numbers: list[str] = []
    follow: dict[str, bool] = {}
    skipped = len(keys.counters.encode())
    for key in counter_keys(client, keys):
        name = key[skipped:].decode(errors="surrogateescape")
        metric = _metric(name)
        if metric not in follow:
            rule = rules.metric.get(metric)
            follow[metric] = rule is None or (rule.max_subjects is None and rule.seen != "bloom")
        if not follow[metric] or not wanted(name):
            continue
        kind = name.partition(":")[0]
        if kind in _NUMBERS:
            numbers.append(name)
            if len(numbers) == _PAGE:
                yield Piece(kind, numbers=tuple(numbers))
                numbers.clear()
        elif kind in _HASHES:
            if name in agreed and client.hlen(key) == agreed[name]:
                continue
            fields = (field for field, _ in client.hscan_iter(key, count=_PAGE))
            while page := tuple(islice(fields, _PAGE)):
                yield Piece(name, page)
        else:
            yield Piece(name)
    if numbers:
        yield Piece(_NUMBERS[0], numbers=tuple(numbers))


def chunks(every: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Yield pieces in chunks of about so many counters that reading one holds the server for a millisecond."""
    chunk: list[Piece] = []
    size = 0
    for piece in every:
        chunk.append(piece)
        size += piece.size
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _metric(name: str) -> str:
    parts = name.split(":", 3)
    return parts[2] if parts[0] == "top" and len(parts) > 2 else parts[1]  # noqa: PLR2004  # top:<window>:<metric>:<label>


def comparable(
    piece: Piece, before: Mapping[str, Value], after: Mapping[str, Value], shrunk: frozenset[str]
) -> list[str]:
    """Return the names in a piece that must have equal values in two generations.

    Which subjects a leaderboard has lost while others sank depends on the order; what it says of those it has, not.
    `shrunk` are the metrics of which some sank.
    """
    names = before.keys() | after.keys()
    if piece.kind == "top" and piece.metric in shrunk:
        names = before.keys() & after.keys()
    return sorted(name for name in names if before.get(name) != after.get(name))


def shrunk_in(*ledgers: Mapping[bytes, bytes]) -> frozenset[str]:
    """Return the metrics in whose leaderboards some sank, by the ledgers of generations."""
    marks = (field.decode(errors="replace").partition("@") for ledger in ledgers for field in ledger)
    return frozenset(metric for mark, _, metric in marks if mark == "shrunk")


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace").replace("\n", " ")


def _value(raw: bytes | None) -> Value:
    if raw is None:
        return None
    text = raw.decode(errors="backslashreplace")
    return int(text) if text.lstrip("-").isdigit() and len(text) < 20 else text  # noqa: PLR2004  # digits of 2^63
