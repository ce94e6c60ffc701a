"""Changes whole topics: begins, closes, reopens, activates, gives up and removes them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace as changed
from redis.exceptions import RedisError

from tallystream.client.cluster.client import node_of
from tallystream.client.replies import is_unreachable
from tallystream.client.server_time import server_time
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, KeyLost, StreamError
from tallystream.rules.metrics import publish
from tallystream.rules.retraction import after_copying
from tallystream.storage.deployment_hash import fields_of, spread_fields
from tallystream.storage.keys import CLOSED, CLOSING, FIRST, LEFT, Layout
from tallystream.storage.rule_changes import read_changes, write_changes
from tallystream.storage.scripts import Script
from tallystream.storage.sentinels import open_partitions
from tallystream.wire.stream_id import parse_id
from tallystream_worker.process import failpoints
from tallystream_worker.process.barrier import confirm, step
from tallystream_worker.process.description import add, forget
from tallystream_worker.process.partition_names import partition_names, unlink_all
from tallystream_worker.process.publisher import publisher
from tallystream_worker.repartition.reading_marks import HOLDER
from tallystream_worker.repartition.stragglers import StragglerCopier

if TYPE_CHECKING:
    import redis

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import PartitionKeys

_PROPOSE: Final = Script("tallystream_worker.repartition", "propose")
_CLOSE: Final = Script("tallystream_worker.repartition", "close")
_REOPEN: Final = Script("tallystream_worker.repartition", "reopen")
_ACTIVATE: Final = Script("tallystream_worker.repartition", "activate")
_GIVE_UP: Final = Script("tallystream_worker.repartition", "give_up")
_FORGET_LEFT: Final = Script("tallystream_worker.repartition", "forget_left")

_KEPT: Final = frozenset({b"seq", b"live", b"files"})
"""Keys of a removed topic that stay: the last sequence of each producer, by which a late spool finds out what was
appended; that the topic is closed (in these sequences and in `live`), so that no script counts or appends there again;
and the files that were ingested."""


def propose(client: redis.Redis, deployment: Deployment, partitions: int) -> Layout:
    """Return the layout of the topic to fill, with `partitions` partitions: of the topic that was begun, or a new one.

    A new topic gets a number, which is stored with its number of partitions; no key of the topic is written. Nothing is
    written if a topic was begun. `partitions` must be 1 to 1,024: any other number is stored too, before this raises a
    `ConfigurationError`.

    Raises:
        ConfigurationError: a topic with another number of partitions is being filled, an earlier topic is still kept,
            or a generation is being built.
        DeploymentChanged: the data was deleted or replaced, or a restore has not finished.
        KeyLost: the stored deployment is not complete.
        DamagedValue: a stored value has a form that tallystream never writes.
        redis.RedisError: the server does not reply, or rejects the command; the topic may be begun. Call again.
    """
    if deployment.building is not None:
        raise ConfigurationError(
            f"cannot repartition while generation {deployment.building} is being built: let the rebuild finish, or "
            "give it up with: tallystream rebuild --drop"
        )
    answer, *found = _PROPOSE(client, [deployment.layout.root], [partitions])
    if answer == b"gone":
        deployment.reload(client)  # states why
        raise KeyLost(deployment.layout.root)
    (number,) = found
    if answer == b"other":
        raise ConfigurationError(
            f"a repartition to {number.decode()} partitions is not finished: continue it with "
            f"--partitions {number.decode()}, or give it up with: tallystream rebuild --drop"
        )
    if answer == b"kept":
        raise ConfigurationError(
            f"topic {number.decode()}, from before the last repartition, is still kept: remove it with: "
            "tallystream rebuild --drop"
        )
    return Layout(partitions, deployment.layout.namespace, topic=int(number))


def begin(client: redis.Redis, deployment: Deployment, layout: Layout, rules: Rules) -> Deployment:
    """Return the deployment of a new topic; store its hash, with its rules, unless it is stored already.

    The recorded changes of the rules are copied with the hash, and the partitions of the topic are opened. The stored
    rules differ from `rules` in the retractions: these apply only to the copies that are marked with them.

    Args:
        client: The server.
        deployment: The deployment of the live topic.
        layout: The layout of the new topic.
        rules: The rules to count the new topic by.

    Raises:
        ConfigurationError: the topic was begun with other rules, or with another number of partitions; they stay.
        KeyLost: a partition of the new topic has lost a key, or its hash a field.
        DamagedValue: a field of that hash has a value that tallystream never writes.
        redis.RedisError: the server does not reply, or rejects a command; call again.
    """
    rules = changed(rules, retracted=after_copying(rules.retracted))
    if not client.exists(layout.meta):
        fields = fields_of(layout, deployment.epoch) | {"rules": publish(rules)} | spread_fields(rules.spread)
        fields |= _numbers(client, deployment, layout, rules)
        client.hset(layout.meta, items=[part for field in fields.items() for part in field])
    stored = client.execute_command("HGETALL", layout.meta)
    found = replace(Deployment.parse(stored, namespace=layout.namespace), layout=layout)
    if int(stored[b"partitions"]) != layout.partitions:  # an earlier repartition used the number
        before = stored[b"partitions"].decode()
        raise ConfigurationError(
            f"topic {layout.topic} has keys of a repartition to {before} partitions, of which the server has no record "
            "any more: a failover has lost it. Run tallystream rebuild --drop, then repartition again"
        )
    open_partitions(client, layout, found.revision)
    if publish(found.rules) != publish(rules):
        raise ConfigurationError(
            "the repartition was begun with other rules: give it up with tallystream rebuild --drop, then repartition "
            "again"
        )
    return found


def _numbers(client: redis.Redis, deployment: Deployment, layout: Layout, rules: Rules) -> dict[str, Any]:
    """Return the fields for the number of a new topic's rules; copy the recorded changes of the rules to the topic.

    The fields are `revision`, the number of the rules, and `newest-revision`, the highest number. If the rules are not
    equal to those of the live topic, they get a new number, above all earlier ones, and the change is recorded, in the
    new topic only. Changes that were recorded in the new topic before are replaced. Of the copied records, only the
    last states a number of partitions, that of the new topic, and only if it is the record of these rules.
    """
    records, revision = read_changes(client, deployment.layout), deployment.revision
    newest = int(client.hget(deployment.layout.meta, "newest-revision") or revision)
    if publish(rules) != publish(deployment.rules):
        revision = newest = newest + 1
        at = max([(server_time(client), 0), *(parse_id(name.decode()) for name, _ in records[-1:])])
        fields = {"number": revision, "by": publisher(), "generation": FIRST, "epoch": deployment.epoch}
        encoded = {name.encode(): str(value).encode() for name, value in fields.items()}
        records.append((f"{at[0]}-{at[1] + 1}".encode(), encoded | {b"rules": publish(rules)}))
    # Only the first rules of the topic state its number of partitions: `describe` leaves out the records before.
    for _, each in records:
        each.pop(b"partitions", None)
    if records and records[-1][1][b"number"] == str(revision).encode():
        records[-1][1][b"partitions"] = str(layout.partitions).encode()
    write_changes(client, layout, records)
    return {"revision": revision, "newest-revision": newest}


def next_closing(client: redis.Redis, deployment: Deployment) -> int:
    """Store and return the number for the next closing of topics; it is higher than every earlier one.

    From now on, `activate` refuses lower numbers. `close` and `reopen` change nothing by a lower number in a partition
    that the new closing has changed.

    Raises:
        DeploymentChanged: the data was deleted or replaced, or a restore has not finished; nothing was stored.
        KeyLost: the root hash has lost a field; nothing was stored.
        ConfigurationError: this release cannot read the stored data; nothing was stored.
        DamagedValue: a stored value has a form that tallystream never writes; nothing was stored.
        redis.RedisError: the server does not reply, or rejects the command.
    """
    return add(client, deployment, deployment.layout.root, CLOSING)


def close(client: redis.Redis, deployment: Deployment, layout: Layout, closing: int) -> None:
    """Close every partition of a topic: nothing more is appended through the sequence gate, decided or counted in it.

    Plain events of other clients can still be added to its streams.

    Args:
        client: The server of the topic.
        deployment: The deployment whose topic is closed.
        layout: The layout of the topic that follows; its number is in the reply to refused producers.
        closing: The number that `next_closing` returned.

    Raises:
        StreamError: a later closing of another process has changed a partition; the partitions before it are closed.
        KeyLost: a partition has lost a key; the partitions before it are closed.
        redis.RedisError: the server does not reply, or rejects a command; some partitions may be closed.
    """
    for keys in deployment.layout.keys:
        (answer,) = _CLOSE(client, [keys.sequences, keys.live], [layout.topic, closing])
        if answer == b"overtaken":
            raise _overtaken()


def reopen(client: redis.Redis, deployment: Deployment, closing: int) -> None:
    """Reopen every partition of the deployment's topic; producers then append the entries that were refused meanwhile.

    A partition that is not closed stays open, and from now on `close` with a lower number than `closing` does not close
    it. Nothing changes in a partition that a later closing than `closing` has changed; it may stay closed. `closing` is
    the number that `next_closing` returned.

    Raises:
        KeyLost: a partition has lost a key, and was not reopened.
        redis.RedisError: a server did not reply, or rejected a command; its partitions may stay closed.

    The first of these errors is raised after the partitions of all nodes were tried.
    """
    failed: list[KeyLost | RedisError] = []
    away: set[str] = set()
    for keys in deployment.layout.keys:
        if (node := node_of(client, keys.sequences)) in away:
            continue  # each attempt may take seconds
        try:
            _REOPEN(client, [keys.sequences, keys.live], [closing])
        except KeyLost as error:
            failed.append(error)
        except RedisError as error:
            failed.append(error)
            if is_unreachable(error):
                away.add(node)
    if failed:
        raise failed[0]


def ensure_closed(client: redis.Redis, deployment: Deployment, closing: int) -> None:
    """Raise a `StreamError` unless every partition of the deployment's topic is closed by the closing `closing`.

    Raises:
        StreamError: a failover has opened a partition, or another process has closed or opened it.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    with client.pipeline(transaction=False) as pipeline:
        for keys in deployment.layout.keys:
            pipeline.hmget(keys.sequences, CLOSED, f"!{CLOSING}")
        found: list[list[bytes | None]] = pipeline.execute()
    for keys, (closed, number) in zip(deployment.layout.keys, found, strict=True):
        if not closed or number != str(closing).encode():
            raise StreamError(
                f"{keys.stream} is open again: a failover has opened it, or another process. The old streams stay "
                "live. Run the command again"
            )


