"""Copies records of a deployment into a snapshot and back: changes of its rules, their places, and highest numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from tallystream.storage.deployment_hash import number
from tallystream.storage.keys import FIRST_RULES, FIRST_TOPIC, UNORDERED
from tallystream.storage.rule_changes import read_changes
from tallystream.wire.stream_id import after, parse_id

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import redis

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import Layout, PartitionKeys
    from tallystream_worker.snapshot.point_in_time import SnapshotPosition
    from tallystream_worker.snapshot.restore_lock import Fence

CHANGES: Final = "rule-changes"
"""The fact with the recorded changes: the IDs and fields of `Layout.rule_changes`."""

PLACES: Final = "rule-places"
"""The fact with the places at which the partitions began to follow the rules of these changes: by partition, the fields
of `PartitionKeys.adopted` in the live generation. If a partition has counted nothing yet by the rules of the snapshot,
their place is its first entry that the snapshot lacks."""

NUMBERS: Final = ("newest", "newest-revision")
"""The facts with the highest number of a generation and of rules. A restored deployment uses no number again, because
entries that the archive keeps have the number of the generation that counted them."""

NEWEST_TOPIC: Final = "newest-log"
"""The fact, and the field of the root hash, with the highest number that a topic has had.

In the facts, it is the highest number of a topic whose events are in the snapshot or were given up before it: a topic
that a repartition was filling then does not count. No topic gets a number that was used before."""

RECORDS: Final = frozenset({CHANGES, PLACES, NEWEST_TOPIC, *NUMBERS})
"""Facts that change no counter: if only they differ, the next snapshot need not be a whole one."""


def rule_records(client: redis.Redis, deployment: Deployment) -> dict[str, str]:
    """Return the facts `RECORDS` by name, without `PLACES`: the changes of the rules, and the highest numbers.

    The changes end with the last one that published the rules of `deployment`; if none did, there are no changes.

    Raises:
        DamagedValue: `log`, `newest-log` or `moving` in the root hash is not a whole number.
        redis.RedisError: the server did not answer, or refused a command.
    """
    changes = read_changes(client, deployment.layout)
    revision = str(deployment.revision).encode()
    known = [at for at, (_, fields) in enumerate(changes) if fields[b"number"] == revision]
    changes = changes[: known[-1] + 1] if known else []
    listed = [
        (name.decode(), {field.decode(): text.decode() for field, text in each.items()}) for name, each in changes
    ]
    found = {CHANGES: msgspec.json.encode(listed).decode()}
    root = client.execute_command("HGETALL", deployment.layout.root)
    found[NEWEST_TOPIC] = str(settled_topic(root, deployment.layout.topic))
    highest: list[bytes | None] = client.execute_command("HMGET", deployment.layout.meta, *NUMBERS)
    return found | {name: (number or b"0").decode() for name, number in zip(NUMBERS, highest, strict=True)}


def rule_places(
    client: redis.Redis, keys: PartitionKeys, position: SnapshotPosition, numbers: Collection[int]
) -> tuple[dict[int, str], dict[str, int]]:
    """Return by number of rules the place at which a partition began to follow them, and fields of the ledger.

    A place has two IDs, with a space between: see `PartitionKeys.adopted`. Call this after the counters at `position`
    were read. If the partition has counted by earlier rules that are known, but not yet by the rules with the highest
    number, the place of the latter has the ID after the `floor` of the position, and its `generated`. If it counts by
    rules whose place is missing, their place has `floor` and `generated`.

    The fields are `FIRST_RULES`, if that number is known, and `UNORDERED` with the number of an added place, with the
    value 1, if the partition may have acknowledged entries on the other side of this place.

    Args:
        client: The server.
        keys: The keys of the partition, in the generation of the snapshot.
        position: The position of the snapshot.
        numbers: The numbers of the recorded rules, up to that of the rules of the snapshot; other places are left out.

    Raises:
        redis.RedisError: the server did not answer, or refused a command.
    """
    with client.pipeline(transaction=True) as pipeline:
        pipeline.hgetall(keys.adopted)
        pipeline.hget(keys.ledger, FIRST_RULES)
        pipeline.get(keys.live)
        adopted, stated, live = pipeline.execute()
    found = {int(name): place.decode() for name, place in adopted.items()}
    generation, _, rest = (live or b"").partition(b" ")
    number = rest.partition(b" ")[0]
    # A rebuild may have made another generation live since the counters were read.
    counting = int(number) if generation == b"%d" % keys.generation and number.isdigit() else 0
    if stated is None:
        stated = 0 if found else counting
    first = int(stated)
    places = {name: place for name, place in found.items() if name in numbers}
    ledger = {FIRST_RULES: first} if first else {}
    latest, followed = max(numbers, default=0), max([first, *places])
    # The place may be lost, or a restore gave these rules a new number.
    if followed < counting and counting in numbers:
        places[counting], ledger[f"{UNORDERED}{counting}"] = f"{position.floor} {position.generated}", 1
        followed = counting
    if 0 < followed < latest:
        places[latest] = "{}-{} {}".format(*after(parse_id(position.floor)), position.generated)
        if position.pending:
            most = len(position.pending) + 1
            held: Any = client.xrange(keys.stream, position.pending[0], position.delivered, count=most)
            if len(held) == most:
                ledger[f"{UNORDERED}{latest}"] = 1
    return places, ledger


def settled_topic(root: Mapping[bytes, bytes], topic: int) -> int:
    """Return the number up to which every topic is known to have no events which `topic` lacks.

    If `topic` is not live, this is `topic`. If it is live, this is the highest number that a topic has had, or the one
    before the topic that a repartition fills: earlier topics were copied, and later ones were given up.

    Args:
        root: The fields of the root hash; empty if there is none.
        topic: The number of a topic.

    Raises:
        DamagedValue: `log`, `newest-log` or `moving` in the root hash is not a whole number.
    """
    if (number(root, b"log") or FIRST_TOPIC) != topic:
        return topic
    newest, moving = number(root, NEWEST_TOPIC.encode()) or topic, number(root, b"moving")
    return max(topic, newest if moving is None else min(newest, moving - 1))


def recorded_numbers(client: redis.Redis, deployment: Deployment) -> tuple[dict[str, int], int]:
    """Return by ID the number of each recorded change of the rules, and the highest number of rules on the server.

    Raises:
        redis.RedisError: the server does not reply, or rejects a command.
    """
    layout = deployment.layout
    recorded = {name.decode(): int(fields[b"number"]) for name, fields in read_changes(client, layout)}
    newest = int(client.hget(layout.meta, NUMBERS[1]) or 0)
    return recorded, max([newest, deployment.revision, *recorded.values()])


def recorded_places(facts: Mapping[str, str]) -> dict[int, dict[int, str]]:
    """Return the places in a snapshot, by partition and by number of rules; a partition without places is missing."""
    return msgspec.json.decode(facts.get(PLACES, "{}"), type=dict[int, dict[int, str]])


def recorded_changes(facts: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Return the changes of the rules in the facts of a snapshot, oldest first: the ID and the fields of each.

    Raises:
        KeyError: the facts lack `CHANGES`.
        msgspec.MsgspecError: this fact is damaged.
    """
    return msgspec.json.decode(facts[CHANGES], type=list[tuple[str, dict[str, str]]])


def restore_rule_records(
    records: Fence,
    layout: Layout,
    changes: Sequence[tuple[str, Mapping[str, str]]],
    latest: Mapping[str, str],
) -> None:
    """Write changes of the rules to a server, in place of those that it has; highest numbers are not written.

    Args:
        records: Runs the writes to the record of changes.
        layout: The keys, of the first generation.
        changes: The changes to write: the ID and the fields of each, oldest first.
        latest: The fields of a last change. If its `number` is not 0, and no other change has this number, it is
            written with the present time in its ID.

    Raises:
        RestoreOvertaken: another restore has taken over.
        redis.RedisError: the server did not answer, or refused a command.
    """
    written: list[tuple[Any, ...]] = [("DEL", layout.rule_changes)]
    written += [
        ("XADD", layout.rule_changes, name, *(part for field in each.items() for part in field))
        for name, each in changes
    ]
    if latest["number"] not in {"0", *(each["number"] for _, each in changes)}:
        written.append(("XADD", layout.rule_changes, "*", *(part for field in latest.items() for part in field)))
    records.run(written)
