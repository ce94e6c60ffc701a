"""Removes a generation of counters in bounded steps; an interrupted removal can be run again."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from tallystream.errors import ConfigurationError
from tallystream.storage.keys import FIRST
from tallystream.storage.scripts import Script
from tallystream_worker.process import failpoints
from tallystream_worker.process.barrier import confirm, step
from tallystream_worker.rebuild.turn import Overtaken, take_turn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import redis

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import PartitionKeys

_BEGIN: Final = Script("tallystream_worker.rebuild", "begin_drop")
_REMOVE: Final = Script("tallystream_worker.rebuild", "remove")
_END: Final = Script("tallystream_worker.rebuild", "end_drop")

_STEP: Final = 500
"""Keys that one call of the script removes at most."""

KINDS: Final = frozenset(
    "total up minute hour day month top limit once seen unique sketch labels".split()  # noqa: SIM905  # as they are named
)
"""The first parts of the names of counters, and of the state that they need, after the generation's prefix."""

_OF_THE_TOPIC: Final = frozenset(
    (b"appended", b"plain", b"entries:gated", b"entries:retired", b"entries:copied", b"entries:dropped")
)


def drop(client: redis.Redis, deployment: Deployment, generation: int, turn: int | None = None) -> int:
    """Remove a generation that is not live in any partition; return the number of keys that were removed.

    Its counters, dead letters, ledger and consumer groups are removed. So are its rules, and the note that it is being
    built, in the hash that describes the topic. The figures of the topic in the ledger of the first generation stay.
    First take a turn (see `take_turn`), so that no earlier command switches to the generation, and record that it is
    being removed: from then on, no command uses it, also if the removal is interrupted. With `turn`, the number of a
    command that has taken its turn, take none.

    Raises:
        ConfigurationError: the generation is live in a partition, or for readers, or this release cannot read the
            stored data; nothing was removed.
        Overtaken: another command that changes generations, or a restore, has begun since: nothing was removed after
            it began.
        StreamError: a node failed over meanwhile, the data was deleted or replaced (`DeploymentChanged`), or the
            description of the deployment is lost (`KeyLost`) or damaged (`DamagedValue`); nothing was removed.
        Unconfirmed: the turn, or the record of the removal, was not confirmed in time, and nothing was removed; or the
            removal was not.
        redis.RedisError: the server does not reply, or rejects a command; call again to remove the rest.
    """
    if turn is None:
        turn = take_turn(client, deployment)
    with step(client, deployment, f"generation {generation} is not live, and is still kept"):
        now = deployment.reload(client)
        if now.generation == generation:
            raise ConfigurationError(f"cannot remove generation {generation}: it is the live one")
        for keys in now.layout.keys:
            if keys.generation == generation:
                raise ConfigurationError(
                    f"cannot remove generation {generation}: it is live in {keys.stream}. A switch to another "
                    "generation was not finished, or a failover has undone it: finish it with tallystream rebuild"
                )
        (answer,) = _BEGIN(client, [deployment.layout.meta], [generation, turn])
        if answer == b"overtaken":
            raise Overtaken
    failpoints.reach("drop-begun")
    removed = 0
    for keys in deployment.layout.of(generation).keys:
        removed += _drop_partition(client, keys, turn)
        failpoints.reach("drop-removed")
    confirm(client, deployment, f"the counters of generation {generation} are removed")
    (answer,) = _END(client, [deployment.layout.meta], [generation, turn])
    if answer == b"overtaken":
        raise Overtaken
    confirm(client, deployment, f"generation {generation} is removed")
    return removed


def _drop_partition(client: redis.Redis, keys: PartitionKeys, turn: int) -> int:
    """Remove a generation's group and keys in one partition, in bounded steps; return how many keys existed.

    Raises:
        Overtaken: another command that changes generations, or a restore, has begun; nothing more was removed.
        redis.RedisError: the server does not reply, or rejects a command.
    """

    def remove(names: Iterable[str | bytes], fields: Iterable[str | bytes] = ()) -> int:
        places = [keys.sequences, keys.stream, keys.ledger, *names]
        answer, *number = _REMOVE(client, places, [turn, keys.group, *fields])
        if answer == b"overtaken":
            raise Overtaken
        return int(number[0])

    removed = remove(())  # the group first: its counters are incomplete from now on
    names = counter_keys(client, keys)
    while page := list(islice(names, _STEP)):
        removed += remove(page)
    own = [keys.dead, keys.begun, keys.gone, keys.backfilled, keys.periods, keys.forgotten, keys.adopted, keys.resets]
    if keys.generation != FIRST:
        return removed + remove([*own, keys.ledger])
    return removed + remove(own, (field for field in client.hkeys(keys.ledger) if field not in _OF_THE_TOPIC))


def counter_keys(client: redis.Redis, keys: PartitionKeys) -> Iterator[bytes]:
    """Yield the full keys of a generation's counters in one partition, found by SCAN; a key may come twice.

    These are all keys of the `KINDS`, also state such as stored ids and votes; the ledger and dead letters are not.
    A `redis.RedisError` is raised while the keys are iterated.
    """
    prefix = keys.counters.encode()
    pattern = keys.counters.translate({ord(c): f"\\{c}" for c in "*?[]\\"}) + "*"
    for name in client.scan_iter(match=pattern, count=1000):
        if name.removeprefix(prefix).partition(b":")[0].decode(errors="replace") in KINDS:
            yield name