def activate(client: redis.Redis, deployment: Deployment, layout: Layout, closing: int) -> bool:
    """Make the topic of `layout` the live one, and keep the topic of `deployment` as an earlier topic.

    Whether the earlier topic is closed, copied and counted is not checked: first call `close` with the same `closing`,
    copy and count the rest, then call `ensure_closed`.

    Returns:
        `True` if the topic of `layout` is live now, also if it was live before; `False` if nothing was changed, because
        the repartition to this topic was given up.

    Raises:
        StreamError: another process has begun a later closing than `closing`. Nothing was changed.
        redis.RedisError: the server does not reply, or rejects the command; the topic may be live or not.
    """
    before = deployment.layout
    (answer,) = _ACTIVATE(client, [before.root], [layout.topic, before.topic, before.partitions, closing])
    if answer == b"overtaken":
        raise _overtaken()
    return bool(answer == b"active")


def _overtaken() -> StreamError:
    return StreamError("another process has continued the same repartition: let it finish, or run the command again")


def give_up(client: redis.Redis, deployment: Deployment) -> int:
    """Give up and remove the topic that a repartition fills; return the number of removed keys.

    Also reopen the live topic, remove the repartition's retention holds from it, and remove the other topics that
    nothing uses (see `drop_left`), whose keys are not in the result. If no topic was being filled when `deployment` was
    read, do nothing and return 0. 0 is also returned if a topic was given up of which nothing was stored but its
    number. If the call is interrupted, call `settle` and `drop_left`, which do the rest.

    Raises:
        StreamError: the topic is not being filled any more: it is live, or another process has given it up.
        DeploymentChanged: the data was deleted or replaced meanwhile; the repartition was given up, and nothing else
            was done.
        KeyLost: a partition of the live topic has lost a key, and may be closed; raised after the repartition was given
            up, its holds and its topic were removed, and the other partitions were reopened. When the partition is
            repaired, `settle` reopens it. If the root hash has lost a field, no partition was reopened.
        Unconfirmed: the live topic was reopened and its holds were removed, but the removal of a topic was not
            confirmed in time: call `drop_left`, which does the rest.
        ConfigurationError, DamagedValue: the stored data cannot be read; the repartition was given up, and nothing else
            was done.
        redis.RedisError: the server does not reply, or rejects a command: the call is interrupted, as above.
    """
    moving = deployment.moving
    if moving is None:
        return 0
    (answer,) = _GIVE_UP(client, [deployment.layout.root], [moving])
    if answer != b"given_up":
        raise StreamError(
            f"cannot give up the repartition: topic {moving} is not being filled any more. It is the live topic now, "
            "or another process has given it up: run the command again"
        )
    failpoints.reach("move-given-up")
    lost: KeyLost | None = None
    try:
        reopen(client, deployment, next_closing(client, deployment))
    except KeyLost as error:
        lost = error  # remove the rest before this is raised
    failpoints.reach("move-reopened")
    remove_holds(client, deployment)
    removed = drop_left(client, deployment).get(moving, 0)
    if lost is not None:
        raise lost
    return removed


