"""Copies the entries of one log into another, each event once and to where the other one counts it.

What was copied is known by marks that lie with the copies: for each partition of the one log and each of the other, the
last entry whose part is there. A copy that was cut short goes on from the lowest of them, and is refused where it has
been before. A copied entry says in its sequence when the first log took it: by that its events are late, or not.
"""

from __future__ import annotations

from functools import lru_cache
from heapq import merge
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError, RedisError

from tallystream.errors import CodecError, EventError, StreamError
from tallystream.storage.keys import partition_of
from tallystream.storage.scripts import Script
from tallystream.wire.codec import (
    COPIED,
    VERSION,
    decode,
    encode,
    split,
    stated_events,
    was_sequenced,
)
from tallystream.wire.stream_id import parse_id
from tallystream_worker.rebuild.source import archived_entries, stream_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    import redis

    from tallystream.rules.retraction import Retraction
    from tallystream.storage.keys import Layout
    from tallystream.wire.codec import Payload
    from tallystream_worker.counting.entry import Entry

HOLDER: Final = "move"
"""Who holds the entries that are not copied yet."""

_COPY: Final = Script("tallystream_worker.repartition", "copy")

_PAGE_ENTRIES: Final = 200
_PAGE_BYTES: Final = 2**20
"""What is copied at once, to all partitions together: bounds the time for which a call holds the server."""

_KNOWN: Final = 20_000
"""Subjects of a partition whose new one is remembered."""

CopyPart = tuple[int, list[Any]]
"""What copy.lua is told of a part, and the partition that it belongs to."""


class CopiedElsewhere(StreamError):
    """Somebody else copies the same: look again how far that is."""


