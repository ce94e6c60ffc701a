"""Audit: folds everything that was ever appended once more, elsewhere, and compares every live counter with it.

The scratch counters lie in an embedded server of their own and are made by the same fold and the same rules, past
any group. For each piece of the comparison the live values are read together with what is applied to them; the
scratch counters are brought to exactly that, and then the two must be equal. So the audit holds still nothing.
"""

from __future__ import annotations

import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from tallystream.connection import connect
from tallystream.errors import ConfigurationError
from tallystream_worker.embedded import EmbeddedServer
from tallystream_worker.fold import Entry, Fold, Folded
from tallystream_worker.generation.backfill import Backfill
from tallystream_worker.generation.cut import Applied, Cut, cut
from tallystream_worker.generation.source import archived_entries, stream_entries
from tallystream_worker.generation.values import Difference, Piece, chunks, comparable, pieces, shrunk_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import redis

    from tallystream.meta import Meta
    from tallystream.rules import Rules
    from tallystream_worker.generation.values import Value

_SCRATCH: Final = 0
"""The generation of the scratch counters: no entry was ever decided in it, so all are counted."""

_AT_ONCE: Final = 4
"""Partitions: while one waits for a server, another is folded."""

_PAGE: Final = 256
_PARKED: Final = 10**9
_OUTCOMES: Final = ("counted", "rejected", "duplicate", "late", "late-counted", "dead", "total")


@dataclass(frozen=True)
class Report:
    """What an audit found.

    Attributes:
        counters: How many were compared.
        entries: How many were folded.
        expired: Buckets past their retention, which are not compared.
        differences: The counters that are not what they should be.
    """

    counters: int
    entries: int
    expired: int
    differences: list[Difference] = field(default_factory=list)


def audit(
    client: redis.Redis,
    meta: Meta,
    rules: Rules,
    *,
    archive: str = "",
    sample: float = 1.0,
    show: Callable[[str, int, int], Any] = lambda *_: None,
) -> Report:
    """Audit every partition while events keep arriving.

    Args:
        client: The live server.
        meta: What is stored there.
        rules: Those that the counters are to be counted by.
        archive: URL of the archive, for what the streams no longer hold; `""` for none.
        sample: The share of the counters that is compared; everything is folded all the same.
        show: Is told the stream, the entries folded and the counters compared, now and then.

    Raises:
        ConfigurationError: a part of the log is gone: which.
    """
    found = Report(0, 0, 0)
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="tally-audit-", ignore_cleanup_errors=True))
        extra = ["--appendonly", "no", "--save", ""]
        server = stack.enter_context(EmbeddedServer(Path(folder), extra=extra))
        scratch = connect(server.url)
        stack.callback(scratch.close)
        partitions = [
            _Partition(client, scratch, meta, rules, number, archive, sample, show)
            for number in range(meta.layout.partitions)
        ]
        threads = stack.enter_context(ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="tallystream-audit"))
        for each in threads.map(_Partition.run, partitions):
            found = Report(
                found.counters + each.counters,
                found.entries + each.entries,
                found.expired + each.expired,
                found.differences + each.differences,
            )
    return found


