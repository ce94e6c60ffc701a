"""Brings the counters of one partition back: the snapshot's rows, then the log behind them, counted as ever."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from tallystream.client.replies import is_key_missing
from tallystream.storage.scripts import Script
from tallystream.wire.stream_id import parse_id
from tallystream_worker.counting.entry import Entry
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.counting.fold import Fold
from tallystream_worker.counting.loop import CountingLoop
from tallystream_worker.process import failpoints
from tallystream_worker.snapshot.load import TableLoader
from tallystream_worker.snapshot.restored_log import RestoredLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import redis

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout, PartitionKeys
    from tallystream_worker.snapshot.database import Database
    from tallystream_worker.snapshot.point_in_time import SnapshotPosition

CONSUMER: Final = "restore"
_READ: Final = 512
MARKER: Final = "restore"
"""Key of the first partition: a restore has begun here, and what is there may be replaced by the next."""

_REPLACE: Final = Script("tallystream_worker.snapshot", "replace_stream")


@dataclass(frozen=True)
class RestoredPart:
    """What came back of one partition.

    Attributes:
        stream: Its name.
        rows: Rows of the snapshot.
        taken: The snapshot's moment, milliseconds since 1970.
        replayed: Entries behind the snapshot that were found, and are counted now.
        until: The last entry that is known of.
        missing: Events that the snapshot's books know as appended and not counted yet, and that were not found.
        survived: Something was left of the stream itself, so nothing behind `until` is missing.
    """

    stream: str
    rows: int
    taken: int
    replayed: int
    until: str
    missing: int
    survived: bool


class PartitionRestore:
    """Brings one partition back; run again, it begins from the start."""

    def __init__(self, client: redis.Redis, database: Database, layout: Layout, partition: int, rules: Rules) -> None:
        self._client: Any = client
        self._database = database
        self._layout = layout
        self._partition = partition
        self._rules = rules
        self._keys: PartitionKeys = layout.keys[partition]
        # What is put together, and takes its place in one step: producers may append until then.
        self._log = self._keys.prefix + "restoring"
        self._ledger, self._sequences = f"{self._log}:ledger", f"{self._log}:sequences"

    def run(self, archived: Callable[[int, str, str | None], Iterable[Entry]] | None) -> RestoredPart:
        """Bring the partition back; return what came."""
        while True:
            self._wipe()
            load = TableLoader(self._client, self._keys.ledger.removesuffix("ledger"), self._rules)
            position, generation = load.run(self._database, self._partition)
            failpoints.reach("after-load")
            if self._database.position(self._partition) == (position, generation):
                break  # else a worker has written the next one meanwhile: a drill, beside a live system
        survived = bool(self._client.exists(self._keys.stream))
        log = RestoredLog(position, generation, load)
        for entry in self._old(archived, position):
            self._append(log, entry)
        copied = position.floor
        while True:
            # Read before the copy: what is appended during it makes the graft fail, and the next turn brings it.
            last = self._last()
            for entry in self._left(copied):
                self._append(log, entry)
                copied = entry.id
            self._send(log)
            self._set_up(log)
            places = [self._keys.stream, self._keys.ledger, self._keys.sequences]
            (answer,) = _REPLACE(self._client, [self._log, self._ledger, self._sequences, *places], [last])
            if answer == b"replaced":
                break
        failpoints.reach("after-graft")
        self._drain()
        until = log.last or position.generated
        return RestoredPart(
            self._keys.stream, load.rows, position.taken, log.entries, until, max(0, log.missing), survived
        )

    def _wipe(self) -> None:
        """Remove everything but what is left of the stream, and what its gate knows.

        Whoever appends meanwhile would take a gate that forgot for a stream that did, and send again what is in it.
        """
        keep = {name.encode() for name in (self._keys.stream, self._keys.sequences, self._keys.prefix + MARKER)}
        prefix = "".join(f"\\{c}" if c in "*?[]\\" else c for c in self._keys.prefix)
        chunk = []
        for key in self._client.scan_iter(match=f"{prefix}*", count=2000):
            if key not in keep:
                chunk.append(key)
            if len(chunk) >= _READ:
                self._client.unlink(*chunk)
                chunk.clear()
        if chunk:
            self._client.unlink(*chunk)

    def _old(
        self, archived: Callable[[int, str, str | None], Iterable[Entry]] | None, position: SnapshotPosition
    ) -> Iterator[Entry]:
        """Yield what the archive holds behind the snapshot, up to what is left of the stream."""
        if archived is None:
            return
        first = self._client.xrange(self._keys.stream, f"({position.floor}", "+", count=1)
        if first and position.is_reached(self._client, self._keys.stream):
            return  # the stream has it all
        yield from archived(self._partition, position.floor, first[0][0].decode() if first else None)

    def _left(self, after: str) -> Iterator[Entry]:
        while True:
            found = self._client.xrange(self._keys.stream, f"({after}", "+", count=_READ)
            for id_, fields in found:
                after = id_.decode()
                yield Entry(after, fields)
            if len(found) < _READ:
                return

    def _append(self, log: RestoredLog, entry: Entry) -> None:
        log.queue.append(log.add(entry))
        if len(log.queue) >= _READ:
            self._send(log)

    def _send(self, log: RestoredLog) -> None:
        with self._client.pipeline(transaction=False) as pipeline:
            for entry in log.queue:
                pipeline.xadd(self._log, dict(entry.fields), id=entry.id)
            pipeline.execute()
        log.queue.clear()

    def _set_up(self, log: RestoredLog) -> None:
        """Put group, books and sequences to the snapshot's position, and behind them what the log adds."""
        client, position, group = self._client, log.position, self._keys.group
        try:
            client.xgroup_destroy(self._log, group)
        except ResponseError as error:
            if not is_key_missing(error):
                raise
        client.xgroup_create(self._log, group, id=position.floor, mkstream=True, entries_read=log.gone)
        top = max(parse_id(position.generated), parse_id(log.last or "0-0"))
        # What the snapshot has and no log brought back was appended all the same: an audit or a rebuild asks for it.
        added = client.xlen(self._log) + log.gone
        client.execute_command("XSETID", self._log, f"{top[0]}-{top[1]}", "ENTRIESADDED", added)
        handed = log.handed
        while handed > 0:
            reply = client.execute_command(
                "XREADGROUP", "GROUP", group, CONSUMER, "COUNT", min(handed, _READ), "STREAMS", self._log, ">"
            )
            ids = [id_.decode() for id_, _ in reply[self._log.encode()]]
            handed -= len(ids)
            applied = [id_ for id_ in ids if id_ not in log.pending]
            if applied:
                client.xack(self._log, group, *applied)
        client.delete(self._ledger, self._sequences)
        client.hset(self._ledger, mapping=log.ledger())
        if log.producers:
            client.hset(self._sequences, mapping=log.producers)

    def _drain(self) -> None:
        """Count what is pending and unread."""
        fetch = Fetch(self._client, self._keys, CONSUMER)
        fold = Fold(self._layout, self._partition, self._rules)
        consumer = CountingLoop(self._client, self._layout, self._partition, fetch, fold)
        while consumer.run_once():
            pass
        fetch.recover()
        while consumer.run_once():
            pass

    def _last(self) -> str:
        """Return the last ID of what is left of the stream; "" where nothing is."""
        if not self._client.exists(self._keys.stream):
            return ""
        return str(self._client.xinfo_stream(self._keys.stream)["last-generated-id"].decode())
