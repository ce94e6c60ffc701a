"""Splits the counters of a generation into pieces, each read by one command, and compares their values."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress, islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError, ResponseError

from tallystream.client.replies import is_wrong_type
from tallystream.rules.parts import BLOOM
from tallystream_worker.rebuild.drop import counter_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from collections.abc import Set as AbstractSet

    import redis
    from redis.client import Pipeline

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import PartitionKeys

_HASHES: Final = ("minute", "hour", "day", "month", "limit", "once", "seen")
_NUMBERS: Final = ("total", "up")
_PAGE: Final = 500
_CHUNK: Final = 1000

Value = int | str | None
"""The value of a counter: a number, another text, or `None` if the counter does not exist."""

_OTHER_TYPE: Final = "in a key of another type"
"""The value of every counter in a key that another client has replaced by one of another type."""


@dataclass(frozen=True)
class Difference:
    """One counter whose value is not the expected one.

    Attributes:
        stream: The stream of its partition.
        counter: Its key without the generation's prefix; if it is a field of a hash or a member of a sorted set,
            followed by ` -> ` and that name.
        expected: The expected value; `None` if the counter should be absent or 0, but 0 if it is in the ledger.
        found: The value found; `None` if the counter is absent or 0, but 0 if it is in the ledger.
    """

    stream: str
    counter: str
    expected: Value
    found: Value

    @property
    def difference(self) -> int | None:
        """By how much the counter is too high, an absent value being 0; `None` if a value is a text."""
        if isinstance(self.expected, str) or isinstance(self.found, str):
            return None
        return (self.found or 0) - (self.expected or 0)


@dataclass(frozen=True)
class Piece:
    """Some counters that one command reads: fields of a hash, many keys with plain numbers, or one key of another type.

    Attributes:
        name: The key without the generation's prefix; for plain numbers, `total` or `up`, whatever kinds `numbers` has.
        fields: Fields of the hash; empty for other keys.
        numbers: The keys of plain numbers without the prefix; empty for other keys.
    """

    name: str
    fields: tuple[bytes, ...] = ()
    numbers: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The first part of `name`: `total`, `hour`, `top`, ..."""
        return self.name.partition(":")[0]

    @property
    def metric(self) -> str:
        """The metric in the name; `IndexError` for plain numbers, which may be of several metrics."""
        return metric_of(self.name)

    @property
    def size(self) -> int:
        """The number of counters in the piece; a leaderboard is one."""
        return len(self.fields) or len(self.numbers) or 1

    def names(self) -> Iterable[object]:
        """Return one hashable value for each counter of the piece, different from that of any other counter."""
        if self.numbers:
            return self.numbers
        return ((self.name, field) for field in self.fields) if self.fields else (self.name,)

    def without(self, known: AbstractSet[int]) -> Piece | None:
        """Return the piece without the counters whose hash is in `known`; `None` if none is left.

        A counter's hash is that of its item in `names`.
        """
        left = [hash(name) not in known for name in self.names()]
        if not any(left):
            return None
        return Piece(self.name, tuple(compress(self.fields, left)), tuple(compress(self.numbers, left)))

    def only(self, names: AbstractSet[str]) -> Piece:
        """Return the piece with only those of its counters that have these names; unchanged if it is one key.

        The names are like those that `values` returns.
        """
        fields = tuple(field for field in self.fields if counter_name(self.name, field) in names)
        return Piece(self.name, fields, tuple(name for name in self.numbers if name in names))

    def command(self, keys: PartitionKeys) -> tuple[Any, ...]:
        """Return the Redis command, with its arguments, that reads the piece from the partition of `keys`."""
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
        """Return the values in the reply to `command`, without those that are absent, empty or 0.

        They are by counter, named like `Difference.counter`. If the reply is the error of a key of another type, each
        counter has a text as its value; a leaderboard is then one counter. A plain number in a key of another type is
        absent instead.
        """
        if is_wrong_type(reply):
            named = [counter_name(self.name, field) for field in self.fields]
            return dict.fromkeys(named or [self.name], _OTHER_TYPE)
        if self.numbers:
            return {name: value for name, raw in zip(self.numbers, reply, strict=True) if (value := _value(raw))}
        if self.fields:
            values = zip(self.fields, map(_value, reply), strict=True)
            return {counter_name(self.name, field): value for field, value in values if value}
        if self.kind == "top":
            # Whether a leaderboard has a subject whose value is 0 again depends on how its events were batched, so
            # reads leave it out.
            scores = {counter_name(self.name, each): exact(float(score)) for each, score in reply if float(score)}
            return {name: score if isinstance(score, int) else str(score) for name, score in scores.items()}
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
    """Yield the comparable counters of a partition, without the ledger, in pieces; a counter may come twice.

    Metrics with a Bloom filter or with `max_subjects` are left out: which copies the filter lets through, and which
    subjects exceed the maximum, depends on the order of the events. Also left out are leaderboards of metrics with
    `exact = false` (a subject's score is its estimate after its last batch, and later batches raise the estimate),
    Bloom filters, and the names of buckets (`labels`). A key that must be a hash, and has another type, has no pieces.

    Args:
        client: The server of the counters.
        keys: The keys of one generation in the partition.
        rules: The rules that the generation is counted by.
        wanted: Returns whether to yield a key, given without the generation's prefix.
        agreed: By name of a hash, a number of fields; the hash is left out if it has exactly this many.
    """
    numbers: list[str] = []
    follow: dict[str, bool] = {}
    skipped = len(keys.counters.encode())
    for key in counter_keys(client, keys):
        name = key[skipped:].decode(errors="surrogateescape")
        metric = metric_of(name)
        if metric not in follow:
            rule = rules.metric.get(metric)
            follow[metric] = rule is None or (rule.max_subjects is None and rule.seen != "bloom")
        if not follow[metric] or not wanted(name):
            continue
        kind = name.partition(":")[0]
        if kind == "labels":
            continue  # no counter: it only names the buckets
        if kind == "seen" and name.endswith(BLOOM):  # of a metric that had Bloom filters
            continue
        if kind == "top" and (rule := rules.metric.get(metric)) is not None and not rule.exact:
            continue
        if kind in _NUMBERS:
            numbers.append(name)
            if len(numbers) == _PAGE:
                yield Piece(kind, numbers=tuple(numbers))
                numbers.clear()
        elif kind in _HASHES:
            yield from (Piece(name, page) for page in _fields(client, key, agreed.get(name)))
        else:
            yield Piece(name)
    if numbers:
        yield Piece(_NUMBERS[0], numbers=tuple(numbers))


