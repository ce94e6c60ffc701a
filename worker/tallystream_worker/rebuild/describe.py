"""Stores the lost hashes that describe a deployment again, with what other keys and the archive state."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
from redis.exceptions import ResponseError

from tallystream.client.replies import is_key_missing
from tallystream.errors import CodecError, ConfigurationError, EventError, NothingDeclared, StreamError
from tallystream.rules.metrics import Rules, publish, read
from tallystream.rules.retraction import Retraction
from tallystream.storage.deployment_hash import (
    RESTORING,
    fields_of,
    live_topic,
    parse_live,
    restoring_number,
    spread_fields,
)
from tallystream.storage.keys import CLOSED, CLOSING, FIRST, FIRST_TOPIC, GROUP, LEFT, MAX_PARTITIONS, Layout
from tallystream.storage.rule_changes import read_changes
from tallystream.storage.scripts import Script
from tallystream.wire.codec import COPIED, decode, was_sequenced
from tallystream_worker.counting.entry import Entry
from tallystream_worker.counting.fetch import COPIES
from tallystream_worker.ingest.offsets import SOURCE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import redis

_INIT: Final = Script("tallystream.storage", "init_deployment")
_COUNTS: Final = re.compile(rf"{GROUP}(?:-([0-9]+))?")
_CLOSING: Final = f"!{CLOSING}"
"""The field of the sequences with the number of the last closing or reopening of the partition."""
_LATER: Final = re.compile(rb"l([0-9]+):meta")

_PAGE: Final = 1000


@dataclass(frozen=True)
class _Topic:
    """The state of a topic, as its partitions have it.

    Attributes:
        number: The number of the topic.
        partitions: The number of partitions up to the last one that has sequences or a ledger; 0 if none has.
        closed: The numbers of the topics that the partitions with sequences are closed for; 0 for one that is open.
        closing: The highest number of a closing or reopening that changed a partition; 0 if none has.
        is_kept: Whether a partition has a ledger; none has if the topic was dropped.
    """

    number: int
    partitions: int
    closed: frozenset[int]
    closing: int
    is_kept: bool

    @property
    def following(self) -> int | None:
        """The topic that all partitions with sequences are closed for.

        `None` if one of them is open, if they are closed for different topics, or if there are none.
        """
        return next(iter(self.closed)) if len(self.closed) == 1 and 0 not in self.closed else None


def describe(
    client: redis.Redis,
    namespace: str,
    partitions: int,
    manifest: Callable[[int], Mapping[str, Any] | None] = lambda _: None,
    *,
    rules: Rules | None = None,
    force: bool = False,
    topics: Sequence[int] = (),
) -> list[str]:
    """Store the root hash of a deployment and the hash of its live topic again, each if the whole hash is lost.

    Return the names of the hashes that this call has stored. Do nothing, and return an empty list, if the root hash is
    stored and notes that a restore has not finished. Lost fields of a stored hash are not stored again.

    The rules, the epoch and the number of partitions are those of the last recorded change of the rules of the topic.
    If no change is recorded any more, the epoch and the number are those of the archive, and (unless the archive notes
    retractions, see below) the next worker that starts publishes its rules. Without an archive, the number is
    `partitions`, and the epoch is new. The number is also `partitions` if more partitions have keys than the record or
    the archive states. If one of the two hashes is left, its epoch is used. The live generation is the one that the
    partitions count.

    Retractions are part of the recorded rules. Without a record, those that the archive notes are stored, with the
    metrics of `rules`. If the archive notes none either, the ledgers show whether events were retracted.

    After repartitions, the closed partitions of each topic name a topic that follows. A topic is live if all
    partitions of the topic before are closed for it, and that topic was dropped, or producers or workers have used the
    new one. Otherwise the repartition to it is not finished, and can be continued or given up.

    Args:
        client: The server.
        namespace: The first part of every key.
        partitions: The configured number of partitions; 0 if none is configured.
        manifest: Called with the number of a topic; returns the manifest of its archive, `None` if there is none.
        rules: The configured rules; used only with retractions that the archive notes.
        force: Also describe a deployment whose live counters leave out retracted events, if it is not known which
            events were retracted: a later rebuild would count these events again.
        topics: The numbers of all topics after the first one that have a folder in the archive: no topic gets such a
            number again.

    Raises:
        StreamError: it is not known which events were retracted, and `force` is not set; or (`DamagedValue`) a stored
            value has a form that tallystream never writes. Nothing was changed.
        NothingDeclared: the live topic has neither a recorded change of its rules nor a partition with sequences or a
            ledger.
        ConfigurationError: the number of partitions or the live generation is not known; or this release cannot read
            the recorded rules; or a hash is lost, and the partitions show that a restore has not finished. At most the
            hash of the live topic was stored.
        redis.RedisError: the server does not reply, or rejects a command.

    An error of `manifest` is raised too.
    """

    def fields_of_topic(topic: _Topic, epoch: bytes | None) -> dict[str, Any]:
        return _fields(client, namespace, topic, partitions, manifest(topic.number) or {}, epoch, rules, force=force)

    first = Layout(namespace=namespace)
    root: dict[bytes, bytes] = client.execute_command("HGETALL", first.root)
    if root:
        live = live_topic(root, namespace)
        if RESTORING.encode() in root or live.topic == FIRST_TOPIC or client.exists(live.meta):
            return []
        topic = _look(client, namespace, live.topic)
        return _store(client, live.meta, fields_of_topic(topic, root[b"epoch"]))
    chain = _chain(client, namespace)
    topic = chain[-1]
    if topic.number == FIRST_TOPIC:
        fields = fields_of_topic(topic, None)
        return _store(client, first.root, fields | _topics(client, namespace, chain, topics, manifest))
    meta, stored = Layout(namespace=namespace, topic=topic.number).meta, []
    if not client.exists(meta):
        stored = _store(client, meta, fields_of_topic(topic, None))
    epoch: bytes = client.execute_command("HGET", meta, "epoch") or b""
    described = _topics(client, namespace, chain, topics, manifest)
    fields = fields_of(Layout(described[f"partitions@{FIRST_TOPIC}"], namespace), epoch.decode()) | described
    return [*_store(client, first.root, fields), *stored]


def retracted_events(client: redis.Redis, layout: Layout) -> int:
    """Return how many events the counters of a layout leave out because they were retracted, as its ledgers state."""
    with client.pipeline(transaction=False) as pipeline:
        for keys in layout.keys:
            pipeline.hget(keys.ledger, "retracted")
        return sum(int(events or 0) for events in pipeline.execute())


def _store(client: redis.Redis, key: str, fields: Mapping[Any, Any]) -> list[str]:
    """Store a hash if it does not exist; return its name if this call stored it."""
    answer, *_ = _INIT(client, [key], [part for field in fields.items() for part in field])
    return [key] if answer == b"created" else []


def _look(client: redis.Redis, namespace: str, number: int) -> _Topic:
    """Return what is left of a topic, by the sequences and ledgers of its 1,024 possible partitions.

    Raises:
        ConfigurationError: a restore of the topic has not finished.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    with client.pipeline(transaction=False) as pipeline:
        for keys in Layout(MAX_PARTITIONS, namespace, topic=number).keys:
            pipeline.exists(keys.sequences)
            pipeline.exists(keys.topic_ledger)
            pipeline.hmget(keys.sequences, CLOSED, _CLOSING)
            pipeline.get(keys.live)
        replies: list[Any] = pipeline.execute()
    if any(restoring_number(live or b"") for live in replies[3::4]):
        raise ConfigurationError(
            f"{Layout(namespace=namespace).root}: a restore has not finished, so its counters are incomplete. Run it "
            "again: tallystream restore --force"
        )
    found = list(zip(replies[::4], replies[1::4], replies[2::4], strict=True))
    return _Topic(
        number,
        1 + max((at for at, (one, other, _) in enumerate(found) if one or other), default=-1),
        frozenset(int(closed or 0) for has, _, (closed, _) in found if has),
        max(int(closing or 0) for _, _, (_, closing) in found),
        any(has for _, has, _ in found),
    )


