"""Rows of the fault table in which the stream is trimmed, the consumer group is destroyed or the clock jumps."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tallystream import EventError, Producer
from tallystream.wire.position import parse_position, position_commands
from tallystream.wire.stream_id import parse_id
from tallystream_worker.server.binary import find_binary
from tests.clock import Clock
from tests.faults.table import row

if TYPE_CHECKING:
    from tallystream.storage.keys import PartitionKeys
    from tests.faults.journal import Account
    from tests.faults.world import World

YEAR_9999 = 253_402_300_799


@row(22, "stream trimmed under the consumer", "B P D M")
def trimmed_away(world: World) -> None:
    """If uncounted entries are trimmed, the ledger has each of their events as trimmed, and balances."""
    world.serve()
    world.crowd()
    worker = world.worker("a")
    world.flow(100)
    worker.signal(signal.SIGSTOP)
    world.arrive(world.chance.randint(50, 300))
    for keys in world.harness.layout.keys:
        if world.chance.random() < 0.7:
            world.harness.client.xtrim(keys.stream, maxlen=0, approximate=False)
            world.inject("XTRIM MAXLEN 0")
    worker.signal(signal.SIGCONT)
    world.loss = "it was trimmed away" if world.faults else ""
    world.replays = False
    world.heal()
    world.inject("SIGSTOP of a worker")
    world.flow(50)
    world.afterwards.append(lambda account: _losses_are_counted(world, account))


def _losses_are_counted(world: World, account: Account) -> None:
    totals = world.harness.totals()
    missing = sum(account.confirmed.values()) - sum(n for (metric, _), n in totals.items() if metric == "view")
    trimmed = sum(
        n for name, n in world.harness.ledger().items() if name.partition(":")[0] == "trimmed" and "@" not in name
    )
    world.expect(trimmed or not missing, f"{missing} views are missing, but the ledger has no trimmed events")


@row(23, "group destroyed", "B P D M R")
def group_destroyed(world: World) -> None:
    """A worker without its consumer group logs an error and counts nothing until the group is created again."""
    world.serve()
    world.crowd()
    worker = world.worker("a")
    world.flow(100)
    keys = world.chance.choice(world.harness.layout.keys)
    world.until(lambda: world.harness.client.hget(keys.ledger, "counted"), "a count in the partition")
    position = _destroy(world, keys)
    world.inject("XGROUP DESTROY")
    if world.chance.random() < 0.5:
        world.kill(worker)
        worker = world.worker("a")
    world.until(lambda: "is missing" in worker.said(), "the alarm")
    world.pause(0, 0.2)
    world.expect(not _has_group(world, keys), "the worker created the group again by itself")
    world.harness.client.xgroup_create(keys.stream, keys.group, id=position)
    world.heal()
    world.flow(50)


@row(24, "clock jump; event from the year 9999", "B P D M R", needs="faketime")
def clock_jump(world: World) -> None:
    """Stream IDs grow when the server's clock jumps, and an event from the far future is not counted."""
    clock = Clock(world.folder)
    world.serve(kind="valkey", binary=clock.program(find_binary()))
    world.crowd()
    world.worker("a", claim_idle=0.1)
    world.flow(50)
    for _ in range(world.chance.randint(1, 3)):
        before = _last_ids(world)
        clock.set(world.chance.choice([-3000, -600, -2, 2, 600, 3000]))
        world.inject("clock jump of the server")
        world.arrive(50)
        after = _last_ids(world)
        fell = [(old, new) for old, new in zip(before, after, strict=True) if parse_id(new) < parse_id(old)]
        world.expect(not fell, f"stream IDs fell: {fell}")
    with Producer(world.server.url) as producer, pytest.raises(EventError):
        producer.emit("view", "s1", at=YEAR_9999)
    event = {"metric": "view", "subject": "s1", "at": str(YEAR_9999)}
    world.harness.client.xadd(world.harness.layout.keys_of("s1").stream, event)
    world.inject("event from the year 9999")
    world.until(lambda: world.harness.ledger().get("dead"), "the dead letter of the event")
    world.expect(world.harness.ledger()["dead"] == 1, f"more was dead-lettered: {world.harness.dead()}")


def _destroy(world: World, keys: PartitionKeys) -> str:
    """Destroy a partition's consumer group; return the stream ID up to which it had counted."""
    with world.harness.client.pipeline(transaction=True) as pipeline:
        for command in position_commands(keys):
            pipeline.execute_command(*command)
        pipeline.xgroup_destroy(keys.stream, keys.group)
        *replies, _ = pipeline.execute(raise_on_error=False)
    return parse_position(replies, keys.group).as_of


def _has_group(world: World, keys: PartitionKeys) -> bool:
    return any(group["name"] == keys.group.encode() for group in world.harness.client.xinfo_groups(keys.stream))


def _last_ids(world: World) -> list[str]:
    streams = [world.harness.client.xinfo_stream(keys.stream) for keys in world.harness.layout.keys]
    return [stream["last-generated-id"].decode() for stream in streams]