def _fields(client: redis.Redis, key: bytes, agreed: int | None) -> Iterator[tuple[bytes, ...]]:
    """Yield the fields of a hash, 500 at a time; none if it has `agreed` fields, or if the key has another type."""
    fields = (field for field, _ in client.hscan_iter(key, count=_PAGE))
    try:
        if agreed is not None and client.hlen(key) == agreed:
            return
        while page := tuple(islice(fields, _PAGE)):
            yield page
    except ResponseError as error:
        if not is_wrong_type(error):
            raise


def by_size(differences: Iterable[Difference]) -> list[Difference]:
    """Return differences in the order of printing: the largest numbers first, then texts; equal ones by name."""

    def order(each: Difference) -> tuple[float, str]:
        return -abs(each.difference) if each.difference is not None else 1, each.counter

    return sorted(differences, key=order)


def chunks(every: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Yield pieces in chunks of at least 1,000 counters, and fewer than 1,500; the last chunk may be smaller.

    A piece has at most 500 counters, and stays whole; a leaderboard is one counter.
    """
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


def metric_of(name: str) -> str:
    """Return the metric of a counter, given its key without the generation's prefix."""
    parts = name.split(":", 3)
    return parts[2] if parts[0] == "top" and len(parts) > 2 else parts[1]  # noqa: PLR2004  # top:<window>:<metric>:<label>


def differing(
    piece: Piece, before: Mapping[str, Value], after: Mapping[str, Value], shrunk: frozenset[str]
) -> list[str]:
    """Return the sorted names of the counters of a piece whose values in two generations differ, and must not.

    Args:
        piece: The piece that was read from both.
        before: Its values in one generation, by counter.
        after: Its values in the other.
        shrunk: The metrics that `shrunk_in` returns. Which subjects their leaderboards list depends on the order of the
            events, so only subjects listed in both are compared.
    """
    names = before.keys() | after.keys()
    if piece.kind == "top" and piece.metric in shrunk:
        names = before.keys() & after.keys()
    return sorted(name for name in names if before.get(name) != after.get(name))


def replies_of(pipeline: Pipeline) -> list[Any]:
    """Run a pipeline, and return its replies; for a key of another type, the reply is the error.

    Raises:
        redis.RedisError: any other error of a command, or of the connection.
    """
    replies: list[Any] = pipeline.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, RedisError) and not is_wrong_type(reply):
            raise reply
    return replies


def shrunk_in(*ledgers: Mapping[bytes, bytes]) -> frozenset[str]:
    """Return the metrics of which a leaderboard may lack subjects that belong on it, by any of these ledgers.

    A ledger has a field `unlisted@<metric>` or `unlisted:<window>@<metric>` for each of these leaderboards, for example
    after a value fell.
    """
    marks = (field.decode(errors="replace").partition("@") for ledger in ledgers for field in ledger)
    return frozenset(metric for mark, _, metric in marks if mark.partition(":")[0] == "unlisted")


def text_of(raw: bytes | str) -> str:
    """Return the text for a field or a member in the name of a counter: one line, with invalid bytes escaped."""
    text = raw if isinstance(raw, str) else raw.decode(errors="backslashreplace")
    return text.replace("\n", " ")


def counter_name(key: str, item: bytes | str) -> str:
    """Return the name of a counter in a hash or on a leaderboard, as a `Difference` has it as its `counter`.

    Args:
        key: The key, without the generation's prefix.
        item: The field or the member.
    """
    return f"{key} -> {text_of(item)}"


def exact(score: float) -> int | float:
    """Return a score of a leaderboard as an `int`; return it unchanged if it is not a whole number."""
    return int(score) if score.is_integer() else score


def _value(raw: bytes | None) -> Value:
    if raw is None:
        return None
    text = raw.decode(errors="backslashreplace")
    return int(text) if text.lstrip("-").isdigit() and len(text) < 20 else text  # noqa: PLR2004  # digits of 2^63
