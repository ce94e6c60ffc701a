"""Tests a restore: restores the snapshot and the entries after it to a temporary server, and compares every value.

The live values of each partition are read at one moment. The temporary server gets the last snapshot and exactly the
entries that were applied after it up to this moment, so both must be equal, although the workers continue to count.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from tallystream.deployment import Deployment
from tallystream.errors import StreamError
from tallystream.storage.keys import FIRST_RULES
from tallystream.wire.stream_id import parse_id
from tallystream_worker.counting.adopt import adopt_as
from tallystream_worker.counting.entry import Entry
from tallystream_worker.dead_letters.retry import retry
from tallystream_worker.dead_letters.store import RETRIED, letter_of, letters
from tallystream_worker.server.scratch import scratch_server
from tallystream_worker.snapshot.database import SnapshotError
from tallystream_worker.snapshot.dead_letters import decode_letter
from tallystream_worker.snapshot.live_rules import RestoredRules, followed_rules
from tallystream_worker.snapshot.names import bucket_of, key_of, row_of
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.retries import find_retries
from tallystream_worker.snapshot.snapshotter import Snapshotter

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    import redis

    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.snapshot.archived import ArchivedEntries
    from tallystream_worker.snapshot.changed_keys import Group
    from tallystream_worker.snapshot.database import Database
    from tallystream_worker.snapshot.live_rules import LiveRules
    from tallystream_worker.snapshot.partition_restore import RestoredPart
    from tallystream_worker.snapshot.write import Taken

_READ = 512
_SUMS = frozenset({"totals", "upvotes", "windows", "limits"})
_SHOWN = 100
_ANY = ""
"""Stands for any metric in a set of metrics."""


@dataclass(frozen=True)
class DrillDifference:
    """A value that differs after a restore.

    Attributes:
        table: The table of the value.
        key: The primary key of its row, without the partition; for the table `structures`, the name of the structure.
        live: The live value as text, at most 200 characters; `None` if it does not exist.
        restored: The restored value, in the same form; `None` if it does not exist.
    """

    table: str
    key: tuple[str, ...]
    live: str | None
    restored: str | None

    def is_of(self, metrics: Collection[str]) -> bool:
        """Return whether the value is of one of these metrics; always true if `_ANY` is among them.

        Each part of the key between colons is compared. So a value of a subject or actor with such a name counts too.
        """
        return _ANY in metrics or any(word in metrics for part in self.key for word in part.split(":"))


@dataclass(frozen=True)
class Verdict:
    """The result of a drill.

    Attributes:
        compared: Number of live values that were read. It includes those of buckets that may have been removed
            meanwhile, which are not compared.
        differing: Number of values that differ, also of those that exist only live or only after the restore, except
            sums of 0.
        differences: The first hundred of them.
        parts: The results of the restore, in the order of the partitions.
        damaged: The tables of no partition, such as `facts`, in which another program has changed, removed or added
            rows after the snapshot was taken. Those of each partition are in `parts`.
        uncertain: Number of further values that differ and may be right: it is not known by which rules some events of
            their metrics were counted, or what a retry of dead letters has counted.
        unclear: The first hundred of these.
    """

    compared: int
    differing: int
    differences: list[DrillDifference]
    parts: list[RestoredPart]
    damaged: list[str]
    uncertain: int
    unclear: list[DrillDifference]


def drill(
    client: redis.Redis,
    database: Database,
    deployment: Deployment,
    archived: ArchivedEntries | None = None,
) -> Verdict:
    """Restore the snapshot and the entries after it to a temporary server, and compare its values with the live ones.

    Counting continues, and the snapshot is not changed. While the live values of a partition are read, a view of it is
    open: another snapshot of this partition waits for about 5 seconds at most, and then fails with `ViewLost`.

    Args:
        client: The server of the live counters.
        database: The database of the snapshot.
        deployment: The live deployment.
        archived: Reads the archived entries of a partition; `None` for no archive.

    Raises:
        SnapshotError: there is no complete snapshot, it is of other data or has another format, the database cannot be
            used, or entries after the snapshot may have been trimmed and there is no archive.
        ViewLost: the live values of one moment could not be read.
        ScanBroken: a live node failed over or restarted while its keys were listed, three times.
        KeyLost: a live partition has lost a key.
        DamagedValue: a field that describes the live deployment, or a live generation, has a value that tallystream
            never writes.
        StreamError: entries after the snapshot could not be counted on the temporary server.
        ConfigurationError: the database was opened with `is_there`, and its SQLite file does not exist; no worker has
            published the rules yet; or this release cannot read those of the snapshot.
        EmbeddedServerError: the temporary server cannot be started, or has ended.
        CodecError: the record of a dropped dead letter, or the `source` of a dead letter, is damaged.
        redis.RedisError: a server did not answer, or refused a command.

    Any error of `archived` is raised too. The temporary server is removed, also after an error.
    """
    live = Snapshotter(client, database, deployment)
    moments: list[Taken] = []

    def source(partition: int, after: str, _: str | None, /, *, with_gaps: bool = False) -> Iterator[Entry]:
        del with_gaps  # the temporary server has no stream yet, so all entries are read at once
        # Read the live values after the snapshot was loaded, because the worker may have replaced the snapshot.
        moment = live.take(partition, None)
        moments.append(moment)
        for entry in _behind(client, deployment.layout.keys[partition], database, partition, after, archived):
            if parse_id(entry.id) > parse_id(moment.position.generated):
                return
            if moment.position.includes(entry, moment.generation):
                yield entry

    with scratch_server("tally-drill-") as other:
        followed = followed_rules(client, deployment.layout)
        result = restore(other, database, source, followed=followed)
        copy = Deployment.create_or_load(other, namespace=deployment.layout.namespace)
        doubts = [
            _catch_up(other, copy, partition, moment, database.ledger(partition).get(RETRIED), followed)
            | _doubts(database, deployment, partition, followed)
            for partition, moment in enumerate(moments)
        ]
        restored = Snapshotter(other, database, copy)
        found = [restored.take(partition, None) for partition in range(deployment.layout.partitions)]
        differences: list[DrillDifference] = []
        unclear: list[DrillDifference] = []
        for mine, theirs, doubtful in zip(moments, found, doubts, strict=True):
            for difference in _compare(other, mine, theirs):
                (unclear if difference.is_of(doubtful) else differences).append(difference)
    compared = sum(len(values) for moment in moments for values in moment.values.values())
    return Verdict(
        compared,
        len(differences),
        differences[:_SHOWN],
        result.parts,
        result.damaged,
        len(unclear),
        unclear[:_SHOWN],
    )


def _doubts(database: Database, deployment: Deployment, partition: int, followed: LiveRules | None) -> frozenset[str]:
    """Return the metrics of which it is not known by which rules all their events after the snapshot were counted.

    `_ANY` alone if these may be any metrics. Empty if `followed` is `None` or is not kept (see `kept_rules`), or if the
    partition has no snapshot.
    """
    found = database.position(partition)
    if followed is None or found is None:
        return frozenset()
    rules = RestoredRules(database.facts(), deployment.layout, followed, [])
    course = rules.course(partition, found[0], [found[1]], database.ledger(partition).get(FIRST_RULES))
    doubtful = rules.doubtful(partition, course)
    return frozenset({_ANY}) if doubtful is None else doubtful


def _catch_up(
    client: redis.Redis, copy: Deployment, partition: int, live: Taken, retried: int | None, followed: LiveRules | None
) -> frozenset[str]:
    """Do in a restored partition what was done in the live one after the snapshot, and is in no entry of the stream.

    These are retries of dead letters, and records of workers that rules count although no event was counted by them.

    Args:
        client: The temporary server.
        copy: Its deployment.
        partition: The number of the partition.
        live: The values of the live partition.
        retried: The time of the last retry before the snapshot, see `RETRIED`; `None` if there was none.
        followed: The rules of the live server.

    Returns:
        The metrics for which it is not known what the retries have counted, or whose dead letters could not be retried.
    """
    keys = copy.layout.keys[partition]
    doubtful: frozenset[str] = frozenset()
    if live.ledger.get(RETRIED) != retried:
        found = find_retries(
            letters(client, copy.layout, partition),
            (letter_of(partition, id_, decode_letter(value)) for id_, value in live.dead.items()),
            _stored(live, keys.dropped.removeprefix(keys.prefix)).values(),
            live.ledger,
            followed,
            has_resets=keys.resets.removeprefix(keys.counters) in live.alerts,
        )
        doubtful = found.doubtful
        for letter in found.letters:
            try:
                retry(client, copy.layout, copy.rules, letter, copy.revision)
            except StreamError:  # a subject was reset, or a period removed
                doubtful |= letter.metrics
    adopt_as(client, keys, copy.rules, _stored(live, keys.forgotten.removeprefix(keys.counters)))
    return doubtful


def _stored(taken: Taken, name: str) -> dict[str, str]:
    """Return the fields of a hash that a snapshot has in the table `alerts`; an empty dict if the hash did not exist.

    `taken` has the values of a partition, and `name` is the key of the hash as the table has it.
    """
    text, _ = taken.alerts.get(name, ("{}", 0))
    return msgspec.json.decode(text, type=dict[str, str])


def _behind(
    client: redis.Redis,
    keys: PartitionKeys,
    database: Database,
    partition: int,
    after: str,
    archived: ArchivedEntries | None,
) -> Iterator[Entry]:
    """Yield the entries of a partition after the ID `after`, at which a snapshot ends.

    If the stream may lack some of them, because entries were trimmed, those before its first one come from the archive.

    Raises:
        SnapshotError: the stream may lack some of the entries, and `archived` is `None`; or the database cannot be
            used.
        KeyLost: the partition has lost its stream.
        redis.RedisError: the server did not answer, or refused a command.

    Any error of `archived` is raised too.
    """
    found = database.position(partition)
    if found is not None and not found[0].is_reached(client, keys):
        if archived is None:
            raise SnapshotError(
                f"{keys.stream}: entries after the snapshot were trimmed, so they cannot be counted: take another "
                "snapshot, or name an archive (--archive URL)"
            )
        first: Any = client.xrange(keys.stream, count=1)
        for entry in archived(partition, after, first[0][0].decode() if first else None):
            yield entry
            after = entry.id
    while True:
        page: Any = client.xrange(keys.stream, f"({after}", "+", count=_READ)
        for id_, fields in page:
            after = id_.decode()
            yield Entry(after, fields)
        if len(page) < _READ:
            return


def _compare(client: redis.Redis, live: Taken, restored: Taken) -> Iterator[DrillDifference]:
    both: dict[Group, set[str]] = defaultdict(set)
    for taken in (live, restored):
        for group, values in taken.values.items():
            both[group].update(values)
    for group, items in both.items():
        bucket = bucket_of(group)
        kept = max(each.expires.get(bucket or "", 0) for each in (live, restored))
        if 0 < kept <= max(live.position.taken, restored.position.taken):
            continue  # the bucket may have been removed between the two reads
        mine, theirs = live.values.get(group, {}), restored.values.get(group, {})
        for item in items:
            value, other = mine.get(item), theirs.get(item)
            if value != other and not _says_the_same(client, group[0], value, other):
                table = key_of(group) if group == ("structures",) else group[0]
                yield DrillDifference(table or group[0], row_of(group, item), _text(value), _text(other))


def _says_the_same(client: redis.Redis, kind: str, one: bytes | None, other: bytes | None) -> bool:
    if kind == "uniques":
        return _same_set(client, one, other)
    # A sum that returned to 0 over several batches exists with the value 0; over one batch, it is not written at all.
    return kind in _SUMS and int(one or 0) == int(other or 0)


def _same_set(client: redis.Redis, one: bytes | None, other: bytes | None) -> bool:
    """Return whether two HyperLogLogs and their union have equal counts, by temporary keys in the server of `client`.

    Their bytes cannot be compared, because they depend on the order of the events. `None` is no HyperLogLog, so the
    result is then `False`.
    """
    if one is None or other is None:
        return False
    names = ["{drill}:one", "{drill}:other"]
    client.mset(dict(zip(names, (one, other), strict=True)))
    counts = {client.pfcount(names[0]), client.pfcount(names[1]), client.pfcount(*names)}
    client.delete(*names)
    return len(counts) == 1


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")[:200]
