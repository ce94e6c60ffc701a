"""Restores the counters of one partition: loads the rows of the snapshot, then counts the entries after it."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from tallystream.client.replies import is_key_missing
from tallystream.client.server_time import server_time
from tallystream.errors import ConsumerGroupMissing, GenerationSwitched
from tallystream.storage.deployment_hash import live_mark
from tallystream.storage.keys import (
    BEGUN,
    CLOSING,
    FIRST,
    FIRST_RULES,
    GROUP,
    RESTORED,
    RESTORED_AT,
    RESTORED_UP_TO,
    SNAPSHOTS,
)
from tallystream.storage.scripts import Script
from tallystream.wire.stream_id import StreamID, after, before, id_text, parse_id
from tallystream_worker.counting.entry import Entry
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.counting.fold import Fold
from tallystream_worker.counting.loop import CountingLoop
from tallystream_worker.dead_letters.store import dropped, records_of_dropped
from tallystream_worker.process import failpoints
from tallystream_worker.process.partition_names import partition_names
from tallystream_worker.snapshot.dead_letters import restore_dead_letters
from tallystream_worker.snapshot.load import TableLoader
from tallystream_worker.snapshot.lost_log import put_mark
from tallystream_worker.snapshot.restore_lock import Fence
from tallystream_worker.snapshot.restored_log import RestoredLog, first_later
from tallystream_worker.snapshot.uncounted import origin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

    from tallystream.storage.keys import Layout, PartitionKeys
    from tallystream_worker.snapshot.archived import ArchivedEntries
    from tallystream_worker.snapshot.database import Database
    from tallystream_worker.snapshot.live_rules import Course, RestoredRules
    from tallystream_worker.snapshot.point_in_time import SnapshotPosition
    from tallystream_worker.snapshot.restore_lock import RestoreLock

CONSUMER: Final = "restore"
"""The name of the consumer that counts the entries after a snapshot."""

_READ: Final = 512
_CLOSE: Final = Script("tallystream_worker.snapshot", "close_partition")
_REPLACE: Final = Script("tallystream_worker.snapshot", "replace_stream")


@dataclass(frozen=True)
class RestoredPart:
    """The result of the restore of one partition.

    Attributes:
        stream: The name of the stream.
        rows: Number of rows of counters that were read from the snapshot.
        taken: The moment of the snapshot, in milliseconds since 1970.
        replayed: Number of entries that were found, and that no worker had acknowledged at the snapshot's moment; they
            are counted now, unless the snapshot contains them because they were decided. Entries that were left out,
            because producers had sent them again, are not among them.
        until: The ID of the last entry that was found; if none was, the last ID of the stream at the snapshot's moment.
        missing: Number of events that were appended and not counted at the moment of the snapshot, and were not found.
        survived: Whether, when the entries were read, the server had a stream to which an entry was ever appended: the
            old one, or one that producers have begun since. If not, any number of entries after `until` may be missing;
            `missing` does not have their events.
        damaged: The tables of the snapshot in which another program has changed, removed or added rows of the partition
            after it was taken. Their rows are restored unchanged.
    """

    stream: str
    rows: int
    taken: int
    replayed: int
    until: str
    missing: int
    survived: bool
    damaged: list[str]


class PartitionRestore:
    """Restores one partition: `close`, then `run`, then `open`; a repeated run begins from the start.

    `check_archive` reads the archive on trial, before `close`.

    From `close` to `open`, no worker and no decider counts in the partition; only `run` does.

    Args:
        client: The server to restore to.
        database: The database of the snapshot.
        layout: The layout of the snapshot's topic.
        partition: The number of the partition.
        lock: The lock of the restore.
    """

    def __init__(
        self, client: redis.Redis, database: Database, layout: Layout, partition: int, lock: RestoreLock
    ) -> None:
        self._client: Any = client
        self._database = database
        self._layout = layout
        self._partition = partition
        self._lock = lock
        self._keys: PartitionKeys = layout.keys[partition]
        # The restored stream is built under these keys and replaces the old one in one step: producers may append.
        self._log = self._keys.prefix + "restoring"
        self._ledger, self._sequences = f"{self._log}:ledger", f"{self._log}:sequences"
        self.newest = FIRST
        """The highest number of a generation that `run` has found in the snapshot and the entries; 1 before.

        If the stream was restored from this snapshot before, the generation of the snapshot counts as the first one.
        """
        self._places: dict[int, str] = {}
        self._known_end = ""

    @cached_property
    def fence(self) -> Fence:
        """The fence that runs the writes to the partition from `close` on; made at the first use, and then kept.

        Use it, and call `close`, only after `RestoreLock.note_begun`: the value that it compares contains the number of
        the closing, which is empty before. A fence that was made too early keeps the wrong value.
        """
        return Fence(
            self._client, self._lock, self._keys.live, f"{FIRST} restoring {self._lock.closing} {self._lock.token}"
        )

    @property
    def generation(self) -> int:
        """The number of the generation of the partition's counters in the snapshot; `FIRST` if there is none.

        Raises:
            SnapshotError: the database cannot be used.
        """
        found = self._database.position(self._partition)
        return FIRST if found is None else found[1]

    @property
    def taken(self) -> int:
        """The millisecond at which the snapshot of the partition was taken; 0 if there is none.

        Raises:
            SnapshotError: the database cannot be used.
        """
        found = self._database.position(self._partition)
        return 0 if found is None else found[0].taken

    def close(self) -> None:
        """Close the partition: no worker or decider counts in it. Call it only after `RestoreLock.note_begun`.

        Producers append as before; if the partition has no keys, it is opened for them. A new entry gets a later ID
        than every entry of the snapshot, and than every archived entry that `check_archive` has read. The consumer
        groups that count are removed from the stream; `run` creates that of the first generation again. An earlier
        restore that still runs changes nothing here from now on.

        Raises:
            RestoreOvertaken: a later restore or repartition has closed the partition; nothing was changed.
            redis.RedisError: the server did not answer, or refused a command.
        """
        names = [self._keys.stream, self._keys.live, self._keys.sequences]
        (answer,) = _CLOSE(self._client, names, [GROUP, self._lock.closing, self.fence.value, self._known_end])
        if answer == b"overtaken":
            raise self._lock.overtaken()

    def open(self, revision: int) -> None:
        """Let workers and deciders count in the restored generation, the first one; `revision` numbers its rules.

        First, write to the server the places at which the partition began to follow rules, and how many there are.

        Raises:
            RestoreOvertaken: another restore has taken over; this one did not open the partition.
            redis.RedisError: the server did not answer, or refused a command.
        """
        if self._places:
            self.fence("HSET", self._keys.adopted, *(part for place in self._places.items() for part in place))
            self.fence("HSET", self._keys.ledger, "entries:adopted", len(self._places))
        self.fence("SET", self._keys.live, live_mark(FIRST, revision))

    def check_archive(self, archived: ArchivedEntries | None) -> None:
        """Read the archived entries that `run` needs, so that an error of the archive is raised before any change.

        Also note the last ID that the snapshot and the archive know. Call it before `close`, with the argument of
        `run`: `archived` is called here too. Do nothing if there is no snapshot of the partition.

        Raises:
            SnapshotError: the database cannot be used.
            redis.RedisError: the server did not answer, or refused a command.

        Any error of `archived` is raised too.
        """
        if (found := self._database.position(self._partition)) is not None:
            end = parse_id(found[0].generated)[0] + 1, 0  # see `_moved`
            for entry in self._old(archived, found[0]):
                end = max(end, parse_id(entry.id))
            self._known_end = id_text(end)

    def run(self, archived: ArchivedEntries | None, rules: RestoredRules) -> RestoredPart:
        """Load the partition's counters from the snapshot, build its stream again, and count the later entries.

        First, all present counters of the partition are deleted: every key except those that `_wipe` names.

        The new stream has the entries that the snapshot may lack: those of the archive and of the stream, in order of
        IDs, then those that are appended meanwhile. Entries that producers sent again, and whose events are already
        there, are left out. If the stream has lost nothing, and the server's memory can hold it twice, the new one also
        has the earlier entries. Of the consumer groups, the new stream has only that of the first generation.

        Args:
            archived: Reads the archived entries; `None` for no archive.
            rules: The rules to count the later entries by.

        Returns:
            The result.

        Raises:
            SnapshotError: the database contains no snapshot of the partition, or cannot be used.
            RestoreOvertaken: another restore has taken over, and nothing that it writes was changed.
            StreamError: another client has removed or changed keys of the partition (`KeyLost`, `ConsumerGroupMissing`,
                `GenerationSwitched`), its node failed over or restarted while a hash was read (`ScanBroken`), or
                entries could not be counted.
            CodecError: the record of a dropped dead letter, or the `source` of a dead letter, is damaged.
            redis.RedisError: the server did not answer, or refused a command.

        Any error of `archived` is raised too. An entry that cannot be counted becomes a dead letter, or its error is
        raised. After an error, the partition stays closed, and its counters are incomplete until a repeated run.
        """
        while True:
            self._wipe()
            first = self._database.ledger(self._partition).get(FIRST_RULES)
            to_load = rules.to_load(self._partition, self._database.position(self._partition), first)
            load = TableLoader(self._client, self._keys.ledger.removesuffix("ledger"), to_load, self.fence)
            position, generation = load.run(self._database, self._partition)
            failpoints.reach("after-load")
            if self._database.position(self._partition) == (position, generation):
                break  # else a worker wrote another snapshot meanwhile, which happens in a drill
        self._restore_dead(load, position)
        survived = self._had_entries()
        generations = [generation]
        restored: bytes = self._client.hget(self._keys.sequences, RESTORED) or b""
        resumed = None
        if restored.partition(b" ")[0] == position.mark.encode():
            generation = FIRST  # the stream was restored from this snapshot before: see RestoredLog.add
        elif not put_mark(self._client, self._keys, position.mark):
            resumed = self._first_later(archived, position, load)
        course = rules.course(self._partition, position, [*generations, generation], load.ledger.get(FIRST_RULES))
        self._places = course.places
        self.newest = generation
        if course.places and course.first and course.first not in course.places:
            load.ledger.setdefault(FIRST_RULES, course.first)
        log = RestoredLog(position, generation, load)
        if self._has_lost_nothing(position) and self._has_room():
            for entry in self._left("0-0", position.floor):
                self._append(log, entry)
        copied = position.floor
        for entry in self._later(archived, position, resumed):
            self._append(log, entry)
            copied = entry.id
        while True:
            # Read the last ID before the copy: if an entry is appended meanwhile, the replacement fails, and the next
            # turn copies the entry.
            last = self._last()
            for entry in self._left(copied):
                self._append(log, entry)
                copied = entry.id
            self._send(log)
            self._set_up(log, has_archive=archived is not None)
            places = [self._keys.stream, self._keys.ledger, self._keys.sequences, self._keys.live]
            names = [self._log, self._ledger, self._sequences, *places]
            (answer,) = _REPLACE(self._client, names, [last, self.fence.value])
            if answer == b"overtaken":
                raise self._lock.overtaken()
            if answer == b"replaced":
                break
        failpoints.reach("after-graft")
        self.newest = max(self.newest, log.newest)
        self._drain(course)
        until = log.last or position.generated
        return RestoredPart(
            self._keys.stream,
            load.rows,
            position.taken,
            log.entries,
            until,
            max(0, log.missing),
            survived,
            load.damaged,
        )

    def _wipe(self) -> None:
        """Remove every key of the partition in its topic, except those that other processes need.

        Call it only between `close` and `open`: otherwise `fence` refuses to remove keys. After an error, some keys
        may be removed already; a second call removes the rest.

        Kept are the stream, the records of dropped dead letters, the marks of what was copied from the topic before,
        the identities of ingested files, and the sentinels: the sequences, the ledger of the topic and the key of the
        live generation. The keys of later topics are kept too, although their names begin with the prefix of the first
        topic.

        Raises:
            RestoreOvertaken: another restore has taken over, or the partition is not closed by this one.
            redis.RedisError: the server did not answer, or refused a command.
        """
        keys = self._keys
        sentinels = (keys.sequences, keys.topic_ledger, keys.live)
        kept = (keys.stream, *sentinels, keys.dropped, keys.copied, self._layout.files)
        keep = {name.encode() for name in kept}
        names = (name.decode() for name, _ in partition_names(self._client, keys) if name not in keep)
        while page := list(islice(names, _READ)):
            self.fence("UNLINK", *page)

    def _restore_dead(self, load: TableLoader, position: SnapshotPosition) -> None:
        """Write the dead letters of the snapshot, but not those that were dropped after it with a record.

        Add the events of the dropped ones to `dropped` in `load.ledger`. Their records stay on the server. A dead
        letter that was retried after the snapshot, or that a worker has dropped without a record, comes back.

        Args:
            load: The tables of the snapshot.
            position: The position of the snapshot.

        Any error of `restore_dead_letters` is raised too.
        """
        keys = self._keys
        records = records_of_dropped(self._client, keys)
        later = [record for field, record in records.items() if field not in load.dropped]
        if events := restore_dead_letters(self.fence, keys, load.dead, position.dead, later):
            load.ledger["dropped"] = load.ledger.get("dropped", 0) + events

    def _old(self, archived: ArchivedEntries | None, position: SnapshotPosition) -> Iterator[Entry]:
        """Yield the archived entries after the `floor` of the snapshot, to the end of the archive, in order of IDs.

        Without an archive (`None`), yield none. Entries that the archive lacks are an error only before the first entry
        of the stream after `floor`: later, the stream can have them. If the stream has no such entry, they are always
        an error.
        """
        if archived is None:
            return
        first = self._client.xrange(self._keys.stream, f"({position.floor}", "+", count=1)
        yield from archived(self._partition, position.floor, first[0][0].decode() if first else None)
        if first:
            yield from archived(self._partition, id_text(before(parse_id(first[0][0].decode()))), None, with_gaps=True)

    def _later(
        self, archived: ArchivedEntries | None, position: SnapshotPosition, resumed: str | None
    ) -> Iterator[Entry]:
        """Yield the entries of the archive and of the stream after the `floor` of the snapshot, each ID once, in order.

        A server that has lost the end of its stream can have later entries again: so archived entries can lie between
        those of the stream, and after them. If both have an ID, the entry of the stream is yielded. Entries of the
        stream from `resumed` (the result of `_first_later`) up to the last ID of the snapshot get new IDs, after it.
        """
        end = parse_id(position.generated)
        own = self._left(position.floor)
        if resumed is not None:
            begins = parse_id(resumed)
            own = (entry for entry in own if not begins <= parse_id(entry.id) <= end)
        moved = self._moved(position, resumed)
        last = position.floor
        # `merge` is stable: of two equal IDs, that of the first iterator comes first.
        for entry in heapq.merge(own, self._old(archived, position), key=_order):
            if parse_id(entry.id)[0] > end[0]:
                yield from moved(max(parse_id(last), end))
            if entry.id != last:
                yield entry
            last = entry.id
        yield from moved(max(parse_id(last), end))

    def _moved(self, position: SnapshotPosition, resumed: str | None) -> Callable[[StreamID], Iterator[Entry]]:
        """Return a function that yields, once, the entries from `resumed` to the last ID of the snapshot, with new IDs.

        The new IDs follow the ID that the function is given, in the same millisecond: `close` has made sure that no
        entry that is appended meanwhile gets one of them. Each entry that has a format version states when the server
        received it; the others are plain entries, which have the time of their ID.
        """
        left = [] if resumed is None else [resumed]

        def move(id_: StreamID) -> Iterator[Entry]:
            while left:
                for entry in self._left(id_text(before(parse_id(left.pop()))), position.generated):
                    id_ = after(id_)
                    stated = {b"t": b"%d" % entry.received} if b"v" in entry.fields else {}
                    yield Entry(id_text(id_), {**entry.fields, **stated})

        return move

    def _first_later(
        self, archived: ArchivedEntries | None, position: SnapshotPosition, load: TableLoader
    ) -> str | None:
        """Return the result of `first_later` for the stream; the server has lost the end of its log."""
        lost = () if archived is None else self._only_archived(archived, position)
        sent = (origin(entry.fields) for entry in lost)
        own = self._left("0-0", position.generated)
        return first_later(own, load.producers, (each for each in sent if each is not None))

    def _only_archived(self, archived: ArchivedEntries, position: SnapshotPosition) -> Iterator[Entry]:
        """Yield the archived entries that the stream lacks, from its first entry to the last ID of the snapshot."""
        first = self._client.xrange(self._keys.stream, count=1)
        if not first:
            return
        start, end = before(parse_id(first[0][0].decode())), after(parse_id(position.generated))
        stored = archived(self._partition, id_text(start), id_text(end), with_gaps=True)
        own, last = ((True, entry) for entry in self._left("0-0", position.generated)), ""
        for is_own, entry in heapq.merge(own, ((False, entry) for entry in stored), key=lambda each: _order(each[1])):
            if not is_own and entry.id != last:
                yield entry
            last = entry.id

    def _had_entries(self) -> bool:
        """Return whether the server has the stream, and an entry was ever appended to it."""
        if not self._client.exists(self._keys.stream):
            return False
        return bool(self._client.xinfo_stream(self._keys.stream)["entries-added"])

    def _has_lost_nothing(self, position: SnapshotPosition) -> bool:
        """Return whether the stream has every entry from its first to the last one of the snapshot's moment.

        Return `False` if the stream does not exist or is empty, if the last entry of that moment is gone, or if any
        entry after the first was deleted.
        """
        if not self._client.exists(self._keys.stream):
            return False
        about = self._client.xinfo_stream(self._keys.stream)
        first, deleted = about["first-entry"], about["max-deleted-entry-id"]
        if first is None or parse_id(deleted.decode()) > parse_id(first[0].decode()):
            return False
        return bool(self._client.xrange(self._keys.stream, position.generated, position.generated))

    def _has_room(self) -> bool:
        """Return whether the server can hold the stream twice: the old one stays until the new one replaces it.

        `True` if `maxmemory` is 0, which is no limit.
        """
        memory = self._client.info("memory")
        most = int(memory["maxmemory"])
        return most == 0 or int(memory["used_memory"]) + int(self._client.memory_usage(self._keys.stream) or 0) < most

    def _left(self, after: str, until: str = "+") -> Iterator[Entry]:
        """Yield the entries of the stream after the ID `after`, up to and with `until` (`+`: to the end)."""
        while True:
            found = self._client.xrange(self._keys.stream, f"({after}", until, count=_READ)
            for id_, fields in found:
                after = id_.decode()
                yield Entry(after, fields)
            if len(found) < _READ:
                return

    def _append(self, log: RestoredLog, entry: Entry) -> None:
        if (kept := log.add(entry)) is not None:
            log.queue.append(kept)
        if len(log.queue) >= _READ:
            self._send(log)

    def _send(self, log: RestoredLog) -> None:
        self.fence.run(
            [
                ("XADD", self._log, entry.id, *(part for field in entry.fields.items() for part in field))
                for entry in log.queue
            ]
        )
        log.queue.clear()

    def _set_up(self, log: RestoredLog, *, has_archive: bool) -> None:
        """Write the ledger and the sequences for the restored stream, and its group and last ID, under temporary keys.

        `log` has what to write. The entries after `floor` that were delivered at the snapshot's moment are delivered
        again, and those of them that were not pending are acknowledged. `has_archive` tells whether `log` has the
        archived entries too.
        """
        client, position, group, fence = self._client, log.position, self._keys.group, self.fence
        try:
            fence("XGROUP", "DESTROY", self._log, group)
        except ResponseError as error:
            if not is_key_missing(error):
                raise
        read = log.gone + log.early
        fence("XGROUP", "CREATE", self._log, group, position.floor, "MKSTREAM", "ENTRIESREAD", read)
        top = max(parse_id(position.generated), parse_id(log.last or "0-0"))
        # Entries that are in the snapshot and were not found count as added: audits and rebuilds ask for their number.
        added = client.xlen(self._log) + log.gone
        fence("XSETID", self._log, id_text(top), "ENTRIESADDED", added)
        handed = log.handed - log.early
        while handed > 0:
            reply = fence(
                "XREADGROUP", "GROUP", group, CONSUMER, "COUNT", min(handed, _READ), "STREAMS", self._log, ">"
            )
            ids = [id_.decode() for id_, _ in reply[0][1]]
            handed -= len(ids)
            applied = [id_ for id_ in ids if id_ not in log.pending]
            if applied:
                fence("XACK", self._log, group, *applied)
        fence("DEL", self._ledger, self._sequences)
        account = log.ledger()
        if dropped_ := client.hlen(self._keys.dropped):
            account["entries:dropped"] = dropped_  # see `dead_letters/lua/drop.lua`
        if client.exists(self._keys.copied):
            account["entries:copied"] = 1  # see `repartition/lua/copy.lua`
        fence("HSET", self._ledger, *(part for field in account.items() for part in field))
        # With the mark of the snapshot, the next snapshot knows that the server has everything that this one has.
        records = {
            **log.producers,
            BEGUN: "1",
            f"!{CLOSING}": self._lock.closing,
            SNAPSHOTS: log.position.mark,
            RESTORED: f"{log.position.mark} {position.floor} {log.gone}",
            RESTORED_AT: str(server_time(client)),
        }
        if has_archive:
            records[RESTORED_UP_TO] = id_text(top)
        fence("HSET", self._sequences, *(part for field in records.items() for part in field))

    def _drain(self, course: Course) -> None:
        """Count every entry of the restored stream that is not acknowledged, also if a worker has read it.

        Raises:
            RestoreOvertaken: a later restore has closed the partition.

        Any other error of `CountingLoop.run_once`, and of `dropped`, is raised too.
        """
        keys, left_out = self._keys, dropped(self._client, self._keys)
        # Claim entries at once: a worker may read them, but it cannot apply them while the partition is closed.
        fetch = Fetch(self._client, keys, CONSUMER, claim_idle=0.0)
        fold = course.fold(lambda rules: Fold(self._layout, self._partition, rules, dropped=left_out))
        consumer = CountingLoop(
            self._client,
            self._layout,
            self._partition,
            fetch,
            fold,
            live_only=False,
            restoring=self.fence.value,
        )
        try:
            self.fence.check()
            while consumer.run_once() or self._client.xpending(keys.stream, keys.group)["pending"]:
                self.fence.check()
        except (GenerationSwitched, ConsumerGroupMissing, ResponseError):
            self.fence.check()  # a later restore has closed the partition
            raise

    def _last(self) -> str:
        """Return the last ID that the old stream has generated, even if that entry is gone; `""` without a stream."""
        if not self._client.exists(self._keys.stream):
            return ""
        return str(self._client.xinfo_stream(self._keys.stream)["last-generated-id"].decode())


def _order(entry: Entry) -> StreamID:
    return parse_id(entry.id)
