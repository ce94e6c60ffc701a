"""The row of the table in which a producer dies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.keys import partition_of
from tests.faults.table import row

if TYPE_CHECKING:
    from tests.faults.journal import Account
    from tests.faults.world import World

LINGER = 0.005
SLACK = 0.75
"""Seconds by which a thread may be late on a machine that is busy with other things."""


@row(5, "producer killed with a full buffer", "B D M R")
def producer_killed(world: World) -> None:
    """What was flushed is there; of the rest at most what was emitted within `linger` is gone."""
    world.serve()
    world.watch.pairs = False
    proxy = world.proxy()
    producers = world.crowd(url=proxy.url, linger=LINGER, entry_events=1000, flush="some", pause=0.01)
    world.worker("a")
    world.flow(100)
    full = world.chance.random() < 0.5
    if full:
        proxy.freeze()  # nothing gets out: everything emitted from here on is in the buffer
        world.pause(0.05, 0.4)
    world.kill(world.chance.choice(producers))
    proxy.thaw()
    proxy.cut()
    world.heal()
    if len(producers) == 1:
        world.producer(linger=LINGER)
    world.flow(50)
    if not full:
        world.afterwards.append(lambda account: _lost_only_the_last(world, account))


def _lost_only_the_last(world: World, account: Account) -> None:
    """Of each partition a suffix is missing, for entries go in order: look how old its first event is."""
    totals = world.rig.totals()
    partitions = world.rig.layout.partitions
    killed = account.youngest_unknown
    for partition in range(partitions):
        unknown = [pair for pair in account.doubtful if partition_of(pair[1], partitions) == partition]
        missing = 0
        for subject in {subject for _, subject, _ in unknown}:
            known = account.confirmed[subject] + account.unknown[subject]
            missing += known - totals.get(("view", subject), 0)
        for moment, _, amount in sorted(unknown, reverse=True):
            if missing <= 0:
                break
            missing -= amount
            world.expect(
                killed - moment < LINGER + SLACK, f"an event emitted {killed - moment:.3f} s before the kill is lost"
            )
