"""Reads and copies the record of changes of a topic's rules; `lib/rule_changes.lua` writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis

    from tallystream.storage.keys import Layout

Record = tuple[bytes, dict[bytes, bytes]]
"""One change: its ID, which has the server's time in milliseconds, and its fields."""


def read_changes(client: redis.Redis, layout: Layout) -> list[Record]:
    """Return the recorded changes of the rules of a topic, oldest first; empty if none is recorded.

    A repartition copies the changes of the topic before to the new one, so these are returned, too; `changes_of_topic`
    leaves them out. Only about the last 1,000 changes are kept.

    Raises:
        redis.RedisError: the server does not reply, or rejects the command.
    """
    return cast("list[Record]", client.xrange(layout.rule_changes))


def changes_of_topic(records: Sequence[Record]) -> Sequence[Record]:
    """Return the changes in `records` without those that a repartition has copied from the topic before.

    The change that made the rules with which the topic began stays, also if it is a copy. The result begins with the
    first record that states a number of partitions, as that change and all later ones do. It is empty if none does.
    """
    own = (at for at, (_, fields) in enumerate(records) if b"partitions" in fields)
    return records[next(own, len(records)) :]


def counted_numbers(client: redis.Redis, layout: Layout, revision: int) -> set[int]:
    """Return the numbers of the rules that a partition of `layout` has changed to: see `PartitionKeys.adopted`.

    The number of the first rules of a partition is not in it, unless another partition has changed to them. `revision`,
    the number of the present rules, is in it also if a partition will change to these rules only with its next event.

    Raises:
        redis.RedisError: the server does not reply, or rejects a command.
    """
    with client.pipeline(transaction=False) as pipeline:
        for keys in layout.keys:
            pipeline.hkeys(keys.adopted)
            pipeline.get(keys.live)
        replies: list[Any] = pipeline.execute()
    found = {int(number) for numbers in replies[::2] for number in numbers}
    live = [value.split() for value in replies[1::2] if value is not None]
    if any(len(each) > 1 and each[1].isdigit() and int(each[1]) < revision for each in live):
        found.add(revision)
    return found


def write_changes(client: redis.Redis, layout: Layout, records: Sequence[Record]) -> None:
    """Replace the recorded changes of the rules of a topic by `records`, with their IDs, in one transaction.

    `records` must be in the order of their IDs. Without records, the topic has no recorded change afterwards. The rules
    themselves do not change.

    Raises:
        redis.RedisError: the server does not reply, or rejects a command. If it rejects one because the IDs are not in
            order, the earlier changes are lost nevertheless.
    """
    with client.pipeline(transaction=True) as pipeline:
        pipeline.delete(layout.rule_changes)
        for name, fields in records:
            flat = [part for field in fields.items() for part in field]
            pipeline.execute_command("XADD", layout.rule_changes, name, *flat)
        pipeline.execute()
