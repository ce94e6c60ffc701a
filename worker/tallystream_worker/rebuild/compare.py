"""Compares two generations of counters on one server, to show which counters a switch would change."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from tallystream.client.replies import is_key_missing
from tallystream.wire.stream_id import StreamID, after, id_text, parse_id
from tallystream_worker.counting.entry import Entry
from tallystream_worker.rebuild.moving import MovingCounters
from tallystream_worker.rebuild.removed import RemovedPeriods
from tallystream_worker.rebuild.source import EntriesTrimmed, stream_entries
from tallystream_worker.rebuild.values import (
    Difference,
    Piece,
    by_size,
    chunks,
    differing,
    pieces,
    replies_of,
    shrunk_in,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import redis

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import PartitionKeys

LOOKING: Final = 5.0
"""Seconds for which counters are read again, because events that are not counted yet may change them."""

_PAUSE: Final = 0.05
_PAGE: Final = 1000
_ENTRIES: Final = 20_000
_LAST: Final = (2**64, 0)  # after every ID


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison of two generations.

    Attributes:
        differences: One for each counter whose value in the new generation (`found`) is not the live value
            (`expected`), in the order of `by_size`.
        moving: Number of counters that had two values in every read, and that an entry might still have changed in
            one of the generations at the time. Whether they differ is not known.
    """

    differences: list[Difference]
    moving: int


def compare(
    client: redis.Redis, deployment: Deployment, generation: int, follow: Callable[[int], Any] = lambda _: None
) -> Comparison:
    """Compare each counter of `generation` with the live one, while events arrive; return the differences.

    An absent counter and one of 0 are equal. A counter that differs is read again. It is a difference only if it still
    differs, and no entry that may change it was left to count in either generation before that read. Other counters
    are read again for about five seconds: see `Comparison.moving`.

    Not compared are the counters that `pieces` leaves out, the ledgers, the periods that one of the generations has
    removed (see `RemovedPeriods`), and keys that have another type than they should in both. Of the leaderboards of
    some metrics, only subjects that both list are compared (see `differing`).

    Both generations must exist in the live topic. A generation without its consumer group counts no more entries. If a
    key has another type in one of them, its counters have a text there as their value; a plain number counts as absent.

    Args:
        client: The server of the counters.
        deployment: The deployment.
        generation: The number of the new generation.
        follow: Called with the number of a partition, before its counters are read again. It should count the entries
            that the new generation lacks there: else the counters that these change are moving.

    Raises:
        ConfigurationError: `generation` has no stored rules, and no rules are published.
        KeyLost, StreamError: a stream was deleted or replaced while it was read.
        redis.RedisError: the server does not reply, or rejects a command.

    Any error of `follow` is raised too.
    """
    partitions = [_Partition(client, deployment, generation, number) for number in range(deployment.layout.partitions)]
    for each in partitions:
        each.begin()
    differences: list[Difference] = []
    deadline = None
    while True:
        for number, each in enumerate(partitions):
            if each.moving:
                follow(number)
                differences += each.look()
        moving = sum(each.moving for each in partitions)
        now = time.monotonic()
        deadline = now + LOOKING if deadline is None else deadline
        if not moving or now >= deadline:
            return Comparison(by_size(differences), moving)
        time.sleep(_PAUSE)


@dataclass(frozen=True)
class _Position:
    """Which entries of a partition both generations had counted at one time, or before it.

    Attributes:
        passed: No entry after this ID was counted in both.
        pending: The IDs of the entries up to `passed` that one of the generations had not counted.
        first: The first ID of the stream.
    """

    passed: StreamID
    pending: list[bytes]
    first: StreamID

    def may_lack(self, first: StreamID) -> bool:
        """Return whether an entry that was not counted in both was trimmed, now that `first` is the stream's first."""
        lowest = min(
            [after(self.passed), *(id_ for each in self.pending if (id_ := parse_id(each.decode())) >= self.first)]
        )
        return first > self.first and first > lowest