def _chain(client: redis.Redis, namespace: str) -> list[_Topic]:
    """Return the first topic, the topic that it is closed for, and so on, up to the topic that is live now.

    Topics that were live before may be missing: a restore closes the first topic for the restored one.
    """
    chain = [_look(client, namespace, FIRST_TOPIC)]
    while (following := chain[-1].following) is not None and all(following != each.number for each in chain):
        topic = _look(client, namespace, following)
        if chain[-1].is_kept and not _was_live(client, namespace, topic):
            break
        chain.append(topic)
    return chain


def _was_live(client: redis.Redis, namespace: str, topic: _Topic) -> bool:
    """Return whether a producer has appended to a topic, or a worker has read it; before it is live, none of them does.

    It is so if a producer has a record, a worker is a consumer of a group, or an entry is surely no copy. All entries
    may have to be read for this. If none of them has used the topic since it became live, the result is `False` too.
    Then the repartition can be continued, and nothing is lost, because the topic before is closed.
    """
    layout = Layout(max(topic.partitions, 1), namespace, topic=topic.number)
    for keys in layout.keys:
        for name, _ in client.hscan_iter(keys.sequences, count=1000):
            if not name.startswith(b"!") and b"@" not in name:  # with @, it is the offset of a file, which was copied
                return True
        for group in _groups(client, keys.stream):
            if any(each["name"] != COPIES.encode() for each in client.xinfo_consumers(keys.stream, group)):
                return True
    return any(_has_own_entry(client, keys.stream) for keys in layout.keys)


