"""Checks that the dead letters of each partition have as many events as the ledger states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tallystream_worker.dead_letters.store import letters

if TYPE_CHECKING:
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.verify.scene import Scene

_TRIES: Final = 5


def check(scene: Scene) -> None:
    """Report partitions whose dead letters do not have as many events as the ledger states: `dead` less `dropped`.

    Dead letters that change during each of five readings are stated in the report's limits, as not proved: this does
    not change the exit status.

    Raises:
        redis.RedisError: the server does not reply, or rejects a command.
    """
    for number, keys in scene.streams():
        for _ in range(_TRIES):
            before = _state(scene, keys)
            events = sum(letter.events for letter in letters(scene.client, scene.deployment.layout, number))
            if before == _state(scene, keys):
                break
        else:
            scene.report.limit("dead", f"{keys.dead}: it changed while it was read")
            continue
        dead, dropped = (int(value or 0) for value in before[1])
        if events != dead - dropped:
            scene.report.find("dead.differ", f"{keys.dead}: {events:,} events, but {dead - dropped:,} in the ledger")


def _state(scene: Scene, keys: PartitionKeys) -> tuple[Any, Any]:
    """Return the state of a partition's dead letters, and `dead` and `dropped` of its ledger, all of one moment.

    Returns:
        The newest ID in the dead stream (`b""` for none) with the number of dead letters: if this pair is equal in two
        calls, the dead letters are the same. And a list of the two fields, as bytes; a missing one is `None`.

    Raises:
        redis.RedisError: the server does not reply, or rejects a command.
    """
    with scene.client.pipeline(transaction=True) as pipeline:
        pipeline.xrevrange(keys.dead, count=1)
        pipeline.xlen(keys.dead)
        pipeline.hmget(keys.ledger, "dead", "dropped")
        newest, length, figures = pipeline.execute()
    return (newest[0][0] if newest else b"", length), figures
