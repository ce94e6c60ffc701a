"""Audits one partition: counts its entries again in a scratch server, and compares the live counters with that."""

from __future__ import annotations

import pickle
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import compress, islice
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, Any, Final

from tallystream.client.server_time import parse_time
from tallystream.errors import KeyLost, StreamError
from tallystream.storage.keys import FIRST_RULES
from tallystream.storage.sentinels import refuse_lost
from tallystream.storage.stored_values import stored_number
from tallystream.wire.stream_id import id_text, parse_id
from tallystream_worker.counting.adopt import adopt_as
from tallystream_worker.counting.entry import Entry
from tallystream_worker.counting.fold import Fold
from tallystream_worker.dead_letters.store import (
    RETRIED,
    DeadLetter,
    dropped,
    letter_of,
    letters,
    records_of_dropped,
)
from tallystream_worker.rebuild.backfill import Backfill
from tallystream_worker.rebuild.baseline import Base, Sources, choose
from tallystream_worker.rebuild.checkpoint import AppliedEntries, Checkpoint, checkpoint
from tallystream_worker.rebuild.drop import counter_keys
from tallystream_worker.rebuild.removed import RemovedPeriods
from tallystream_worker.rebuild.report import Report, Scope
from tallystream_worker.rebuild.scope import Provable, Span
from tallystream_worker.rebuild.source import stream_entries
from tallystream_worker.rebuild.values import Difference, Piece, chunks, differing, metric_of, pieces, shrunk_in
from tallystream_worker.snapshot.dead_letters import decode_letter
from tallystream_worker.snapshot.live_rules import Course, GenerationRules, RestoredRules
from tallystream_worker.snapshot.load_rules import LoadRules
from tallystream_worker.snapshot.names import bucket_of, key_of, parse
from tallystream_worker.snapshot.retries import find_retries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import redis

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules
    from tallystream_worker.counting.dropped import DroppedLetter
    from tallystream_worker.counting.fold_result import FoldResult
    from tallystream_worker.rebuild.values import Value
    from tallystream_worker.snapshot.live_rules import LiveRules
    from tallystream_worker.snapshot.point_in_time import SnapshotPosition

_SCRATCH: Final = -1
"""Number of the generation of the scratch counters. No entry was ever decided in it, so every entry is counted. (0 is
taken: a restore marks decided entries that are not counted yet with generation 0.)"""

_PAGE: Final = 256
_GIVEN_UP: Final = 10**9
"""Delivery count of an entry that the live workers gave up, so that the fold gives it up too."""

_IN_MEMORY: Final = 8 * 2**20
"""Most bytes of live values in memory; if there are more, all of them are in a temporary file."""

_OUTCOMES: Final = ("counted", "rejected", "duplicate", "late", "late-counted", "dead", "total")


@dataclass(frozen=True)
class LiveChunk:
    """The live values of some counters at one moment.

    Attributes:
        pieces: The counters.
        replies: The reply to the command of each piece.
        moment: The checkpoint: which entries the values include.
        forgotten: The fields of `PartitionKeys.forgotten`.
        now: The time by the server's clock, in milliseconds since 1970.
    """

    pieces: list[Piece]
    replies: list[Any]
    moment: Checkpoint
    forgotten: dict[bytes, bytes]
    now: int