def _has_own_entry(client: redis.Redis, stream: str) -> bool:
    """Return whether a stream has an entry that surely no repartition has copied to it: see `_may_be_copy`."""
    before = "+"
    while True:
        page: Any = client.xrevrange(stream, before, "-", count=_PAGE)
        if not page:
            return False
        if not all(_may_be_copy(Entry(id_.decode(), fields)) for id_, fields in page):
            return True
        before = f"({page[-1][0].decode()}"


def _may_be_copy(entry: Entry) -> bool:
    """Return whether a repartition may have appended an entry.

    A copy has `COPIED` in place of the producer. Only of a plain entry (that another client appended with XADD) that
    cannot be decoded, the copy has no such mark; so for every such entry the result is `True`.
    """
    if entry.fields.get(b"p") == COPIED:
        return True
    if was_sequenced(entry.fields):
        return False
    try:
        decode(entry.fields, entry.received)
    except (CodecError, EventError):
        return True
    return False


def _topics(
    client: redis.Redis,
    namespace: str,
    chain: Sequence[_Topic],
    archived: Sequence[int],
    manifest: Callable[[int], Mapping[str, Any] | None],
) -> dict[str, Any]:
    """Return the fields of the root hash about topics and their closings.

    If neither a key nor the archive names a later topic than the first, the number of the last closing is the only
    field, and without a closing there is none.

    Args:
        client: The server.
        namespace: The first part of every key.
        chain: What `_chain` returned; the last topic is the live one.
        archived: The numbers of the topics after the first one that have a folder in the archive.
        manifest: See `describe`.
    """
    live, stored = chain[-1], _stored_topics(client, namespace)
    found = _all_topics(client, namespace, chain, stored)
    newest = max(found)
    if newest == FIRST_TOPIC and not archived:
        return {CLOSING: live.closing} if live.closing else {}
    fields: dict[str, Any] = {"newest-log": max([newest, *archived]) + 1}  # the next number may have been reserved
    in_chain = {each.number for each in chain}
    earlier = [
        n for n, topic in sorted(found.items()) if n != live.number and (n in in_chain or _precedes(topic, live))
    ]
    if live.number != FIRST_TOPIC:
        least = _ingested(client, Layout(namespace=namespace, topic=live.number))
        fields["log"] = live.number
        for n in earlier:
            fields[f"partitions@{n}"] = max(_count(client, namespace, found[n], manifest), least.get(n, 0))
    if earlier and found[earlier[-1]].is_kept:
        fields["kept"] = earlier[-1]
    left = []
    for number, topic in sorted(found.items()):
        if number in (live.number, fields.get("kept")) or not (topic.partitions or number in stored):
            continue
        is_open, count = topic.closed <= {0}, _count(client, namespace, topic, manifest)
        if is_open and number == newest > live.number:
            fields |= {"moving": number, "moving-partitions": count}
        elif is_open or topic.is_kept or number in stored:  # else only what a removal keeps
            left.append(f"{number}:{count}")
    if left:
        fields[LEFT] = " ".join(left)
    if closing := max(topic.closing for topic in found.values()):
        fields[CLOSING] = closing
    return fields


