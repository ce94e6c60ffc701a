"""Reads and copies the record of changes of a topic's rules; `lib/rule_changes.lua` writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis

    from tallystream.storage.keys import Layout

Record = tuple[bytes, dict[bytes, bytes]]
"""One change: its ID, which has the server's time in milliseconds, and its fields."""


def read_changes(client: redis.Redis, layout: Layout) -> list[Record]:
    """Return the recorded changes of the rules of a topic, oldest first: the last 100 at most."""
    return cast("list[Record]", client.xrange(layout.rule_changes))


def write_changes(client: redis.Redis, layout: Layout, records: Sequence[Record]) -> None:
    """Replace the recorded changes of the rules of a topic by `records`, with their IDs, in one transaction.

    Without records, the topic has no recorded change afterwards. The rules themselves do not change.
    """
    with client.pipeline(transaction=True) as pipeline:
        pipeline.delete(layout.rule_changes)
        for name, fields in records:
            flat = [part for field in fields.items() for part in field]
            pipeline.execute_command("XADD", layout.rule_changes, name, *flat)
        pipeline.execute()
