"""Copies records of a deployment into the facts of a snapshot and back: changes of its rules, and highest numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from tallystream.storage.rule_changes import read_changes, write_changes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import Layout

CHANGES: Final = "rule-changes"
"""The fact with the recorded changes: the IDs and fields of `Layout.rule_changes`."""

PLACES: Final = "rule-places"
"""The fact with their places: by partition, the fields of `PartitionKeys.adopted` in the live generation."""

NUMBERS: Final = ("newest", "newest-revision")
"""The facts with the highest number of a generation and of rules. A restored deployment uses no number again, because
entries that the archive keeps have the number of the generation that counted them."""

RECORDS: Final = frozenset({CHANGES, PLACES, *NUMBERS})
"""The facts that change no counter: if only they differ, the next snapshot need not be a whole one."""


def rule_records(client: redis.Redis, deployment: Deployment) -> dict[str, str]:
    """Return the facts `RECORDS` by name: the changes of the rules, their places, and the highest numbers.

    The changes end with the last one that published the present rules of `deployment`; if it is not recorded, there
    are none, and no places.
    """
    changes = read_changes(client, deployment.layout)
    number = str(deployment.revision).encode()
    known = [at for at, (_, fields) in enumerate(changes) if fields[b"number"] == number]
    changes = changes[: known[-1] + 1] if known else []
    numbers = {fields[b"number"] for _, fields in changes}
    places = {}
    for partition, keys in enumerate(deployment.layout.keys):
        adopted: dict[bytes, bytes] = client.execute_command("HGETALL", keys.adopted)
        if found := {name.decode(): place.decode() for name, place in adopted.items() if name in numbers}:
            places[partition] = found
    listed = [
        (name.decode(), {field.decode(): text.decode() for field, text in each.items()}) for name, each in changes
    ]
    found = {CHANGES: msgspec.json.encode(listed).decode(), PLACES: msgspec.json.encode(places).decode()}
    highest: list[bytes | None] = client.execute_command("HMGET", deployment.layout.meta, *NUMBERS)
    return found | {name: (number or b"0").decode() for name, number in zip(NUMBERS, highest, strict=True)}


def restore_rule_records(client: redis.Redis, layout: Layout, facts: Mapping[str, str]) -> None:
    """Write the changes of the rules and their places from a snapshot to a server; the highest numbers are not written.

    The changes that the server has are removed. A place of the same rules is replaced, and other places stay.

    Args:
        client: The server.
        layout: The keys, of the first generation.
        facts: The facts of the snapshot.
    """
    listed = msgspec.json.decode(facts[CHANGES], type=list[tuple[str, dict[str, str]]])
    records = [
        (name.encode(), {field.encode(): text.encode() for field, text in each.items()}) for name, each in listed
    ]
    write_changes(client, layout, records)
    for partition, places in msgspec.json.decode(facts[PLACES], type=dict[int, dict[str, str]]).items():
        client.hset(layout.keys[partition].adopted, items=[part for place in places.items() for part in place])