def _count(
    client: redis.Redis, namespace: str, topic: _Topic, manifest: Callable[[int], Mapping[str, Any] | None]
) -> int:
    """Return the number of partitions of a topic that is not live, by its hash.

    If the hash is lost, it is the number in the last recorded change of the topic's rules, or else in the archive. If
    none of them states it, or if a partition above this number has keys, it is the number up to the last such one.
    """
    layout = Layout(namespace=namespace, topic=topic.number)
    stated = client.hget(layout.meta, "partitions")
    if stated is None:
        changes = read_changes(client, layout)
        stated = changes[-1][1].get(b"partitions") if changes else None
    if stated is None:
        stated = (manifest(topic.number) or {}).get("partitions")
    return max(int(stated or 0), topic.partitions)


def _ingested(client: redis.Redis, live: Layout) -> dict[int, int]:
    """Return, by earlier topic, the number of partitions up to the last one with an offset of a file.

    The live topic has the offsets of earlier topics, which show what was ingested from the file.
    """
    found: dict[int, int] = {}
    for name, _ in client.hscan_iter(live.keys[0].sequences, match=f"{SOURCE}*@*", count=1000):
        topic, _, partition = name.rpartition(b"@")[2].partition(b".")
        found[int(topic)] = max(found.get(int(topic), 0), int(partition) + 1)
    return found


def _precedes(topic: _Topic, live: _Topic) -> bool:
    """Return whether a topic was live before the live one: later topics have replaced all its partitions.

    A topic that is closed for one with a lower number is not: a restore has left it.
    """
    return topic.number < live.number and bool(topic.closed) and min(topic.closed) > topic.number


def _all_topics(
    client: redis.Redis, namespace: str, chain: Sequence[_Topic], stored: Collection[int]
) -> dict[int, _Topic]:
    """Return, by number, all topics from the first to the newest that a key names, also those without keys.

    Args:
        client: The server.
        namespace: The first part of every key.
        chain: What `_chain` returned.
        stored: What `_stored_topics` returned.
    """
    found = {each.number: each for each in chain}
    number, newest = FIRST_TOPIC, max([*found, *stored])
    while number <= newest:
        if number not in found:
            found[number] = _look(client, namespace, number)
        newest = max([newest, *found[number].closed])
        number += 1
    return found


def _stored_topics(client: redis.Redis, namespace: str) -> set[int]:
    """Return the numbers of the topics whose hash is stored; the first topic is left out."""
    prefix = Layout(namespace=namespace).keys[0].prefix
    names = client.scan_iter(match=f"{prefix}l[0-9]*:meta", count=1000)
    found = (_LATER.fullmatch(name.removeprefix(prefix.encode())) for name in names)
    return {int(each[1]) for each in found if each}