def settle(client: redis.Redis, deployment: Deployment) -> None:
    """Reopen the live topic if it is closed, and remove retention holds of repartitions from it.

    A `give_up` that was interrupted may have left both: then nothing is appended or counted, or nothing is trimmed. Do
    nothing if a repartition is unfinished, or if another topic than that of `deployment` is live.

    Raises:
        KeyLost: a partition is closed, and it or another one has lost a key; the partition that lost it was not
            reopened. Raised after the partitions of all nodes were tried, and before a hold is removed. Or the hash of
            the live topic is lost.
        DeploymentChanged: the data was deleted or replaced, or a restore has not finished.
        ConfigurationError: this release cannot read the stored data.
        DamagedValue: a stored value has a form that tallystream never writes.
        redis.RedisError: the server does not reply, or rejects a command; call again.
    """
    if reopen_if_settled(client, deployment):
        remove_holds(client, deployment)


def reopen_if_settled(client: redis.Redis, deployment: Deployment) -> bool:
    """Reopen the live topic if it is closed; return `True`, also if it was open.

    If a repartition is unfinished, or if another topic than that of `deployment` is live, do nothing, and return
    `False`. Retention holds stay. The errors are those of `settle`.
    """
    now = deployment.reload(client)
    if now.moving is not None or now.layout.topic != deployment.layout.topic:
        return False
    if any(_is_closed(client, keys) for keys in now.layout.keys):
        reopen(client, now, next_closing(client, now))
    return True


