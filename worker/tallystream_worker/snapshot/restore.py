"""Brings counters back: the snapshot's rows, then what the log holds behind them, counted as ever.

By partition: the rows; the log again, put together of the archive and of what is left of the stream, with the group
at the snapshot's position; then the ordinary loop counts what is pending and unread. `tally:meta` comes last: until
then workers and readers take the server for one that has lost its data, and wait.

It begins from the start when it is run again: everything it wrote is written anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from tallystream.client.replies import is_key_missing
from tallystream.errors import StreamError
from tallystream.rules.metrics import read as read_rules
from tallystream.storage.deployment_hash import fields_of, spread_fields
from tallystream.storage.keys import FIRST, FIRST_LOG, LAYOUT, Layout
from tallystream.storage.scripts import Script
from tallystream.wire.codec import stated_events, was_decided, was_sequenced
from tallystream.wire.stream_id import parse_id
from tallystream_worker.counting.entry import Entry
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.counting.loop import CountingLoop
from tallystream_worker.process import failpoints
from tallystream_worker.snapshot.database import Database, SnapshotError
from tallystream_worker.snapshot.load import TableLoader
from tallystream_worker.snapshot.schema import FORMAT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import redis

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.snapshot.point_in_time import SnapshotPosition

CONSUMER: Final = "restore"
_READ: Final = 512
_NOBODY: Final = b"0"
"""The mark of a decided entry that no generation has counted yet."""

_MARKER: Final = "restore"
"""Key of the first partition: a restore has begun here, and what is there may be replaced by the next."""

_GRAFT: Final = Script("tallystream_worker.snapshot", "replace_stream")


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


def restore(
    client: redis.Redis,
    database: Database,
    archived: Callable[[int, str, str | None], Iterable[Entry]] | None = None,
    *,
    force: bool = False,
    progress: Callable[[RestoredPart], None] = lambda _: None,
) -> list[RestoredPart]:
    """Bring the counters of a snapshot back, and count what came after it.

    Args:
        client: The server; nothing of ours may be on it, but what an interrupted restore left.
        database: Where the snapshot is.
        archived: What the archive holds of a partition behind an ID, in front of another.
        force: Replace what is there; what is left of the streams is counted.
        progress: Told of each partition that is back.

    Raises:
        SnapshotError: there is no complete snapshot, or it is of another format.
        StreamError: the server is not empty.
    """
    facts = database.facts()
    if not facts:
        hint = f"; there is one of the namespace {database.owner!r}" if database.owner else ""
        raise SnapshotError(f"{database.place} holds no complete snapshot{hint}")
    if facts["format"] != FORMAT or facts["layout"] != str(LAYOUT):
        raise SnapshotError(f"{database.place} is of format {facts['format']}, which this release does not read")
    layout = Layout(int(facts["partitions"]), facts["namespace"], log=int(facts.get("log", FIRST_LOG)))
    marker = layout.keys[0].prefix + _MARKER
    if not force and not client.exists(marker) and (there := _found(client, layout)):
        raise StreamError(
            f"the server is not empty: {there} is there. Restore into an empty one; or, to replace its counters by the "
            "snapshot and count what its streams hold, say --force"
        )
    client.set(marker, "1")
    client.delete(layout.root)
    client.delete(layout.meta)
    rules = read_rules(facts["rules"].encode())
    parts = []
    for partition in range(layout.partitions):
        part = _Partition(client, database, layout, partition, rules).bring_back(archived)
        parts.append(part)
        progress(part)
        failpoints.reach("after-partition")
    fields: dict[Any, Any] = fields_of(layout, facts["epoch"])
    client.hset(layout.meta, mapping=fields | {"rules": facts["rules"], **spread_fields(facts["spread"].split())})
    if layout.log != FIRST_LOG:
        logs = dict(each.split(":") for each in facts["earlier"].split())
        fields |= {"log": layout.log, "newest-log": layout.log}
        client.hset(layout.root, mapping=fields | {f"partitions@{log}": count for log, count in logs.items()})
    client.delete(marker)
    return parts


def _found(client: redis.Redis, layout: Layout) -> str | None:
    names = [layout.root, layout.meta]
    names += [name for keys in layout.keys for name in (keys.stream, keys.ledger, keys.sequences)]
    return next((name for name in names if client.exists(name)), None)


class _Partition:
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

    def bring_back(self, archived: Callable[[int, str, str | None], Iterable[Entry]] | None) -> RestoredPart:
        """Bring the partition back."""
        while True:
            self._wipe()
            load = TableLoader(self._client, self._keys.ledger.removesuffix("ledger"), self._rules)
            position, generation = load.run(self._database, self._partition)
            failpoints.reach("after-load")
            if self._database.position(self._partition) == (position, generation):
                break  # else a worker has written the next one meanwhile: a drill, beside a live system
        survived = bool(self._client.exists(self._keys.stream))
        log = _Log(position, generation, load)
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
            if _GRAFT(self._client, [self._log, self._ledger, self._sequences, *places], [last]):
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
        keep = {name.encode() for name in (self._keys.stream, self._keys.sequences, self._keys.prefix + _MARKER)}
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

    def _append(self, log: _Log, entry: Entry) -> None:
        log.queue.append(log.take(entry))
        if len(log.queue) >= _READ:
            self._send(log)

    def _send(self, log: _Log) -> None:
        with self._client.pipeline(transaction=False) as pipeline:
            for entry in log.queue:
                pipeline.xadd(self._log, dict(entry.fields), id=entry.id)
            pipeline.execute()
        log.queue.clear()

    def _set_up(self, log: _Log) -> None:
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
        consumer = CountingLoop(self._client, self._layout, self._partition, self._rules, fetch)
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


class _Log:
    """What the log adds to a snapshot, entry by entry."""

    def __init__(self, position: SnapshotPosition, generation: int, load: TableLoader) -> None:
        self.position = position
        self.pending = set(position.pending)
        self._generation = generation
        self.producers = dict(load.producers)
        self.queue: list[Entry] = []
        self.entries = 0
        self.handed = 0
        """Entries that had been handed out at the snapshot's moment: some applied, some pending."""
        self.last = ""
        self._delivered, self._generated = parse_id(position.delivered), parse_id(position.generated)
        self._ledger = {name: value for name, value in load.ledger.items() if not name.startswith("entries:")}
        self._gated = self._settled = self._settled_plain = 0
        self._settled_before = load.ledger.get("entries:settled", 0)
        self.missing = self._ledger.get("appended", 0) - sum(
            value for name, value in self._ledger.items() if _is_outcome(name)
        )

    def take(self, entry: Entry) -> Entry:
        """Note an entry; return it as it is to be appended."""
        id_, events = parse_id(entry.id), stated_events(entry.fields)
        gated = was_sequenced(entry.fields)
        counted = was_decided(entry.fields, self._generation) and id_ <= self._generated
        applied = id_ <= self._delivered and entry.id not in self.pending
        self.handed += id_ <= self._delivered
        self.last = entry.id
        fields = dict(entry.fields)
        if was_decided(fields):
            # Its effect is in the snapshot, or it is to be counted like any other; `appended` has it in both cases.
            fields[b"d"] = b"%d" % FIRST if counted else _NOBODY
        if id_ > self._generated and gated:
            self._ledger["appended"] = self._ledger.get("appended", 0) + events
            if b"q" in fields:
                producer = fields[b"p"].decode(errors="replace")
                self.producers[producer] = f"{fields[b'q'].decode(errors='replace')} {entry.id}"
        elif not applied and gated and not counted:
            self.missing -= events
        self._gated += gated
        self._settled += applied
        self._settled_plain += applied and not gated
        self.entries += not applied
        return Entry(entry.id, fields)

    @property
    def gone(self) -> int:
        """Entries that are in the snapshot's counters, and that the log was not found to hold."""
        return max(0, self._settled_before - self._settled)

    def ledger(self) -> dict[str, int]:
        """Return the books: those of the snapshot, what was appended since, and what is missing as trimmed."""
        books = {**self._ledger, "entries:gated": self._gated, "entries:retired": self.gone}
        books |= {"entries:settled": self._settled + self.gone, "entries:plain": self._settled_plain + self.gone}
        if self.missing > 0:
            books["trimmed"] = books.get("trimmed", 0) + self.missing
        return books


def _is_outcome(name: str) -> bool:
    return name in ("counted", "duplicate", "late", "dead", "trimmed", "retracted") or (
        name.startswith("rejected:") and "@" not in name
    )
