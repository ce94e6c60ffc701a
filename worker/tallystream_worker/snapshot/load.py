"""Loads the rows of a partition's snapshot into Redis: values, leaderboards, alerts, and until when keys are kept."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from tallystream.client.server_time import server_time
from tallystream.rules.parts import PARTS, board_length, counted_board_length
from tallystream.storage.keys import PartitionKeys
from tallystream_worker.snapshot import alerts, schema
from tallystream_worker.snapshot.database import SnapshotError
from tallystream_worker.snapshot.digests import Digest, differing_digests
from tallystream_worker.snapshot.names import HASHES, bucket_of, item_of, key_of

if TYPE_CHECKING:
    import redis

    from tallystream_worker.snapshot.changed_keys import Group
    from tallystream_worker.snapshot.database import Database
    from tallystream_worker.snapshot.load_rules import LoadRules
    from tallystream_worker.snapshot.point_in_time import SnapshotPosition
    from tallystream_worker.snapshot.restore_lock import Fence

_DROPPED: Final = PartitionKeys("").dropped
_FIELDS: Final = 1000
_COMMANDS: Final = 500


class TableLoader:
    """Loads the snapshot of one partition into Redis, by one call of `run`; parts of it are only kept as attributes.

    Args:
        client: The client of the server, which must have no counters of this partition.
        counters: The prefix of the keys to write.
        rules: The rules of the counters.
        fence: Runs the writes; `None` if no other process writes to the server.

    Attributes:
        rows: Number of rows of counters that were read.
        ledger: The ledger of the snapshot, by field; not written to Redis.
        producers: By producer, `<sequence> <stream ID>` of its last entry, and the horizons by name (see `HORIZONS`);
            not written to Redis.
        expires: By bucket, `expires` in the snapshot: the millisecond since 1970 until which its keys were needed; 0
            for forever. Not written to Redis.
        dead: The dead letters, by ID in the dead stream, as `schema.dead` stores them; not written to Redis.
        dropped: The records of dropped dead letters, by field; they are written to Redis.
        damaged: The tables in which another program has changed, removed or added rows of the partition, sorted; also
            those of another snapshot that was written meanwhile.
    """

    def __init__(self, client: redis.Redis, counters: str, rules: LoadRules, fence: Fence | None = None) -> None:
        self._client = client
        self._fence = fence
        self._commands: list[tuple[Any, ...]] = []
        self._counters = counters
        self._rules = rules
        self.expires: dict[str, int] = {}
        self._now = server_time(client)
        self._parts: dict[str, str] = {}
        self._structures: set[str] = set()
        self._boards: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self.rows = 0
        self.ledger: dict[str, int] = {}
        self.producers: dict[str, str] = {}
        self.dead: dict[str, bytes] = {}
        self.dropped: dict[str, str] = {}
        self.damaged: list[str] = []

    def run(self, database: Database, partition: int) -> tuple[SnapshotPosition, int]:
        """Write the snapshot of a partition to Redis, and set the attributes; return its position and generation.

        The ledger, the producers, the dead letters and `expires` are not written. Alert states that had expired when
        the object was made are left out. Position and generation are read before the rows: if `Database.position`
        returns others afterwards, another snapshot was written meanwhile. After an error, some keys may be written.

        Raises:
            SnapshotError: there is no snapshot of the partition, or the database cannot be used.
            ConfigurationError: the database was opened with `is_there`, and its SQLite file does not exist.
            RestoreOvertaken: another restore has taken over.
            redis.RedisError: the server does not answer, or refuses a command.
        """
        found = database.position(partition)
        if found is None:
            raise SnapshotError(f"{database.place} contains no snapshot of partition {partition}")
        stored = database.digests(partition)
        digests: dict[str, Digest] = defaultdict(Digest)
        self._parts = {
            name.removeprefix(PARTS): parts
            for name, parts in database.forgotten(partition).items()
            if name.startswith(PARTS)
        }
        for bucket in database.buckets(partition):
            self.expires[bucket.name] = bucket.expires
        for table, rows in database.read(partition):
            digests[table.name].add(map(tuple, rows))
            if table is schema.ledger:
                self.ledger.update((row.field, row.value) for row in rows)
            elif table is schema.producers:
                self.producers.update((row.producer, row.value) for row in rows)
            elif table is schema.structures:
                for row in rows:
                    self._structure(row.name, row.value)
            elif table is schema.alerts:
                for row in rows:
                    self._alert(row)
            elif table is schema.dead:
                self.dead.update((row.id, row.value) for row in rows)
            elif table.name in schema.COUNTERS:
                self._counted(table.name, rows)
                self.rows += len(rows)
        self._rank()
        self._send()
        self.damaged = differing_digests(stored, digests)
        return found

    def _counted(self, table: str, rows: list[Any]) -> None:
        groups: dict[Group, list[tuple[str, Any]]] = defaultdict(list)
        width = sum(column.name != "partition" for column in schema.COUNTERS[table].primary_key)
        for row in rows:
            group, item = item_of(table, tuple(row[:width]))
            groups[group].append((item, row.value))
        for group, items in groups.items():
            self._board(group, items)
            start = self._counters + key_of(group)
            for first in range(0, len(items), _FIELDS):
                part = items[first : first + _FIELDS]
                if table in HASHES:
                    self._queue("HSET", start, *(each for pair in part for each in pair))
                else:
                    self._queue("MSET", *(each for item, value in part for each in (start + item, value)))
            if group[0] in ("windows", "votes"):
                self._label(group)
            bucket = bucket_of(group)
            if bucket is not None:
                key = key_of(group)
                self._keep(bucket, [key] if table in HASHES else [key + item for item, _ in items])

    def _keep(self, bucket: str, keys: list[str]) -> None:
        """Queue registering until when the keys of a bucket are kept, so that the scripts remove them after that.

        The rules decide how long that is, and not `expires`. Do nothing if the keys are kept forever, or if the label
        of the bucket names no period.
        """
        if (found := self._rules.removal(bucket)) is None:
            return
        end, until = found
        for first in range(0, len(keys), _FIELDS):
            members = (f"{end} {key}" for key in keys[first : first + _FIELDS])
            self._queue("ZADD", f"{self._counters}periods", *(part for name in members for part in (until, name)))

    def _label(self, group: Group) -> None:
        """Queue adding the label of a group to those of its metric, so that a reset finds its bucket or period.

        The group must be of `windows` or `votes`.
        """
        kind, metric, label = group[1:4] if group[0] == "windows" else ("once", *group[1:3])
        self._queue("SADD", f"{self._counters}labels:{metric}", f"{kind}:{label}")

    def _board(self, group: Group, items: list[tuple[str, Any]]) -> None:
        """Collect the values of a group for its leaderboard, if the partition has one; drop the lowest of a long one.

        A group with a leaderboard is the totals of a metric, or one bucket of a window. A leaderboard is long if it has
        over four times its final length. The totals are skipped if the snapshot stores their leaderboard as a
        structure.
        """
        if group[0] not in ("totals", "windows"):
            return
        metric = group[1] if group[0] == "totals" else group[2]
        cap = self._board_length(metric)
        if not cap or (group[0] == "totals" and self._rules.stores_board(metric)):
            return
        key = f"top:{metric}" if group[0] == "totals" else "top:" + key_of(group)
        board = self._boards[key]
        board += [(value, item) for item, value in items]
        if len(board) > 4 * cap:
            board.sort(key=_by_rank, reverse=True)
            del board[cap:]

    def _board_length(self, metric: str) -> int:
        """Return how many subjects a leaderboard of a metric has at most; 0 if the partition has no leaderboards of it.

        The parts by which the metric was counted last decide this. If the snapshot lacks them, the rules that the
        partition followed do.
        """
        if (parts := self._parts.get(metric)) is not None:
            return counted_board_length(parts)
        rule = self._rules.followed.metric.get(metric)
        return 0 if rule is None else board_length(rule.top)

    def _rank(self) -> None:
        for key, board in self._boards.items():
            if key in self._structures:
                continue
            cap = self._board_length(_metric_of(key))
            board.sort(key=_by_rank, reverse=True)
            name = self._counters + key
            self._queue("ZADD", name, *(part for value, item in board[:cap] for part in (value, item)))

    def _structure(self, name: str, value: bytes | None) -> None:
        if value is None:
            return
        key = self._counters + name
        if name.startswith("top:"):
            self._structures.add(name)
            if places := json.loads(value):
                self._queue("ZADD", key, *(part for subject, score in places for part in (score, subject)))
        else:
            self._queue("SET", key, value)
            if name.startswith("seen:"):
                self._keep(name, [name])

    def _alert(self, row: Any) -> None:
        if row.name == _DROPPED:
            self.dropped = json.loads(row.value)
        if not 0 < row.expires <= self._now:
            for command in alerts.commands(self._counters, row.name, row.value, row.expires):
                self._queue(*command)

    def _queue(self, *command: Any) -> None:
        self._commands.append(command)
        if len(self._commands) >= _COMMANDS:
            self._send()

    def _send(self) -> None:
        if self._fence is not None:
            self._fence.run(self._commands)
        else:
            with self._client.pipeline(transaction=False) as pipeline:
                for command in self._commands:
                    pipeline.execute_command(*command)
                pipeline.execute()
        self._commands.clear()


def _by_rank(place: tuple[int, str]) -> tuple[int, bytes]:
    # The order in which Redis keeps equal scores.
    return place[0], place[1].encode()


def _metric_of(board: str) -> str:
    parts = board.split(":")
    return parts[1] if len(parts) == 2 else parts[2]  # noqa: PLR2004  # top:<metric>, or top:<window>:<metric>:<label>
