"""The rows of the fault table in which producers are killed, and in which the server forgets them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.storage.keys import partition_of
from tests.faults.table import row
from tests.silence import reap_all

if TYPE_CHECKING:
    from tests.faults.journal import Account
    from tests.faults.world import World

LINGER = 0.005
SLACK = 0.75
"""Seconds by which a thread may be late on a busy machine."""


@row(5, "producer killed with a full buffer", "B D M R")
def producer_killed(world: World) -> None:
    """A killed producer loses at most the events of the last `linger` seconds; with a spool, it loses none."""
    world.serve()
    world.watch.pairs = False
    proxy = world.proxy()
    habits: dict[str, object] = {"linger": LINGER, "entry_events": 1000, "flush": "some", "pause": 0.01}
    spool = world.folder / "spool"
    if spooled := world.chance.random() < 0.5:
        habits["spool"] = str(spool)
    producers = world.crowd(url=proxy.url, **habits)
    world.worker("a")
    world.flow(100)
    if full := world.chance.random() < 0.5:
        proxy.freeze()  # nothing is delivered: every event from here on is in the buffer
        world.pause(0.05, 0.4)
    folders = list(spool.iterdir()) if spooled else []
    victims = producers[: world.chance.randint(1, len(producers))]
    for victim in victims:
        world.kill(victim)
    proxy.thaw()
    proxy.cut()
    world.heal()
    if spooled or len(producers) == 1:
        world.producer(**habits)  # it adopts the spools of the killed producers
    if spooled:
        survivors = len(producers) - len(victims)
        gone = "the delivery of the adopted spools"
        world.until(lambda: sum(folder.exists() for folder in folders) <= survivors, gone)
        world.inject("adopted spool")
        world.afterwards.append(lambda account: _took_all(world, account))
    elif not full:
        world.afterwards.append(lambda account: _lost_only_the_last(world, account))
    if len(producers) == 1 or spooled:
        world.flow(50)


@row(35, "the records of live producers are removed from the gate, again and again", "B P D M R L X")
def forgotten(world: World) -> None:
    """A producer whose record is removed at any moment continues; no entry is lost or counted twice."""
    world.serve()
    world.crowd()
    world.producer()  # at least two: the record of a stream's newest entry stays
    world.worker("a")
    world.flow(50)
    removed = 0
    for _ in range(world.chance.randint(5, 40)):
        for keys in world.harness.layout.keys:
            removed += reap_all(world.harness.client, keys, silence=0, spool_silence=0)
        world.inject("every record at the gate removed")
        world.pause(0.001, 0.05)
    world.heal()
    world.expect(removed, "no record was removed")
    world.flow(100)
    world.afterwards.append(lambda account: _forgot_nothing(world, account))


def _forgot_nothing(world: World, account: Account) -> None:
    """Check that no producer took a removed record for a loss."""
    for name in ("rewound_streams", "lost_entries", "unknown_entries"):
        noticed = sum(statistics[name] for statistics in account.statistics)
        world.expect(noticed == 0, f"{name} is {noticed}, but the server lost nothing")


def _took_all(world: World, account: Account) -> None:
    """Check that every event for which `emit` had returned is counted."""
    totals = world.harness.totals()
    missing = {s: n - totals.get(("view", s), 0) for s, n in account.taken.items() if n > totals.get(("view", s), 0)}
    world.expect(not missing, f"taken into the spool, but not counted: {missing}")


def _lost_only_the_last(world: World, account: Account) -> None:
    """Check that each lost event was emitted less than `LINGER` + `SLACK` seconds before the kill.

    Entries of a partition are sent in order, so the lost events of a partition are its last ones.
    """
    totals = world.harness.totals()
    partitions = world.harness.layout.partitions
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