class PartitionAudit:
    """The audit of one partition; `run` may be called once.

    Args:
        client: Client of the server of the live counters.
        scratch: Client of the server of the scratch counters; it has no key of this partition yet.
        deployment: The deployment to audit.
        rules: The rules that the counters should be counted by.
        number: The number of the partition.
        sources: The archive and the snapshot that may be used: see `choose`.
        span: The buckets to compare; if unlimited, all counters.
        sample: The share of the keys that is compared, from 0 to 1; see `audit`.
        followed: See `audit`.
        show: Called after each page of entries and each chunk of counters, with the stream, the number of entries
            folded, and the number of counters compared.
    """

    def __init__(
        self,
        client: redis.Redis,
        scratch: redis.Redis,
        deployment: Deployment,
        rules: Rules,
        number: int,
        sources: Sources,
        span: Span,
        sample: float,
        followed: LiveRules | None,
        show: Callable[[str, int, int], Any],
    ) -> None:
        self._client, self._scratch, self._rules = client, scratch, rules
        self._deployment, self._number, self._sources, self._span = deployment, number, sources, span
        self._sample, self._followed, self._show = sample, followed, show
        self._keys = deployment.layout.keys[number]
        layout = deployment.layout.of(_SCRATCH)
        self._copy = layout.keys[number]
        self._dropped: dict[str, list[DroppedLetter]] = {}
        # With this `begun`, every entry is older than the scratch counters, and is added to their ledger as appended.
        self._fold = partial(
            Fold, layout, number, max_deliveries=_GIVEN_UP - 1, begun=f"{2**63}-0", dropped=self._dropped
        )
        self._follow(Course([("", 0, rules)]))
        self._mark = self._after = ""
        self._loaded: list[DeadLetter] = []  # the dead letters of the snapshot
        self._retried: int | None = None
        self._doubts: frozenset[str] | None = frozenset()
        self._position: SnapshotPosition | None = None
        self._kept: dict[str, int] = {}  # by bucket of the snapshot, the millisecond until which it is kept
        self._ends: dict[str, int] = {}
        self._removed = RemovedPeriods(rules)
        self._unproved: set[int] = set()
        self._given_up: set[str] = set()
        self._last_letter = "-"
        self._compared: set[int] = set()  # hashes of names: a few bytes for each counter
        self._agreed: Counter[str] = Counter()  # by hash, the number of fields that are equal on both sides
        self._counters = self._wrong = self._entries = self._expired = 0

    def run(self) -> Report:
        """Fold the entries that the base of the audit selects, compare the counters, and return the report.

        No live counter is changed. If the partition has no stream, and no script has ever appended to it, all numbers
        of the report are 0, and it has no scope. Otherwise it has one scope, even if the stream is empty.

        Raises:
            KeyLost: the partition has lost its stream or a sentinel (see `lost_key`).
            ConfigurationError: the preferred snapshot is unusable; this release cannot read the rules of the server or
                of the snapshot; or the span has a beginning, and no rules are published.
            ConsumerGroupMissing: the partition has a stream, but its live consumer group is missing.
            StreamError: 20,000 or more entries stayed pending, the stream was replaced, entries were trimmed while the
                stream was read (`EntriesTrimmed`), a node failed over while the records of dropped dead letters were
                read (`ScanBroken`), another client has changed the scratch counters, a figure of the live ledger is
                damaged (`DamagedValue`), or, with `followed`, dead letters were retried meanwhile.
            ArchiveError, SnapshotError: the archive or the snapshot cannot be read, or the archive is of other data.
            CodecError: a row of the archive, or the record of a dropped dead letter, is damaged.
            redis.RedisError: one of the two servers does not reply, or rejects a command.
            OSError: the temporary file with live values cannot be written.

        An error of `show` is raised too.
        """
        refuse_lost(self._client, self._keys)
        if not self._client.exists(self._keys.stream):
            if int(self._client.hget(self._keys.topic_ledger, "entries:gated") or 0):
                raise KeyLost(self._keys.stream)
            return Report(0, 0, 0)
        self._learn()
        retried = self._last_retry()
        base, moment = self._begin()
        self._provable = Provable(self._rules, self._span, base.gone, self._ends)
        first, _ = checkpoint(self._client, self._keys, [])
        self._bring_to(first)
        if self._followed is not None and retried != self._retried:
            self._retry(self._followed)
        wrong: dict[str, Difference] = {}
        # First the counters that should exist, then live ones that should not.
        for chunk in self._read(pieces(self._scratch, self._copy, self._rules, wanted=self._is_wanted)):
            self._compare(chunk, wrong, count=True)
        unknown = pieces(self._client, self._keys, self._rules, wanted=self._is_wanted, agreed=self._agreed)
        for chunk in self._read(unknown):
            self._compare(chunk, wrong, count=False)
        if self._span.is_all and base.gone is None:
            self._compare_ledgers(wrong)
        if self._followed is not None and self._last_retry() != retried:
            raise StreamError(f"{self._keys.dead}: dead letters were retried meanwhile: run the command again")
        scope = Scope(self._keys.stream, base.kind, moment, self._provable.since, len(self._unproved))
        uncertain = [each for each in wrong.values() if self._is_uncertain(each.counter)]
        differences = [each for each in wrong.values() if not self._is_uncertain(each.counter)]
        return Report(self._counters, self._entries, self._expired, differences, uncertain, self._wrong, [scope])

    def _follow(self, course: Course) -> None:
        """Fold each entry from now on by the rules that count it in a course."""
        self._course = course
        self._backfill = Backfill(self._scratch, self._copy, course.fold(self._fold))

    def _follow_log(self, followed: LiveRules, archived: str) -> None:
        """Fold each entry from now on by the rules that counted it.

        Also note the metrics for which these rules are not surely known.

        Args:
            followed: The rules of the server, and the places at which its partitions began to follow them.
            archived: The ID after which archived entries are folded; `""` if none are: then the first entry that the
                stream still has is taken for the first one.
        """
        found = GenerationRules(followed, self._number, archived or self._first_held() or "")
        self._doubt(found.doubtful())
        self._follow(found.course)

    def _doubt(self, metrics: frozenset[str] | None) -> None:
        self._doubts = None if metrics is None or self._doubts is None else self._doubts | metrics

    def _is_uncertain(self, counter: str) -> bool:
        """Return whether a counter that differs may be right: it is not known by which rules its events were counted.

        A figure of the ledger without a metric is the sum over all metrics, so one such metric is enough.
        """
        if self._doubts is None:
            return True
        key, _, field = counter.partition(" -> ")
        if key == "ledger":
            return bool(self._doubts) and ("@" not in field or field.partition("@")[2] in self._doubts)
        return (field.partition(" ")[0] if key == "resets" else metric_of(key)) in self._doubts

    def _last_retry(self) -> int | None:
        """Return the time of the last retry of a dead letter, in microseconds since 1970; `None` if there was none."""
        found: Any = self._client.hget(self._keys.ledger, RETRIED)
        return None if found is None else int(found)

    def _retry(self, followed: LiveRules) -> None:
        """Count in the scratch counters the dead letters that were retried on the live server.

        Those that were given up (delivered too often) are left out. Dead letters that were dropped without a record may
        be counted too. Also note the metrics for which the result of the retries is not known.
        """
        layout = self._deployment.layout
        ledger: dict[bytes, bytes] = self._client.execute_command("HGETALL", self._keys.ledger)
        found = find_retries(
            [*self._loaded, *letters(self._scratch, layout.of(_SCRATCH), self._number)],
            letters(self._client, layout, self._number),
            records_of_dropped(self._client, self._keys).values(),
            {name.decode(errors="replace"): int(value) for name, value in ledger.items()},
            followed,
            has_resets=bool(self._client.exists(self._keys.resets)),
        )
        self._doubt(found.doubtful)
        for letter in found.letters:
            self._told(self._backfill.retry(letter, self._fold(self._rules), self._mark))

    def _begin(self) -> tuple[Base, float]:
        """Choose the base of the audit, load its snapshot or fold its archived entries; return it and its time.

        If the snapshot is no longer usable, a base is chosen again. The time, in seconds since 1970, is that of the
        snapshot, or of the ID up to which entries are left out; 0 if no entry is left out.

        Raises:
            ConfigurationError: see `choose` and `_load`.
            ArchiveError, CodecError, SnapshotError: see `choose`, `_load` and `_count_archive`.
            KeyLost: the partition has lost its stream, or the scratch counters have lost a key.
            StreamError: another client has changed the scratch counters.
            redis.RedisError: one of the two servers does not reply, or rejects a command.

        An error of `show` is raised too.
        """
        while True:
            base = choose(self._client, self._deployment, self._number, self._sources, self._span)
            if not base.is_snapshot:
                break
            if (position := self._load()) is not None:
                self._position = position
                self._applied = AppliedEntries(self._client, self._keys, base.after)
                return base, position.taken / 1000
        after = base.after
        self._load_resets(after)
        if self._followed is not None:
            self._follow_log(self._followed, (base.after or "0-0") if base.is_archived else "")
        if base.is_archived:
            self._mark = self._after = ""
            after = self._count_archive(base.after)
        self._applied = AppliedEntries(self._client, self._keys, after)
        return base, 0.0 if base.gone is None else base.gone / 1000

    def _load_resets(self, after: str) -> None:
        """Copy the last reset of each subject to the scratch counters, unless its ID is after `after`.

        If `after` is empty, copy none. The fold leaves out the entries up to `after`, but periods of votes that begin
        later state the last reset of their subject.
        """
        found: Any = self._client.hgetall(self._keys.resets)
        if old := {
            name: place for name, place in found.items() if parse_id(place.decode()) <= parse_id(after or "0-0")
        }:
            self._scratch.hset(self._copy.resets, mapping=old)

    def _count_archive(self, after: str) -> str:
        """Fold the archived entries after `after` that are gone from the stream; return the ID of the last of them.

        These are the ones before the first entry of the stream. If the stream is empty or deleted, all archived entries
        after `after` are folded, without an error. Entries that the archive lacks at its end are not noticed. If no
        entry is folded, return `after`, or `0-0` if `after` is empty.

        Raises:
            ArchiveError, CodecError: the archive cannot be read, a row is damaged, or a file is missing between two
                others or, unless `after` is empty or `0-0`, directly after it.
            StreamError: another client has changed the scratch counters, or (`KeyLost`) they have lost a key.
            redis.RedisError: one of the two servers does not reply, or rejects a command.

        An error of `show` is raised too.
        """
        from tallystream_worker.archive.entries import entries  # noqa: PLC0415  # pyarrow is an extra

        assert self._sources.archive is not None  # noqa: S101  # else it was not chosen
        while True:
            held = self._first_held()
            self._count(entries(self._sources.archive, self._number, after or "0-0", held))
            after = self._after or after or "0-0"
            if self._first_held() == held:  # else more entries were trimmed meanwhile
                return after

    def _first_held(self) -> str | None:
        held = next(stream_entries(self._client, self._keys), None)
        return None if held is None else held.id

    def _load(self) -> SnapshotPosition | None:
        """Replace the scratch counters by the snapshot; return its position, `None` if it has become unusable.

        Also note its dead letters, the time until which it keeps each bucket, and the rules that count later entries.

        Raises:
            ConfigurationError: this release cannot read the rules of the snapshot or of the server.
            SnapshotError: the snapshot cannot be read, lacks the partition, or was changed by another program.
            redis.RedisError: one of the two servers does not reply, or rejects a command.
        """
        from tallystream_worker.snapshot.database import SnapshotError  # noqa: PLC0415  # SQLAlchemy takes its time
        from tallystream_worker.snapshot.load import TableLoader  # noqa: PLC0415  # SQLAlchemy takes its time

        assert self._sources.snapshot is not None  # noqa: S101  # else it was not chosen
        for key in counter_keys(self._scratch, self._copy):
            self._scratch.unlink(key)
        rules, to_load = None, LoadRules(self._rules, self._rules)
        if self._followed is not None:
            rules = RestoredRules(self._sources.snapshot.facts(), self._deployment.layout, self._followed, [])
            first = self._sources.snapshot.ledger(self._number).get(FIRST_RULES)
            to_load = rules.to_load(self._number, self._sources.snapshot.position(self._number), first)
        load = TableLoader(self._scratch, self._copy.counters, to_load)
        found = load.run(self._sources.snapshot, self._number)
        if rules is not None:
            course = rules.course(self._number, found[0], [found[1]], load.ledger.get(FIRST_RULES))
            self._follow(course)
            self._doubt(rules.doubtful(self._number, course))
        self._loaded = [letter_of(self._number, id_, decode_letter(value)) for id_, value in load.dead.items()]
        self._retried = load.ledger.get(RETRIED)
        self._kept = load.expires
        if restored := {name: value for name, value in load.ledger.items() if not name.startswith("entries:")}:
            self._scratch.hset(self._copy.ledger, mapping=restored)  # type: ignore[arg-type]  # the stubs' Mapping is invariant
        if self._sources.snapshot.position(self._number) != found or found[1] != self._keys.generation:
            return None
        if load.damaged:
            raise SnapshotError(
                f"{self._sources.snapshot.place}: rows of partition {self._number} were changed after the snapshot was "
                f"taken (tables: {', '.join(load.damaged)}). Take another: tallystream snapshot --once --whole"
            )
        return found[0] if found[0].is_reached(self._client, self._keys) else None

    def _learn(self) -> None:
        """Note entries that were dead-lettered after too many deliveries since the last call.

        Also read the records of dropped dead letters again, if their number has changed. The fold gives up the former,
        and leaves out the events of the latter, because it cannot find them out.
        """
        for letter in letters(self._client, self._deployment.layout, self._number, self._last_letter):
            self._last_letter = f"({letter.id}"
            if letter.was_given_up:
                self._given_up.add(letter.source)
        if self._client.hlen(self._keys.dropped) != sum(map(len, self._dropped.values())):
            self._dropped.update(dropped(self._client, self._keys))

    def _bring_to(self, moment: Checkpoint) -> None:
        self._learn()  # after the checkpoint: an entry that was given up before it is a dead letter, or dropped
        entries, position = self._applied.until(moment), self._position
        if position is not None:
            entries = (entry for entry in entries if not position.includes(entry, self._keys.generation))
        self._count(entries)

    def _count(self, entries: Iterator[Entry]) -> None:
        while page := list(islice(entries, _PAGE)):
            if self._given_up:
                page = [Entry(e.id, e.fields, _GIVEN_UP) if e.id in self._given_up else e for e in page]
            self._set_last_id(page[-1].id)
            self._mark = self._backfill(page, self._mark, lambda entry: entry.id, self._told)
            self._after = page[-1].id
            self._entries += len(page)
            self._show(self._keys.stream, self._entries, self._counters)

    def _set_last_id(self, reached: str) -> None:
        """Set the last ID of the scratch stream to the one that the live stream had when the rules changed last.

        Only changes whose first ID in `Course.ranges` is not after `reached` matter; the highest of their second IDs is
        set. If there is no such change, do nothing. The scratch stream is created if it does not exist. From this last
        ID, the script that counts by new rules derives since when they count (`parts.lua`).
        """
        lasts = [last for first, last in self._course.ranges if first <= parse_id(reached)]
        if not lasts:
            return
        if not self._scratch.exists(self._copy.stream):
            self._scratch.xgroup_create(self._copy.stream, self._copy.group, "0-0", mkstream=True)
        self._scratch.execute_command("XSETID", self._copy.stream, id_text(max(lasts)))

    def _told(self, folded: FoldResult) -> None:
        prefix = self._copy.counters
        self._ends.update((key.removeprefix(prefix), end) for key, end in folded.batch.ends.items())

    def _new(self, every: Iterable[Piece]) -> Iterator[Piece]:
        """Yield pieces without the counters that an earlier piece had, also one of an earlier call.

        A piece without any other counter is left out.
        """
        for piece in every:
            if (left := piece.without(self._compared)) is not None:
                self._compared.update(map(hash, left.names()))
                yield left

    def _is_wanted(self, name: str) -> bool:
        if metric_of(name) in self._course.inexact:
            return False
        if self._provable(name):
            return self._sample >= 1 or zlib.crc32(name.encode("utf-8", "surrogateescape")) < self._sample * 2**32
        if self._provable.asked(name):
            self._unproved.add(hash(name))
        return False

    def _is_kept(self, name: str, now: float) -> bool:
        """Return whether a key can be compared at millisecond `now`.

        It cannot if the fold or the snapshot states a time until which its bucket is open, or its state is kept, and
        this time has passed. It cannot if its period was removed, or events were left out of it, because reads state it
        as missing. It cannot if it is left over from a rule that was changed (see `RemovedPeriods.is_declared`). Any
        other key can be.
        """
        if not (self._removed.is_declared(name) and self._removed.can_compare(name)):
            return False
        end = self._ends.get(name)
        if end is None and (self._kept or name.startswith("unique:")):
            found = parse(name.removeprefix("top:"), self._rules)
            if found is not None:
                end = self._ends.get(key_of(found[0]), self._kept.get(bucket_of(found[0]) or name))
        return not 0 < (end or 0) <= now

    def _read(self, every: Iterable[Piece]) -> Iterator[LiveChunk]:
        """Read the live values of all pieces that were not read before, then yield them in chunks, the oldest first.

        Entries that arrive while the caller folds are not in these chunks, so they need not be folded. So an audit ends
        even if entries arrive faster than they can be folded.
        """
        with SpooledTemporaryFile(_IN_MEMORY, prefix="tally-audit-") as file:
            for chunk in chunks(self._new(every)):
                commands = [piece.command(self._keys) for piece in chunk]
                # Buckets that have closed are not compared, nor is state past the time until which it is kept: the keys
                # may be removed. These two commands are read after the live keys. So a key that is removed before is
                # not taken for one that should exist.
                commands += [("HGETALL", self._keys.forgotten), ("TIME",)]
                moment, (*replies, forgotten, clock) = checkpoint(
                    self._client, self._keys, commands, counters=len(chunk)
                )
                pickle.dump(LiveChunk(chunk, replies, moment, forgotten, parse_time(clock) // 1000), file)
                self._show(self._keys.stream, self._entries, self._counters)
            file.seek(0)
            while True:
                try:
                    yield pickle.load(file)  # noqa: S301  # written above
                except EOFError:
                    return

    def _compare(self, live: LiveChunk, wrong: dict[str, Difference], *, count: bool) -> None:
        chunk = live.pieces
        self._bring_to(live.moment)
        if self._followed is not None:
            recorded = {name.decode(): value.decode() for name, value in live.forgotten.items()}
            adopt_as(self._scratch, self._copy, self._rules, recorded)
        self._removed.learn(live.forgotten)
        # By its clock, which is this host's, the scratch server may have removed more.
        self._removed.learn(self._scratch.execute_command("HGETALL", self._copy.forgotten))
        kept = [self._is_kept(piece.name, live.now) for piece in chunk]
        chosen, replies = list(compress(chunk, kept)), list(compress(live.replies, kept))
        self._expired += len(chunk) - len(chosen) if count else 0
        with self._scratch.pipeline(transaction=False) as pipeline:
            for piece in chosen:
                pipeline.execute_command(*piece.command(self._copy))
            expected = pipeline.execute()
        for piece, wanted, found in zip(chosen, expected, replies, strict=True):
            if not piece.numbers and not self._is_wanted(piece.name):
                continue  # an event with an id has just arrived: it may be a copy of one that is gone
            self._counters += piece.size if count else 0
            if wanted == found:  # nearly always, and much faster than comparing parsed values
                if piece.fields and None not in found:
                    self._agreed[piece.name] += piece.size
                continue
            names = self._note(piece, piece.values(wanted), piece.values(found), wrong)
            self._wrong += min(len(names), piece.size) if count else 0  # a leaderboard is one counter
        self._show(self._keys.stream, self._entries, self._counters)

    def _note(
        self, piece: Piece, wanted: Mapping[str, Value], found: Mapping[str, Value], wrong: dict[str, Difference]
    ) -> list[str]:
        """Add to `wrong`, by name, each counter of a piece whose two values differ and must not; return the names.

        Some subjects of a leaderboard may be missing on one side: see `differing`. `wanted` has the values that the
        entries give, and `found` has the live values, both by counter.
        """
        shrunk: frozenset[str] = frozenset()
        if piece.kind == "top":
            shrunk = shrunk_in(
                self._client.execute_command("HGETALL", self._keys.ledger),
                self._scratch.execute_command("HGETALL", self._copy.ledger),
            )
        names = differing(piece, wanted, found, shrunk)
        for name in names:
            wrong[name] = Difference(self._keys.stream, name, wanted.get(name), found.get(name))
        return names

    def _compare_ledgers(self, wrong: dict[str, Difference]) -> None:
        commands = [("HGETALL", self._keys.ledger), ("HGETALL", self._keys.resets)]
        moment, (live, resets) = checkpoint(self._client, self._keys, commands)
        self._bring_to(moment)
        for name, place in self._scratch.execute_command("HGETALL", self._copy.resets).items():
            if resets.get(name) != place:
                counter = f"resets -> {name.decode(errors='replace')}".replace("\n", " ")
                found = resets[name].decode(errors="replace") if name in resets else None
                wrong[counter] = Difference(self._keys.stream, counter, place.decode(), found)
        expected: dict[bytes, bytes] = self._scratch.execute_command("HGETALL", self._copy.ledger)
        inexact = self._course.inexact
        for name in sorted({*live, *expected}, key=bytes):
            field = name.decode(errors="replace")
            outcome, _, metric = field.partition("@")
            if outcome.partition(":")[0] not in _OUTCOMES or (inexact and (not metric or metric in inexact)):
                continue
            self._counters += 1
            wanted, found = int(expected.get(name, 0)), stored_number(self._keys.ledger, live.get(name), field=field)
            if wanted != found:
                self._wrong += 1
                counter = f"ledger -> {name.decode(errors='replace')}"
                wrong[counter] = Difference(self._keys.stream, counter, wanted, found)
