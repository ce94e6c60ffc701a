"""Rows of the fault table in which the network between a process and the server fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.producing.appender import _APPEND
from tests.faults.table import row
from tests.faults.world import APPLY_SHA, patient

if TYPE_CHECKING:
    from tests.faults.world import World

APPEND_SHA = _APPEND.sha.encode()


@row(14, "lost reply on append", "B P D M R")
def lost_append_reply(world: World) -> None:
    """A producer that lost a reply sends the same entries again, and the sequence gate lets each through once."""
    world.serve()
    proxy = world.proxy()
    world.crowd(url=proxy.url)
    world.worker()
    world.flow(50)
    for _ in range(world.chance.randint(1, 6)):
        proxy.lose_reply_to(APPEND_SHA, nth=world.chance.randint(1, 5))
        world.until(proxy.lost.is_set, "the loss of a reply")
        world.inject("lost reply to append")


@row(15, "lost reply on apply", "B P D M R")
def lost_apply_reply(world: World) -> None:
    """A worker that lost the reply to an apply applies the batch again, and it is counted once."""
    world.serve()
    proxy = world.proxy()
    world.crowd()
    world.worker("a", url=proxy.url)
    if world.chance.random() < 0.5:
        world.worker("b")
    for _ in range(world.chance.randint(1, 4)):
        world.arrive(20)
        if world.chance.random() < 0.7:
            proxy.lose_reply_to(APPLY_SHA, nth=world.chance.randint(1, 5))
        else:
            proxy.lose_request(APPLY_SHA)
        world.until(proxy.lost.is_set, "a loss")
        world.inject("lost reply or request of apply")


@row(16, "pipeline cut in the middle", "B P D M R")
def cut_pipeline(world: World) -> None:
    """After a cut in a burst of appends, the producer continues from the first entry without a confirmation."""
    world.serve()
    proxy = world.proxy()
    proxy.piece = world.chance.choice([0, 0, 1448, 97])
    world.crowd(url=proxy.url, pairs=120, entry_events=6)
    world.worker()
    world.flow(50)
    for _ in range(world.chance.randint(2, 8)):
        world.chance.choice([proxy.cut_after, proxy.cut_request_after])(world.chance.randint(1, 20_000))
        world.until(proxy.lost.is_set, "the cut")
        world.inject("connection cut at a byte")


@row(12, "partition, latency", "B P D M R")
def partition(world: World) -> None:
    """During an outage, a producer's buffer stays bounded and counts the events it refuses; afterwards all recover."""
    world.serve()
    proxy = world.proxy()
    url = patient(proxy.url, 1.7)
    if world.chance.random() < 0.5:
        world.crowd(url=url)
    else:
        world.crowd(url=url, flush="end", when_full="drop", buffer_events=world.chance.choice([100, 400, 2000]))
    world.worker(url=url)
    world.flow(50)
    for _ in range(world.chance.randint(1, 2)):
        if world.chance.random() < 0.5:
            proxy.delay = world.chance.uniform(0.01, 0.1)
            world.inject("latency")
        else:
            proxy.freeze()
            world.inject("partition")
        world.pause(0.1, 0.5)
        proxy.delay = 0.0
        proxy.thaw()
        if world.chance.random() < 0.5:
            proxy.cut()
            world.inject("cut connection")
    world.heal()
    world.flow(50)


@row(13, "half-open connection", "B P D M R")
def half_open(world: World) -> None:
    """No client waits for longer than its timeout on a connection that transmits nothing any more."""
    world.serve()
    proxy = world.proxy()
    url = patient(proxy.url, 1.6)
    world.crowd(url=url, most=2)
    world.worker(url=url)
    world.flow(50)
    proxy.freeze()
    world.inject("half-open connections")
    world.pause(1.7, 2.2)  # longer than the timeout, so clients have given up these connections
    proxy.cut()
    proxy.thaw()
    world.heal()
    world.flow(50)