def _is_closed(client: redis.Redis, keys: PartitionKeys) -> bool:
    closed: bytes | None = client.execute_command("HGET", keys.sequences, CLOSED)
    live: bytes = client.execute_command("GET", keys.live) or b""
    return bool(closed) or b" closed" in live


def remove_holds(client: redis.Redis, deployment: Deployment) -> None:
    """Remove the retention holds of repartitions from the topic of a deployment, in every partition.

    Their records of what they have read are removed too, each before the hold: so no paused process of a repartition
    places a hold again.

    Raises:
        redis.RedisError: the server does not reply, or rejects a command; call again.
    """
    for keys in deployment.layout.keys:
        client.hdel(keys.sequences, "!copying")
        client.hdel(keys.retention_holds, HOLDER)


def drop(client: redis.Redis, deployment: Deployment) -> int:
    """Remove the topic that was live before the last repartition; return the number of removed keys, 0 if none is kept.

    First copy what is not copied, also what a failover has taken back from the live topic, and wait until the copies
    have the durability of the deployment.

    The list of ingested files stays. The sequences of its producers stay, too, so that a producer that still has
    entries for this topic finds out which of them were appended. The topic stays closed: a process that still knows it
    is refused, and reads the deployment again.

    Raises:
        StreamError: a node failed over meanwhile, workers copied the same entries for 10 seconds, another topic is live
            now, old streams were trimmed or replaced meanwhile, or (`KeyLost`) an old stream was deleted or a partition
            of the live topic has lost a key; nothing was removed.
        CodecError: the record of a dropped dead letter is damaged; nothing was removed.
        ConfigurationError: this release cannot read the rules of the earlier topic; nothing was removed.
        Unconfirmed: the copies were not confirmed in time, and nothing was removed; or the removal was not.
        redis.RedisError: the server does not reply, or rejects a command; call again to remove the rest.
    """
    layout = deployment.kept_layout
    if layout is None:
        return 0
    with step(client, deployment, f"the live topic has the events of topic {layout.topic}, which is still kept"):
        StragglerCopier(client).copy_all(deployment)
    removed = _remove(client, layout, kept=_KEPT) + client.unlink(layout.rule_changes)
    confirm(client, deployment, f"topic {layout.topic} is removed", also=layout)
    forget(client, layout.root, "kept", layout.topic)
    confirm(client, deployment, f"topic {layout.topic} is removed")
    return removed