class _Partition:
    def __init__(
        self,
        client: redis.Redis,
        scratch: redis.Redis,
        meta: Meta,
        rules: Rules,
        number: int,
        archive: str,
        sample: float,
        show: Callable[[str, int, int], Any],
    ) -> None:
        self._client, self._scratch, self._rules = client, scratch, rules
        self._number, self._archive, self._sample, self._show = number, archive, sample, show
        self._keys = meta.layout.keys[number]
        layout = meta.layout.of(_SCRATCH)
        self._copy = layout.keys[number]
        # Every entry is older than the scratch counters: all are put into their books alike.
        fold = Fold(layout, number, rules, max_deliveries=_PARKED - 1, begun=f"{2**63}-0")
        self._backfill = Backfill(scratch, self._copy, fold)
        self._mark = ""
        self._ends: dict[str, int] = {}
        self._given_up: frozenset[str] = frozenset()
        self._compared: set[int] = set()  # hashes of names: a few bytes for each counter, whatever it is called
        self._agreed: Counter[str] = Counter()  # by hash, of how many fields both sides say the same
        self._counters = self._entries = self._expired = 0

    def run(self) -> Report:
        if not self._client.exists(self._keys.stream):
            return Report(0, 0, 0)
        after = self._before_the_stream()
        self._applied = Applied(self._client, self._keys, after)
        self._given_up = frozenset(self._parked_unread())
        first, _ = cut(self._client, self._keys, [])
        self._bring_to(first)
        wrong: dict[str, Difference] = {}
        # First what should be there, then what should not.
        for chunk in chunks(self._new(pieces(self._scratch, self._copy, self._rules, wanted=self._is_sampled))):
            self._compare(chunk, wrong, count=True)
        unknown = pieces(self._client, self._keys, self._rules, wanted=self._is_sampled, agreed=self._agreed)
        for chunk in chunks(self._new(unknown)):
            self._compare(chunk, wrong, count=False)
        self._compare_books(wrong)
        return Report(self._counters, self._entries, self._expired, list(wrong.values()))

    def _before_the_stream(self) -> str:
        """Fold what the stream no longer holds; return the ID behind which the stream goes on."""
        info: dict[str, Any] = self._client.xinfo_stream(self._keys.stream)
        gone = int(info["entries-added"]) - int(info["length"])
        if not gone:
            return ""
        held = next(stream_entries(self._client, self._keys), None)
        begins = "holds none" if held is None else f"begins at {held.id}"
        if not self._archive:
            raise ConfigurationError(
                f"{self._keys.stream} {begins}: {gone:,} entries before that are gone, and the counters of this "
                "partition hold them. Name an archive that has them (--archive URL) to audit them"
            )
        before = self._entries
        self._count(archived_entries(self._archive, self._number, "0-0", None if held is None else held.id))
        if self._entries - before < gone:
            raise ConfigurationError(
                f"{self._keys.stream} {begins}: {gone - self._entries + before:,} entries before that are not in the "
                "archive either, and the counters of this partition hold them"
            )
        return self._mark

    def _parked_unread(self) -> Iterator[str]:
        """Yield the entries that were given up after too many deliveries: a fact that no fold can find again."""
        parked: list[Any] = self._client.xrange(self._keys.dead) or []
        for _, fields in parked:
            if fields[b"reason"].startswith(b"delivered "):
                yield fields[b"source"].decode()

    def _bring_to(self, moment: Cut) -> None:
        self._count(self._applied.until(moment))

    def _count(self, entries: Iterator[Entry]) -> None:
        while page := list(islice(entries, _PAGE)):
            if self._given_up:
                page = [Entry(e.id, e.fields, _PARKED) if e.id in self._given_up else e for e in page]
            self._mark = self._backfill(page, self._mark, lambda entry: entry.id, self._told)
            self._entries += len(page)
            self._show(self._keys.stream, self._entries, self._counters)

    def _told(self, folded: Folded) -> None:
        prefix = self._copy.counters
        self._ends.update((key.removeprefix(prefix), end) for key, end in folded.batch.expire.items())

    def _new(self, every: Iterable[Piece]) -> Iterator[Piece]:
        """Pass on what was not compared yet, and remember it."""
        for piece in every:
            if (left := piece.without(self._compared)) is not None:
                self._compared.update(map(hash, left.names()))
                yield left

    def _is_sampled(self, name: str) -> bool:
        return self._sample >= 1 or zlib.crc32(name.encode("utf-8", "surrogateescape")) < self._sample * 2**32

    def _compare(self, chunk: list[Piece], wrong: dict[str, Difference], *, count: bool) -> None:
        due = time.time() * 1000
        chosen = [piece for piece in chunk if not 0 < self._ends.get(piece.name, 0) <= due]
        self._expired += len(chunk) - len(chosen) if count else 0
        moment, live = cut(self._client, self._keys, [piece.command(self._keys) for piece in chosen])
        self._bring_to(moment)
        with self._scratch.pipeline(transaction=False) as pipeline:
            for piece in chosen:
                pipeline.execute_command(*piece.command(self._copy))
            expected = pipeline.execute()
        for piece, wanted, found in zip(chosen, expected, live, strict=True):
            self._counters += piece.size if count else 0
            if wanted == found:  # nearly always, and much faster than to read what each says
                if piece.fields and None not in found:
                    self._agreed[piece.name] += piece.size
                continue
            self._note(piece, piece.values(wanted), piece.values(found), wrong)
        self._show(self._keys.stream, self._entries, self._counters)

    def _note(
        self, piece: Piece, wanted: Mapping[str, Value], found: Mapping[str, Value], wrong: dict[str, Difference]
    ) -> None:
        shrunk: frozenset[str] = frozenset()
        if piece.kind == "top":
            shrunk = shrunk_in(
                self._client.execute_command("HGETALL", self._keys.ledger),
                self._scratch.execute_command("HGETALL", self._copy.ledger),
            )
        for name in comparable(piece, wanted, found, shrunk):
            wrong[name] = Difference(self._keys.stream, name, wanted.get(name), found.get(name))

    def _compare_books(self, wrong: dict[str, Difference]) -> None:
        moment, (live,) = cut(self._client, self._keys, [("HGETALL", self._keys.ledger)])
        self._bring_to(moment)
        expected: dict[bytes, bytes] = self._scratch.execute_command("HGETALL", self._copy.ledger)
        inexact = {m for m, rule in self._rules.metric.items() if rule.seen == "bloom" or rule.max_subjects is not None}
        for name in sorted({*live, *expected}, key=bytes):
            outcome, _, metric = name.decode(errors="replace").partition("@")
            if outcome.partition(":")[0] not in _OUTCOMES or (inexact and (not metric or metric in inexact)):
                continue
            self._counters += 1
            wanted, found = int(expected.get(name, 0)), int(live.get(name, 0))
            if wanted != found:
                counter = f"ledger -> {name.decode(errors='replace')}"
                wrong[counter] = Difference(self._keys.stream, counter, wanted, found)
