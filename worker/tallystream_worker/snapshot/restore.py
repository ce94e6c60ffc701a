"""Restores a deployment from a snapshot: loads its counters, then counts the entries after it.

Each partition gets the rows of the snapshot; then its stream, built from the archive and the entries that are left,
with the consumer group at the snapshot's position; then the ordinary loop counts the pending and unread entries.
Until all partitions are restored, `tally:meta` has the field `restoring` instead of a description. So every process
that reads it gets an error with this reason; the scripts that count refuse because no generation is live. Producers
that run append as before. If the restore is interrupted, this stays so until a repeated restore, which begins from the
start.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from tallystream.client.server_time import server_time
from tallystream.deployment import Deployment, durability_of
from tallystream.errors import ConfigurationError, StreamError
from tallystream.reading.deployment_cache import DEPLOYMENT_AGE
from tallystream.rules.metrics import publish
from tallystream.rules.metrics import read as read_rules
from tallystream.storage.deployment_hash import (
    DURABILITY,
    RESTORING,
    by_number,
    fields_of,
    number,
    restoring_number,
    spread_fields,
)
from tallystream.storage.keys import BEGUN, CLOSED, CLOSING, FIRST, FIRST_TOPIC, HORIZONS, LAYOUT, LEFT, TURN, Layout
from tallystream.storage.scripts import Script
from tallystream.wire.stream_id import parse_id
from tallystream_worker.process import failpoints
from tallystream_worker.process.barrier import step
from tallystream_worker.process.publisher import publisher
from tallystream_worker.snapshot.damage import explaining_damage
from tallystream_worker.snapshot.database import Database, SnapshotError
from tallystream_worker.snapshot.ingested_files import restore_ingested_files
from tallystream_worker.snapshot.live_rules import (
    LIVE_RULES,
    LiveRules,
    RestoredRules,
    encode_live_rules,
    find_live_rules,
    with_earlier,
)
from tallystream_worker.snapshot.lost_changes import regain
from tallystream_worker.snapshot.other_topics import (
    RESTORED_TOPIC,
    describe_restored,
    former_epoch,
    present_topic,
    refuse_loss,
)
from tallystream_worker.snapshot.partition_restore import PartitionRestore, RestoredPart
from tallystream_worker.snapshot.restore_lock import RESTORED_BY, Fence, RestoreLock
from tallystream_worker.snapshot.retractions import (
    RETRACTED,
    decode_retractions,
    encode_retractions,
    missing_retractions,
)
from tallystream_worker.snapshot.rule_records import NEWEST_TOPIC, NUMBERS, restore_rule_records
from tallystream_worker.snapshot.schema import FORMAT
from tallystream_worker.snapshot.snapshotter import layout_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import redis

    from tallystream.client.durability import Durability
    from tallystream.rules.metrics import Rules
    from tallystream.rules.retraction import Retraction
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.snapshot.archived import ArchivedEntries


_PAUSE: Final = DEPLOYMENT_AGE + 0.2
"""Seconds after which every reader has noticed that a restore has begun."""

_LARGEST_ID: Final = f"{2**64 - 1}-{2**64 - 1}"
"""The largest stream ID: no record of a producer names a later entry."""

_BEGIN: Final = Script("tallystream_worker.snapshot", "begin_restore")
_CLOSE_OTHER: Final = Script("tallystream_worker.snapshot", "close_other")
_END: Final = Script("tallystream_worker.snapshot", "end_restore")


@dataclass(frozen=True)
class Restored:
    """The result of a restore.

    Attributes:
        parts: The result of each partition.
        damaged: The tables of no partition, such as `facts`, in which another program has changed, removed or added
            rows after the snapshot was taken. They are used unchanged.
        lacking: The retractions that were made after the snapshot: until a rebuild, the counters have their events.
        rules: The rules that are live now: those that were live before (with the `regained` changes), or those of the
            snapshot. See `restore` for the retractions in them.
        kept: Whether they are those that were live before; false if changes were regained.
        of_snapshot: The rules of the snapshot, with the same retractions.
        former: The rules that the server had before; `None` if it had none, or they cannot be read. If changes were
            `regained`, the rules that `regain` has returned. With the argument `followed`, the rules in it.
        regained: The numbers of the changes of the rules that the server had lost, and that are recorded again: see
            `regain`.
        is_regained_live: Whether the rules of the last of these are live again; `False` if none were lost.
    """

    parts: list[RestoredPart]
    damaged: list[str]
    lacking: list[Retraction]
    rules: Rules
    kept: bool
    of_snapshot: Rules
    former: Rules | None
    regained: list[int]
    is_regained_live: bool


def restore(  # noqa: PLR0913  # every source is handed in, and named
    client: redis.Redis,
    database: Database,
    archived: ArchivedEntries | None = None,
    *,
    force: bool = False,
    accept_loss: bool = False,
    later: Callable[[int], Mapping[int, int]] = lambda _: {},
    topics: Sequence[int] = (),
    retracted: Sequence[Retraction] = (),
    files: Mapping[str, int] = MappingProxyType({}),
    changes: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    followed: LiveRules | None = None,
    durability: Durability = "memory",
    progress: Callable[[RestoredPart], None] = lambda _: None,
    waiting: Callable[[str], None] = lambda _: None,
) -> Restored:
    """Restore the counters of a snapshot, and count the entries after it; return what was restored.

    The rules that were live before stay live, and each entry after the snapshot is counted by the rules that counted it
    before, as far as this is known. If the server has lost changes of the rules that the snapshot or the archive has,
    these are made again: see `regain`. If the server has no rules that can stay (see `kept_rules`), those of the
    snapshot become live, and count the entries.
    The live rules also have the retractions that were made after the snapshot: those of the server's rules, if
    these are of the same data and topic; otherwise all that the server, the database, the caller or an interrupted
    restore knows. Until a rebuild, the counters have the events of these.

    The topic of the snapshot becomes the live one. Other topics that count events are closed, and an unfinished
    repartition is given up; their keys stay until `rebuild --drop`.

    Until it ends, and after an interruption until it is repeated, workers do not count and readers get an error;
    producers that run append as before.

    Args:
        client: The server to restore to. It must have no keys of the deployment, except those of an interrupted
            restore, unless `force` is set.
        database: The database of the snapshot.
        archived: Reads the archived entries of a partition; `None` for no archive. With `force`, they are read twice:
            also before anything is changed.
        force: Whether to replace the counters that exist on the server; the entries left in its streams are counted.
        accept_loss: Whether to restore even if events of another topic are left out: see `refuse_loss`.
        later: Called with the number of a topic; returns, by number of each later topic in the archive, its events
            that were not copied from the topic before. It is called at most once: not with `accept_loss`, and not if
            an interrupted restore of the same topic is repeated.
        topics: The numbers of all topics after the first one that have a folder in the archive: no topic gets such a
            number again.
        retracted: Retractions that another source, such as the archive, knows.
        files: The identities of ingested files that the archive knows: see `Store.files_ingested`.
        changes: The changes of the rules that the archive has, by ID: see `Store.rules`.
        followed: The rules to keep as if they had been live on the server before; `None` for those that were. With
            these rules, no lost change is made again, and `changes` is ignored.
        durability: The durability that the restored counters must have before the restore ends, if the root hash states
            none.
        waiting: Called with a text about the process of another restore if this one waits for its lock: it waits until
            that lock expires, about 10 seconds at most, if the process does not renew it.
        progress: Called with the result of each partition after it is restored. Readers still get an error then, until
            all partitions are restored.

    Raises:
        SnapshotError: there is no complete snapshot, it has another format, the database cannot be used, or another
            program has changed its rows so that they cannot be used.
        StreamError: the server is not empty, and `force` is not set; or events of another topic would be left out, and
            `accept_loss` is not set. Nothing was changed then. Also if another client changes keys of the deployment
            while the entries are counted (`KeyLost`, `ConsumerGroupMissing`, `GenerationSwitched`).
        RestoreOvertaken: another restore is running, and nothing was changed; or another one has taken over, and
            nothing that it writes was changed.
        StreamError: a node failed over, or a slot moved to another one, while counters were restored.
        DamagedValue: a value on the server has a form that tallystream never writes.
        CodecError: the record of a dropped dead letter, or the `source` of a dead letter, is damaged.
        Unconfirmed: the restore, or its last step, was not confirmed in time.
        ConfigurationError: the database was opened with `is_there`, and its SQLite file does not exist; or this release
            cannot read the rules of the snapshot, those of a change that it needs, or those that an interrupted restore
            has noted.
        redis.RedisError: the server did not answer, or refused a command; repeat the restore.

    Any error of `archived` and `later` is raised too. With `force`, the archive is first read while nothing is changed;
    without it, only while partitions are restored. An error after the description of the deployment was replaced leaves
    the restore unfinished: repeat it.
    """
    facts, damaged = _facts(database), database.damaged()
    with explaining_damage(database):
        layout = layout_of(facts)
    with explaining_damage(database, layout.partitions), RestoreLock(client, layout, waiting) as lock:
        root: dict[bytes, bytes] = client.execute_command("HGETALL", layout.root)
        lock.note(root)
        if not force and RESTORING.encode() not in root and (there := _found(client, layout)):
            raise StreamError(
                f"the server is not empty: {there} exists. Restore to an empty server; or, to replace its counters by "
                "the snapshot and count the entries left in its streams, use --force"
            )
        if not accept_loss:
            refuse_loss(client, database, layout, root, later)
        partitions = [PartitionRestore(client, database, layout, n, lock) for n in range(layout.partitions)]
        _check_archive(partitions, archived if force else None)
        # Reading the archive may take long, and the rules may change meanwhile: so read them after it.
        live, regained, is_live = followed, list[int](), False
        noted = [*retracted, *decode_retractions(root.get(RESTORING.encode(), b"[]"))]

        def noted_without(present: Sequence[Retraction]) -> Sequence[Retraction]:
            sources = [decode_retractions(facts[RETRACTED]), noted]
            return missing_retractions(present, sources, layout, _latest(client, layout))

        if live is None:
            taken = min(each.taken for each in partitions)
            found = with_earlier(find_live_rules(client, layout, root), lambda: changes)
            generation = max(each.generation for each in partitions)
            live, regained, is_live = regain(client, layout, found, facts, changes, taken, generation, noted_without)
        lacking = _lacking(
            client, layout, facts, read_rules(facts["rules"].encode()), noted, live if regained else None
        )
        rules, former = RestoredRules(facts, layout, live, lacking), _rules_of(live)
        restored = Deployment(layout, durability=durability_of(root) if DURABILITY.encode() in root else durability)
        with step(client, restored, "the partitions are restored"):
            kept = _begin(client, layout, root, facts, rules.live, live, lock, topics)
            for each in partitions:
                each.close()
            if layout.topic != FIRST_TOPIC:
                partitions[0].fence("DEL", layout.meta)
            if root:
                time.sleep(_PAUSE)  # until then, readers may use the deployment that they have read
            parts = []
            for each in partitions:
                part = each.run(archived, rules)
                parts.append(part)
                progress(part)
                failpoints.reach("after-partition")
            lock.renew()
        with step(client, restored, "the restore has ended", "run the command again, with --force"):
            _end(client, layout, facts, rules, kept, partitions, lock, files)
    kept_live = rules.are_kept and not regained
    is_live = is_live and rules.are_kept
    return Restored(parts, damaged, lacking, rules.live, kept_live, rules.of_snapshot, former, regained, is_live)


def _rules_of(live: LiveRules | None) -> Rules | None:
    """Return the rules of a server; `None` for `None`, and if this release cannot read them."""
    with suppress(ConfigurationError):
        return None if live is None else live.rules
    return None


def _begin(
    client: redis.Redis,
    layout: Layout,
    root: Mapping[bytes, bytes],
    facts: Mapping[str, str],
    rules: Rules,
    live: LiveRules | None,
    lock: RestoreLock,
    archived: Sequence[int],
) -> dict[str, Any]:
    """Replace the description of the deployment, and close other topics; return what must outlast the restore.

    The result has fields of the root hash, which are also written to it. The topics to close are those of
    `_others`; the partitions of the topic to restore are not closed here.

    Args:
        client: The server to restore to.
        layout: The layout of the topic to restore.
        root: The fields of the server's root hash; empty if there is none.
        facts: The facts of the snapshot.
        rules: The rules that will be live after the restore.
        live: The rules that were live before it; `None` if there were none.
        lock: The lock of the restore; its `note_begun` is called with the number of the closing.
        archived: The numbers of the topics in the archive.

    Raises:
        DamagedValue: a number in the root hash or in the hash of the live topic is not a whole number.
        RestoreOvertaken: another restore has taken over.
        redis.RedisError: the server did not answer, or refused a command.
    """
    topic, _ = present_topic(client, layout.namespace, root)
    topics = [int(facts[NEWEST_TOPIC]), *archived, layout.topic, topic]
    kept: dict[str, Any] = {
        NEWEST_TOPIC: max(*topics, number(root, NEWEST_TOPIC.encode()) or 0),
        **_numbers(client, layout, root, facts, live),
        TURN: _turn(client, layout, root) + 1,
    }
    if (durability := root.get(DURABILITY.encode())) is not None:
        kept[DURABILITY] = durability
    if left := _left(client, layout, root):
        kept[LEFT] = " ".join(f"{each}:{count}" for each, count in sorted(left.items()))
    if b"kept" in root and topic == layout.topic:
        kept["kept"] = root[b"kept"]  # workers still copy what is appended to the topic before
        kept |= {f"partitions@{earlier}": count for earlier, count in by_number(root, b"partitions@").items()}
    closing = _others(client, layout, root, facts["epoch"], _earlier(facts))
    restored = describe_restored(layout, root)
    begun = {
        RESTORING: encode_retractions(rules.retracted),
        RESTORED_TOPIC: restored,
        RESTORED_BY: lock.token,
        **({} if live is None else {LIVE_RULES: encode_live_rules(live)}),
        **kept,
    }
    highest = _highest_closing(client, [*layout.keys, *(keys for keys, _ in closing)])
    arguments = [lock.value, highest, *(part for pair in begun.items() for part in pair)]
    _, number_ = lock.run(_BEGIN, [layout.root, lock.key], arguments)
    lock.note_begun(number_.decode())
    for keys, fields in closing:
        arguments = [lock.closing, *(part for pair in fields.items() for part in pair)]
        (answer,) = _CLOSE_OTHER(client, [keys.sequences, keys.live], arguments)
        if answer == b"overtaken":
            raise lock.overtaken()
    return kept


def _end(
    client: redis.Redis,
    layout: Layout,
    facts: Mapping[str, str],
    rules: RestoredRules,
    kept: Mapping[str, Any],
    partitions: Sequence[PartitionRestore],
    lock: RestoreLock,
    files: Mapping[str, int],
) -> None:
    """Write the records of a restored topic, open its partitions, and end the restore.

    The call that ends it also writes the description of the deployment to the root hash. If the topic is not the first
    one, its own description is written before its partitions are opened.

    Args:
        client: The server.
        layout: The layout of the topic.
        facts: The facts of the snapshot.
        rules: The rules of the restore.
        kept: What `_begin` returned.
        partitions: The restored partitions.
        lock: The lock of the restore.
        files: The identities of ingested files that the archive knows.

    Raises:
        RestoreOvertaken: another restore has taken over.
        redis.RedisError: the server did not answer, or refused a command; some partitions may be open.
    """
    lock.renew()
    fences = [each.fence for each in partitions]
    at_root = Fence(client, lock, lock.key, lock.value)
    newest, highest = (int(kept[name]) for name in NUMBERS)
    newest = max(newest, *(each.newest for each in partitions))
    number = rules.number(highest)
    fields: dict[Any, Any] = fields_of(layout, facts["epoch"])
    published = publish(rules.live).decode()
    change = {
        "number": str(number), "by": publisher(), "generation": str(FIRST), "rules": published,
        "epoch": facts["epoch"], "partitions": facts["partitions"],
    }  # fmt: skip
    records = at_root if layout.topic == FIRST_TOPIC else fences[0]
    restore_rule_records(records, layout, rules.changes(), change)
    restore_ingested_files(fences[0], layout, facts, files)
    described = fields | {"rules": published, "revision": number}
    described |= {NUMBERS[0]: newest, NUMBERS[1]: max(highest, number), TURN: kept[TURN]}
    described |= spread_fields(rules.spread)
    if layout.topic != FIRST_TOPIC:
        fences[0]("HSET", layout.meta, *(part for pair in described.items() for part in pair))
        before = {f"partitions@{topic}": count for topic, count in _earlier(facts).items()}
        described = fields | {"log": layout.topic, **before}
    for each in partitions:
        each.open(number)
    lock.renew()
    pairs = (part for pair in described.items() for part in pair)
    arguments = [lock.value, RESTORING, RESTORED_TOPIC, RESTORED_BY, LIVE_RULES, *pairs]
    lock.run(_END, [layout.root, lock.key], arguments)


def _earlier(facts: Mapping[str, str]) -> dict[int, int]:
    """Return, by number of each topic before that of the snapshot, its number of partitions."""
    return {int(topic): int(count) for topic, _, count in (e.partition(":") for e in facts.get("earlier", "").split())}


def _facts(database: Database) -> dict[str, str]:
    """Return the facts of the snapshot; they are never empty.

    Raises:
        SnapshotError: there is no complete snapshot, this release cannot read it (see `ensure_readable`), or the
            database cannot be used.
        ConfigurationError: the database was opened with `is_there`, and its SQLite file does not exist.
    """
    facts = database.facts()
    if not facts:
        hint = f"; there is one of the namespace {database.owner!r}" if database.owner else ""
        raise SnapshotError(f"{database.place} contains no complete snapshot{hint}")
    ensure_readable(database, facts)
    return facts


def ensure_readable(database: Database, facts: Mapping[str, str]) -> None:
    """Raise an error unless the facts of a snapshot state the format and the key layout that this release reads.

    Args:
        database: The database of the snapshot, named in the error; it is not read.
        facts: The facts of the snapshot.

    Raises:
        SnapshotError: the snapshot has another format or another key layout, or the facts do not state them.
    """
    form, layout = facts.get("format", "unknown"), facts.get("layout", "unknown")
    if (form, layout) != (FORMAT, str(LAYOUT)):
        raise SnapshotError(
            f"{database.place} has snapshot format {form} and key layout {layout}, but this release reads {FORMAT} and "
            f"{LAYOUT}: restore it with the release that took it"
        )


def _check_archive(partitions: Sequence[PartitionRestore], archived: ArchivedEntries | None) -> None:
    """Read the archived entries that a restore will need, so that an error of the archive is raised before any change.

    If `archived` is `None`, read nothing. The errors are those of `PartitionRestore.check_archive`.
    """
    for each in partitions:
        each.check_archive(archived)


def _lacking(
    client: redis.Redis,
    layout: Layout,
    facts: Mapping[str, str],
    rules: Rules,
    retracted: Sequence[Retraction],
    regained: LiveRules | None,
) -> list[Retraction]:
    """Return the known retractions that the counters of a snapshot do not have, as retractions of its topic.

    Those of the facts and `retracted` are known. If the live rules of the server are of the same data and topic, only
    theirs are known. If they are of the same data and another topic, theirs are also known, and so are those of the
    rules that the server has stored for the topic of `layout`. If this release cannot read one of the two, both are
    left out; so they are if there is no description, for example after an interrupted restore.

    Args:
        client: The server to restore to.
        layout: The layout of the topic to restore.
        facts: The facts of the snapshot.
        rules: The rules of the snapshot; their retractions are those that the counters have.
        retracted: Retractions from other sources: the caller, and an interrupted restore.
        regained: The rules with the changes that the server had lost. If they are of the topic of `layout`, only their
            retractions are known; if they are of another topic, they are ignored. `None` if it has lost no change.

    Raises:
        redis.RedisError: the server did not answer, or refused a command.
    """
    if regained is not None and regained.topic == layout.topic:
        return missing_retractions(rules.retracted, [regained.rules.retracted], layout, _latest(client, layout))
    sources = [decode_retractions(facts[RETRACTED]), retracted]
    # This release may be unable to read what the server has; or a restore was interrupted, and `retracted` is complete.
    with suppress(ConfigurationError, StreamError):
        found = Deployment.find(client, facts["namespace"])
        if found.epoch == facts["epoch"] and found.declared is not None:
            if found.layout.topic == layout.topic:
                sources = [found.declared.retracted]  # the latest rules: a retraction may have been undone
            else:
                sources = [*_of_a_kept_topic(client, layout, facts), *sources, found.declared.retracted]
    return missing_retractions(rules.retracted, sources, layout, _latest(client, layout))


def _of_a_kept_topic(client: redis.Redis, layout: Layout, facts: Mapping[str, str]) -> Iterator[Sequence[Retraction]]:
    """Yield the retractions of the rules that the server has stored for the topic of `layout`, which is no longer live.

    They are one sequence; there is none if the server has no such rules, or if they are of other data than the
    snapshot (another epoch).

    Args:
        client: The server to restore to.
        layout: The layout of the topic to restore.
        facts: The facts of the snapshot, of which `epoch` is used.

    Raises:
        ConfigurationError: this release cannot read the rules.
        redis.RedisError: the server did not answer, or refused a command.
    """
    found: Any = client.hmget(layout.meta, ["epoch", "rules"])
    epoch, rules = found
    if rules is not None and epoch == facts["epoch"].encode():
        yield read_rules(rules).retracted


def _latest(client: redis.Redis, layout: Layout) -> int:
    """Return a millisecond since 1970 that is not before the ID of any entry in the streams of a topic, nor before now.

    Now is the time by the server's clock.
    """
    latest = server_time(client)
    for keys in layout.keys:
        if client.exists(keys.stream):
            about: Any = client.xinfo_stream(keys.stream)
            latest = max(latest, parse_id(about["last-generated-id"].decode())[0])
    return latest


def _others(
    client: redis.Redis, layout: Layout, root: Mapping[bytes, bytes], epoch: str, earlier: Mapping[int, int]
) -> list[tuple[PartitionKeys, dict[Any, Any]]]:
    """Return the keys of each partition to close, of other topics that may be open, with fields for its sequences.

    The partitions are those of the live topic of the server (after an interrupted restore: of the topic of that
    restore, and of the topics that it leaves) if its size is known, of the topic that a repartition fills, and of the
    first topic if it is in `earlier`. Of the other topics in `earlier`, they are those whose sequences the server has
    lost, or all if it has other data. The topic to restore is never among them.

    The fields always have `CLOSED`, with the number of the topic to restore.

    If the server has lost the sequences of a partition of an earlier topic, or has other data, no record shows which
    entries that partition had; the restored topic has copies of these. Its fields then also have `HORIZONS` (see
    `lib/producers.lua`), with the largest ID, as if all records had been removed.

    Args:
        client: The server to restore to.
        layout: The layout of the topic to restore.
        root: The fields of the server's root hash.
        epoch: The epoch of the snapshot; if the server has another one, it has other data.
        earlier: By number of each earlier topic, its number of partitions.
    """
    live, present = present_topic(client, layout.namespace, root)
    counting = {topic: partitions for topic, partitions in earlier.items() if topic == FIRST_TOPIC}
    if present is not None:
        counting[live] = present
    if (moving := number(root, b"moving")) is not None:
        counting[moving] = int(root[b"moving-partitions"])
    if RESTORING.encode() in root:
        counting |= _left(client, layout, root)  # the interrupted restore may not have closed them
    is_of_other_data = former_epoch(root) not in ("", epoch)
    found = []
    for topic in (counting.keys() | earlier.keys()) - {layout.topic}:
        partitions = max(counting.get(topic, 0), earlier.get(topic, 0))
        for keys in Layout(partitions, layout.namespace, topic=topic).keys:
            fields: dict[Any, Any] = {CLOSED: layout.topic}
            if topic in earlier and (is_of_other_data or not client.hexists(keys.sequences, BEGUN)):
                fields |= dict.fromkeys(HORIZONS, f"{_LARGEST_ID} {_LARGEST_ID}")
            elif topic not in counting:
                continue  # it is closed
            found.append((keys, fields))
    return found


def _left(client: redis.Redis, layout: Layout, root: Mapping[bytes, bytes]) -> dict[int, int]:
    """Return, by number of each topic that nothing uses after the restore, its number of partitions.

    `rebuild --drop` removes these topics. They are the topic that a repartition fills, and those that the root hash
    lists already (`LEFT`). If another topic than that of `layout` is live on the server (after an interrupted restore:
    was restored by it), also the live one, and the topic before it that the server keeps. The topic of `layout`, and
    topics of unknown size, are left out.
    """
    found = {
        int(topic): int(count)
        for topic, _, count in (e.partition(":") for e in root.get(LEFT.encode(), b"").decode().split())
    }
    live, present = present_topic(client, layout.namespace, root)
    if live != layout.topic:
        before = number(root, b"kept")
        for topic, count in ((live, present), (before, root.get(b"partitions@%d" % (before or 0)))):
            if topic is not None and count is not None:
                found[topic] = int(count)
    if (moving := number(root, b"moving")) is not None:
        found[moving] = int(root[b"moving-partitions"])
    found.pop(layout.topic, None)
    return found


def _highest_closing(client: redis.Redis, partitions: Iterable[PartitionKeys]) -> int:
    """Return the highest number of a closing that one of these partitions has recorded; 0 if none has.

    The number of a restore that has not finished counts too.
    """
    with client.pipeline(transaction=False) as pipeline:
        for keys in partitions:
            pipeline.hget(keys.sequences, f"!{CLOSING}")
            pipeline.get(keys.live)
        replies: list[Any] = pipeline.execute()
    closed = [int(reply or 0) for reply in replies[::2]]
    return max(*closed, *(restoring_number(reply or b"") for reply in replies[1::2]), 0)


def _numbers(
    client: redis.Redis, layout: Layout, root: Mapping[bytes, bytes], facts: Mapping[str, str], live: LiveRules | None
) -> dict[str, int]:
    """Return, by the names `NUMBERS`, the highest number of a generation and of rules on the server or in the snapshot.

    A missing number counts as 0. On the server, these are the numbers in the root hash and in that of the topic to
    restore, and the highest number of rules that `live` has (`newest`).

    Args:
        client: The server to restore to.
        layout: The layout of the topic to restore.
        root: The fields of the server's root hash.
        facts: The facts of the snapshot.
        live: The rules that were live before the restore; ignored if they are of other data. `None` for none.
    """
    found = []
    for name in NUMBERS:
        known = [facts.get(name) or 0, client.hget(layout.meta, name) or 0, root.get(name.encode()) or 0]
        found.append(max(map(int, known)))
    if live is not None and live.epoch == facts["epoch"]:
        found[1] = max(found[1], live.newest)
    return dict(zip(NUMBERS, found, strict=True))


def _turn(client: redis.Redis, layout: Layout, root: Mapping[bytes, bytes]) -> int:
    """Return the number of the last command that changed generations (see `TURN`); 0 if the server knows none."""
    return max(int(client.hget(layout.meta, TURN) or 0), int(root.get(TURN.encode()) or 0))


def _found(client: redis.Redis, layout: Layout) -> str | None:
    names = [layout.root, layout.meta]
    names += [name for keys in layout.keys for name in (keys.stream, keys.ledger, keys.sequences)]
    return next((name for name in names if client.exists(name)), None)