def drop_left(client: redis.Redis, deployment: Deployment) -> dict[int, int]:
    """Remove the topics that nothing uses; return the number of removed keys, by topic.

    A restore of another topic has left them, or they were given up. The recorded changes of their rules are removed,
    too. As in `drop`, the sequences and the lists of ingested files stay, and the topics stay closed; but of a topic
    that was given up, which is open and was never live, nothing stays.

    Raises:
        Unconfirmed: the removal of a topic was not confirmed in time; call again to remove the rest.
        redis.RedisError: the server does not reply, or rejects a command; call again to remove the rest.
    """
    removed = {}
    found: bytes = client.execute_command("HGET", deployment.layout.root, LEFT) or b""
    for left in found.decode().split():
        number, _, partitions = left.partition(":")
        layout = Layout(int(partitions), deployment.layout.namespace, topic=int(number))
        removed[layout.topic] = 0
        for keys in layout.keys:
            kept: frozenset[bytes] = _KEPT if _is_closed(client, keys) else frozenset()
            removed[layout.topic] += _remove_partition(client, keys, kept)
            failpoints.reach("move-removed")
        removed[layout.topic] += client.unlink(layout.rule_changes)
        confirm(client, deployment, f"topic {layout.topic} is removed", also=layout)
        _FORGET_LEFT(client, [deployment.layout.root], [layout.topic])
    return removed


def _remove(client: redis.Redis, layout: Layout, kept: frozenset[bytes]) -> int:
    return sum(_remove_partition(client, keys, kept) for keys in layout.keys)


def _remove_partition(client: redis.Redis, keys: PartitionKeys, kept: frozenset[bytes]) -> int:
    """Remove the keys of a partition, and return how many were removed.

    The keys whose names without the prefix are in `kept` stay.
    """
    return unlink_all(client, (name for name, below in partition_names(client, keys) if below not in kept))