def _fields(  # what `describe` gets
    client: redis.Redis,
    namespace: str,
    topic: _Topic,
    partitions: int,
    archived: Mapping[str, Any],
    epoch: bytes | None,
    rules: Rules | None,
    *,
    force: bool,
) -> dict[str, Any]:
    """Return the fields of the hash of a live topic, without those about other topics; see `describe`.

    `archived` is the manifest of the topic's archive, empty for none. `epoch` is the one that the root hash has; `None`
    if it is lost too.

    Raises:
        ConfigurationError, StreamError, redis.RedisError: see `describe`; nothing was changed.
    """
    layout = Layout(namespace=namespace, topic=topic.number)
    changes = read_changes(client, layout)
    records = [{name.decode(): value for name, value in fields.items()} for _, fields in changes]
    latest = records[-1] if records else {}
    if not records and not topic.partitions:
        raise NothingDeclared(f"nothing is stored under {namespace}: start a worker, which begins a deployment")
    stated, least = int(latest.get("partitions") or archived.get("partitions") or 0), max(topic.partitions, 1)
    number = stated
    if stated < least:
        if not partitions or (partitions < least and partitions != stated):
            found = (
                f"its rules or its archive state {stated}, but {least} have keys"
                if stated
                else f"it was at least {least}"
            )
            raise ConfigurationError(
                f"the number of partitions is lost with {layout.meta}; {found}. Set [redis] partitions to the right "
                "number, then repeat the command"
            )
        number = partitions
    known = epoch or latest.get("epoch")
    name = known.decode() if known else archived.get("epoch") or uuid.uuid4().hex
    layout = Layout(number, namespace, topic=topic.number)
    retracted = () if records else msgspec.convert(archived.get("retracted", ()), tuple[Retraction, ...])
    if retracted:
        latest = {"rules": publish(msgspec.structs.replace(rules or Rules({}), retracted=retracted))}
        records.append(latest | {"partitions": b""})
    fields = fields_of(layout, name) | _generations(client, layout, latest)
    live = layout.of(int(fields.get("generation", FIRST)))
    if not records and not force and (events := retracted_events(client, live)):
        raise StreamError(
            f"{events:,} events were retracted, and it is not known any more which ones: the rules and the record of "
            "their changes are lost. A later rebuild would count these events again. If you have a snapshot, restore "
            "it: tallystream restore --force. If you have an archive, name it in [archive] url and repeat the command. "
            "Otherwise, continue without the retractions: tallystream reopen --force"
        )
    for record in records:
        if "partitions" in record:  # else the change was made in an earlier topic
            fields |= spread_fields(read(record["rules"]).spread)
    return fields


def _generations(client: redis.Redis, layout: Layout, latest: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the fields of the hash of a topic about generations and rules.

    Args:
        client: The server.
        layout: The layout of the topic.
        latest: The fields of the last recorded change of the rules; without `rules`, no rules are returned. Each other
            generation that has a consumer group gets the same rules, so that `rebuild --drop` can remove it.

    Raises:
        ConfigurationError: the partitions do not count the same generation.
        DamagedValue: the live generation of a partition has a value that tallystream never writes.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    values = [(value, keys.live) for keys in layout.keys if (value := client.execute_command("GET", keys.live))]
    live = {parse_live(value, key)[0] for value, key in values} or {int(latest.get("generation", FIRST))}
    if len(live) > 1:
        raise ConfigurationError(
            f"{layout.meta} was lost while a rebuild was switching, and only a snapshot has its content. Run: "
            "tallystream restore --force"
        )
    (generation,) = live
    fields: dict[str, Any] = {}
    numbers = [int(word) for value, _ in values for word in value.split()[1:] if word.isdigit()]
    if "rules" in latest:
        revision = int(latest.get("number", max([0, *numbers]) + 1))
        # A rebuild may have given the next number to rules that are not recorded yet.
        fields |= {"rules": latest["rules"], "revision": revision, "newest-revision": max([revision, *numbers]) + 1}
    others = counted_generations(client, layout) - {generation}
    if generation != FIRST or others:
        fields |= {"generation": generation, "newest": max(generation, *others, FIRST)}
    if "rules" in latest:
        for other in others:
            fields |= {f"rules@{other}": latest["rules"], f"revision@{other}": revision}
    return fields


def counted_generations(client: redis.Redis, layout: Layout) -> set[int]:
    """Return the numbers of the generations that have a consumer group in a stream of a layout; empty if none has."""
    names = (_COUNTS.fullmatch(name) for keys in layout.keys for name in _groups(client, keys.stream))
    return {int(name[1] or FIRST) for name in names if name}


def _groups(client: redis.Redis, stream: str) -> list[str]:
    """Return the names of the consumer groups of a stream; none if there is no stream."""
    try:
        groups: list[dict[str, Any]] = client.xinfo_groups(stream)
    except ResponseError as error:
        if not is_key_missing(error):
            raise
        return []
    return [group["name"].decode() for group in groups]