class StreamCopier:
    """Copies one log into another; not safe across threads, and harmless in several processes.

    Args:
        client: Where both are.
        old: The log that is read.
        new: The log that is written.
        retracted: What was taken back of the first; it is not copied.
        spread: The metrics whose events may lie in any partition of the first.
        archive: URL of the first one's archive, for what its streams no longer hold; `""` for none.
        accept_loss: Copy although the archive does not have all of that.
    """

    def __init__(
        self,
        client: redis.Redis,
        old: Layout,
        new: Layout,
        retracted: Sequence[Retraction] = (),
        archive: str = "",
        *,
        spread: Collection[str] = (),
        accept_loss: bool = False,
    ) -> None:
        self._client = client
        self._old, self._new = old, new
        self._retracted = retracted
        self._archive = archive
        self._spread = spread
        self._accepts_loss = accept_loss
        self._archived_wholly: set[int] = set()
        self._marks: list[dict[int, str]] = []
        self._homes = [lru_cache(_KNOWN)(self._home_from(source)) for source in range(old.partitions)]
        self.entries = 0
        """Entries that were copied."""

    def look(self) -> None:
        """Read how far everything is copied."""
        with self._client.pipeline(transaction=False) as pipeline:
            for keys in self._new.keys:
                pipeline.execute_command("HGETALL", keys.copied)
            found = pipeline.execute()
        self._marks = [{int(source): mark.decode() for source, mark in marks.items()} for marks in found]

    def mark(self, source: int) -> str:
        """Return the last entry of a partition up to which everything is copied; `0-0` before the first."""
        return min((marks.get(source, "0-0") for marks in self._marks), key=parse_id)

    def __call__(self, show: Callable[[], Any] = lambda: None) -> int:
        """Copy everything that is there; return how many entries that were.

        Raises:
            CopiedElsewhere: somebody else copies the same.
            StreamError: entries are neither in the streams nor in the archive.
            redis.RedisError: it is not known what was copied: look, and copy again.
        """
        if not self._marks:
            self.look()
        before = self.entries
        page: list[tuple[int, Entry]] = []
        size = 0
        for source, entry in merge(*map(self._from, range(self._old.partitions)), key=_order):
            page.append((source, entry))
            size += len(entry.fields.get(b"b", b""))
            if len(page) == _PAGE_ENTRIES or size > _PAGE_BYTES:
                self._copy(page)
                page, size = [], 0
                show()
        if page:
            self._copy(page)
        if self.entries != before:
            self.hold()
        return self.entries - before

    def hold(self) -> None:
        """Keep the entries that are not copied yet from being trimmed, and only these."""
        with self._client.pipeline(transaction=False) as pipeline:
            for source, keys in enumerate(self._old.keys):
                pipeline.hset(keys.retention_holds, HOLDER, self.mark(source))
            pipeline.execute()

    def _from(self, source: int) -> Iterator[tuple[int, Entry]]:
        """Yield what a partition holds behind its mark."""
        mark, keys = self.mark(source), self._old.keys[source]
        if self._archive and source not in self._archived_wholly:
            held = next(stream_entries(self._client, keys, count=1), None)
            if held is None or parse_id(mark) < parse_id(held.id):
                for entry in self._archived(source, mark, None if held is None else held.id):
                    mark = entry.id
                    yield source, entry
            self._archived_wholly.add(source)
        for entry in stream_entries(self._client, keys, "" if mark == "0-0" else mark, count=_PAGE_ENTRIES):
            yield source, entry

    def _archived(self, source: int, mark: str, before: str | None) -> Iterator[Entry]:
        """Yield what the archive holds behind a mark, and see that it holds all that the stream does not."""
        stream = self._old.keys[source].stream
        about: dict[str, Any] = self._client.xinfo_stream(stream)
        gone = int(about["entries-added"]) - int(about["length"])
        for entry in archived_entries(self._archive, self._old.keys[source], source, "0-0", before):
            gone -= 1
            if parse_id(entry.id) > parse_id(mark):
                yield entry
        if gone > 0 and not self._accepts_loss:
            raise StreamError(
                f"{stream}: {gone:,} entries are neither in the stream nor in the archive, so the counters of other "
                "partitions would lack them. Name another archive, or move without them (--accept-loss)"
            )

    def _copy(self, page: Sequence[tuple[int, Entry]]) -> None:
        parts: list[list[tuple[int, str, list[Any]]]] = [[] for _ in self._new.keys]
        ends: dict[int, str] = {}
        for source, entry in page:
            ends[source] = entry.id
            for home, part in self._parts(source, entry):
                parts[home].append((source, entry.id, part))
        calls: dict[int, list[Any]] = {}
        for home, marks in enumerate(self._marks):
            further = [source for source, end in ends.items() if _behind(end, marks, source)]
            moves = [(source, marks.get(source, ""), ends[source]) for source in further]
            if moves:
                flat = [argument for move in moves for argument in move]
                new = [part for source, id_, part in parts[home] if _behind(id_, marks, source)]
                calls[home] = [len(moves), *flat, *(argument for part in new for argument in part)]
        self._send(calls)
        for home in calls:
            self._marks[home].update({s: end for s, end in ends.items() if _behind(end, self._marks[home], s)})
        self.entries += len(page)

    def _send(self, calls: dict[int, list[Any]]) -> None:
        while calls:
            with self._client.pipeline(transaction=False) as pipeline:
                for home, arguments in calls.items():
                    keys = self._new.keys[home]
                    _COPY.queue(pipeline, [keys.stream, keys.copied, keys.topic_ledger], arguments)
                replies = dict(zip(calls, pipeline.execute(raise_on_error=False), strict=True))
            again = {}
            for home, reply in replies.items():
                if isinstance(reply, NoScriptError):
                    again[home] = calls[home]
                elif isinstance(reply, RedisError):
                    raise reply
                elif reply[0] != b"copied":
                    raise CopiedElsewhere(
                        f"{self._new.keys[home].stream}: what comes from partition {reply[1].decode()} is copied up to "
                        f"{reply[2].decode() or 'nothing'}: another move of the same events is running"
                    )
            if again:
                _COPY.load(self._client)
            calls = again

    def _parts(self, source: int, entry: Entry) -> Iterator[CopyPart]:
        """Yield what an entry holds for each partition of the other log."""
        gated = was_sequenced(entry.fields)
        try:
            payload: Payload = decode(entry.fields, entry.received)
        except (CodecError, EventError):
            # Nobody knows whose it is: it is parked there as it was here.
            fields = dict(entry.fields)
            if gated:
                fields.pop(b"d", None)
                fields |= {b"p": COPIED, b"q": b"%d" % entry.received}
            yield source % self._new.partitions, _part(entry, stated_events(fields) if gated else 0, fields)
            return
        for retraction in self._retracted:
            if retraction.reaches(self._old.keys[source].stream, entry.id):
                payload = retraction.without(payload)
        for home, part in split(payload, self._homes[source]).items():
            events = part.events
            if not events:
                continue
            fields = {b"v": VERSION, b"p": COPIED, b"q": b"%d" % entry.received}
            yield home, _part(entry, events, fields | {b"n": b"%d" % events, b"b": encode(part)})

    def _home_from(self, source: int) -> Callable[[str, str, bool], int]:
        """Return what says where events go; those that lay in a wrong partition go to a wrong one again."""
        before, after = self._old.partitions, self._new.partitions

        def home(metric: str, subject: str, has_id: bool) -> int:  # it goes by position
            right = partition_of(subject, after)
            was_right = partition_of(subject, before) == source or (metric in self._spread and not has_id)
            return right if was_right else (right + 1) % after

        return home


def _part(entry: Entry, events: int, fields: dict[bytes, bytes]) -> list[Any]:
    flat = [argument for field in fields.items() for argument in field]
    return [entry.id.partition("-")[0], events, len(flat), *flat]


def _behind(id_: str, marks: dict[int, str], source: int) -> bool:
    return parse_id(id_) > parse_id(marks.get(source, "0-0"))


def _order(pair: tuple[int, Entry]) -> tuple[int, int]:
    return parse_id(pair[1].id)