class _Partition:
    """Compares one partition: call `begin`, then `look` until `moving` is 0."""

    def __init__(self, client: redis.Redis, deployment: Deployment, generation: int, number: int) -> None:
        self._client = client
        self._present = deployment.layout.keys[number]
        self._new = deployment.layout.of(generation).keys[number]
        self._rules = deployment.rules_of(generation)
        self._both: tuple[Rules, Rules] = (deployment.rules, self._rules)
        self._removed = RemovedPeriods(self._rules)
        self._open: dict[Piece, set[str]] = {}

    @property
    def moving(self) -> int:
        """The number of counters that had two values in each read so far, and are not known to differ."""
        return sum(map(len, self._open.values()))

    def begin(self) -> None:
        """Read all counters of both generations once; those that differ are the ones that `look` reads again."""
        known: set[str] = set()
        for keys in (self._present, self._new):
            self._removed.learn(_hash(self._client, keys.forgotten))
        for keys in (self._present, self._new):
            every = pieces(self._client, keys, self._rules, wanted=self._removed.can_compare)
            for chunk in chunks(every):
                for piece, unequal in self._differing(chunk):
                    if names := unequal.keys() - known:
                        known |= names
                        self._open.setdefault(piece.only(names), set()).update(names)

    def look(self) -> Iterator[Difference]:
        """Read the counters again that differed in each read so far; yield those that are known to differ."""
        position = self._position()
        unequal: dict[tuple[Piece, str], Difference] = {}
        for chunk in list(chunks(self._open)):
            for piece, found in self._differing(chunk):
                unequal.update(((piece, name), found[name]) for name in found.keys() & self._open[piece])
        moving = self._moving(position, unequal)
        self._open = {}
        for piece, name in moving:
            self._open.setdefault(piece, set()).add(name)
        self._open = {piece.only(names): names for piece, names in self._open.items()}
        return (each for key, each in unequal.items() if key not in moving)

    def _moving(self, position: _Position, unequal: Mapping[tuple[Piece, str], Difference]) -> set[tuple[Piece, str]]:
        """Return the counters that an entry may change that was not counted in both generations at a position."""
        resting = set(unequal)
        moving: set[tuple[Piece, str]] = set()
        if not resting:
            return moving
        until = self._client.xinfo_stream(self._present.stream) if self._client.exists(self._present.stream) else None
        entries = self._uncounted(position, until["last-generated-id"].decode()) if until is not None else iter(())
        try:
            while resting and (page := list(islice(entries, _ENTRIES))):
                found = MovingCounters(page, self._both)
                for piece, name in resting:
                    each = unequal[piece, name]
                    is_listed = piece.kind != "top" or None not in (each.expected, each.found)
                    if found.has(name, name if piece.numbers else piece.name, is_listed=is_listed):
                        moving.add((piece, name))
                resting -= moving
        except EntriesTrimmed:
            return set(unequal)
        return set(unequal) if position.may_lack(self._first()) else moving

    def _uncounted(self, position: _Position, until: str) -> Iterator[Entry]:
        """Yield the entries up to the ID `until` that were not counted in both generations at a position."""
        stream = self._present.stream
        for at in range(0, len(position.pending), _PAGE):
            with self._client.pipeline(transaction=False) as pipeline:
                for id_ in position.pending[at : at + _PAGE]:
                    pipeline.xrange(stream, id_, id_)
                for found in pipeline.execute():
                    yield from (Entry(id_.decode(), fields) for id_, fields in found)
        if position.passed < _LAST:
            yield from stream_entries(self._client, self._present, id_text(position.passed), until)

    def _position(self) -> _Position:
        first, passed = self._first(), _LAST
        pending: set[bytes] = set()
        try:
            groups = self._client.xinfo_groups(self._present.stream)
        except ResponseError as error:
            if not is_key_missing(error):
                raise
            groups = []
        delivered = {each["name"].decode(): parse_id(each["last-delivered-id"].decode()) for each in groups}
        # After the delivered IDs: so an entry that is delivered meanwhile is after these, or pending.
        for keys in (self._present, self._new):
            if keys.group in delivered:
                passed = min(passed, delivered[keys.group])
                pending.update(self._pending(keys))
        return _Position(passed, [each for each in pending if parse_id(each.decode()) <= passed], first)

    def _pending(self, keys: PartitionKeys) -> Iterator[bytes]:
        last = "-"
        while True:
            page: Any = self._client.xpending_range(keys.stream, keys.group, last, "+", _PAGE)
            yield from (row["message_id"] for row in page)
            if len(page) < _PAGE:
                return
            last = f"({page[-1]['message_id'].decode()}"

    def _first(self) -> StreamID:
        """Return the first ID of the stream; if it is empty or does not exist, an ID after every other one."""
        if not self._client.exists(self._present.stream):
            return _LAST
        first = self._client.xinfo_stream(self._present.stream)["first-entry"]
        return _LAST if first is None else parse_id(first[0].decode())

    def _differing(self, chunk: list[Piece]) -> Iterator[tuple[Piece, dict[str, Difference]]]:
        """Read pieces from both generations at one moment; yield each that differs, and its differences by name."""
        both = (self._present, self._new)
        with self._client.pipeline(transaction=True) as pipeline:
            for piece in chunk:
                for keys in both:
                    pipeline.execute_command(*piece.command(keys))
            for keys in both:
                pipeline.hgetall(keys.forgotten)
                pipeline.hgetall(keys.ledger)
            *replies, gone, ledger, new_gone, new_ledger = replies_of(pipeline)
        for each in (gone, new_gone):
            self._removed.learn(_as_hash(each))
        shrunk = shrunk_in(_as_hash(ledger), _as_hash(new_ledger))
        for piece, first, second in zip(chunk, replies[::2], replies[1::2], strict=True):
            if not piece.numbers and not self._removed.can_compare(piece.name):
                continue  # its period was removed since the pieces were listed
            live, new = piece.values(first), piece.values(second)
            if names := differing(piece, live, new, shrunk):
                stream = self._present.stream
                yield piece, {name: Difference(stream, name, live.get(name), new.get(name)) for name in names}


def _hash(client: redis.Redis, key: str) -> dict[bytes, bytes]:
    """Return a hash; an empty one if the key does not exist or has another type."""
    with client.pipeline(transaction=False) as pipeline:
        pipeline.hgetall(key)
        (stored,) = replies_of(pipeline)
    return _as_hash(stored)


def _as_hash(reply: Any) -> dict[bytes, bytes]:
    return reply if isinstance(reply, dict) else {}
