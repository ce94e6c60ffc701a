"""Rows of the table in which a worker dies, stalls or meets its like."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from tests.faults.table import row
from tests.faults.world import APPLY_SHA

if TYPE_CHECKING:
    from tests.faults.world import World


@row(1, "worker killed after the read", "B P D M R")
def killed_after_the_read(world: World) -> None:
    """Pending entries are reclaimed, by its successor or by another, and counted once."""
    world.serve()
    world.crowd()
    for _ in range(world.chance.randint(1, 3)):
        place = world.chance.choice(["after-fetch", "before-apply", "after-apply"])
        world.dies(world.worker("a", failpoint=f"{place}:{world.chance.randint(1, 15)}"), f"killed {place}")
    world.worker(world.chance.choice(["a", "b"]))
    world.flow()


@row(2, "worker killed after sending apply, before the reply", "B P D M R")
def killed_before_the_reply(world: World) -> None:
    """The server applied it and nobody knows, or it never heard of it: counted once either way."""
    world.serve()
    world.crowd()
    for _ in range(world.chance.randint(1, 2)):
        proxy = world.proxy()
        victim = world.worker("a", url=proxy.url)
        world.flow(50)
        lost = world.chance.choice(["reply", "request"])
        if lost == "reply":
            proxy.lose_reply_to(APPLY_SHA, nth=world.chance.randint(1, 5), cut=False)
        else:
            proxy.lose_request(APPLY_SHA)
        world.until(proxy.lost.is_set, f"the loss of a {lost}")
        world.inject(f"lost {lost} to apply")
        world.kill(victim)
    world.worker(world.chance.choice(["a", "b"]))
    world.flow()


@row(3, "killed in the middle of a claim or a parking", "B P D M R")
def killed_in_a_claim(world: World) -> None:
    """What it had claimed has one owner and is claimed again; what it was parking is parked once."""
    world.serve()
    world.crowd()
    poisoned = 0
    for _ in range(world.chance.randint(1, 3)):
        if world.chance.random() < 0.5:
            world.dies(world.worker("gone", failpoint="after-fetch:1"), "killed after-fetch")
            claimer = world.worker("claimer", failpoint="mid-claim:1", claim_idle=0.1)
            world.dies(claimer, "killed mid-claim")
        else:
            place = world.chance.choice(["before-parking", "after-parking"])
            victim = world.worker("a", failpoint=f"{place}:1")
            keys = world.chance.choice(world.harness.layout.keys)
            world.harness.client.xadd(keys.stream, {"no": "event"})
            poisoned += 1
            world.dies(victim, f"killed {place}")
    world.worker("b", claim_idle=0.1)
    world.flow()
    world.until(lambda: len(world.harness.dead()) >= poisoned, "the parking of all poison")
    world.afterwards.append(
        lambda _: world.expect(
            len(world.harness.dead()) == poisoned, f"{len(world.harness.dead())} of {poisoned} parked"
        )
    )


@row(4, "SIGTERM in mid-batch", "B P D M R")
def terminated(world: World) -> None:
    """It finishes the batch in hand or leaves it pending, and exits in time."""
    world.serve()
    world.crowd()
    proxy = world.proxy()
    for _ in range(world.chance.randint(1, 2)):
        proxy.delay = world.chance.choice([0.0, 0.01, 0.05])
        victim = world.worker("a", url=proxy.url, stop_timeout=5.0)
        world.flow(50)
        world.pause(0, 0.05)
        began = time.monotonic()
        victim.signal(signal.SIGTERM)
        status = world.ends(victim)
        world.inject("SIGTERM of a worker")
        world.expect(status == 0, f"the worker ended with {status}: {victim.said()[-1500:]}")
        world.expect(time.monotonic() - began < 10, "the worker took longer to exit than stop_timeout allows")
    world.worker(world.chance.choice(["a", "b"]))
    world.flow()


@row(25, "two workers with one name", "B P D M R")
def twins(world: World) -> None:
    """They read each other's pending entries, do work twice, and count it once."""
    world.serve()
    world.crowd()
    world.arrive(world.chance.randint(0, 800))
    proxy = world.proxy()
    proxy.delay = world.chance.choice([0.0, 0.005, 0.02])
    for number in range(world.chance.randint(2, 3)):
        world.worker("twin", url=world.chance.choice([world.server.url, proxy.url]) if number else proxy.url)
        world.inject("worker with a name that is taken")
    for _ in range(world.chance.randint(1, 4)):
        world.flow(100)
        proxy.cut()  # whoever lost its connection begins with what its name has pending: the other's, too
        world.inject("cut connection")
    proxy.delay = 0.0


@row(26, "worker paused beyond the claim idle", "B P D M R")
def paused(world: World) -> None:
    """Others take over what it held; it comes back, is told so, and doubles nothing."""
    world.serve()
    world.crowd(pause=0.002)
    proxy = world.proxy()
    proxy.delay = world.chance.choice([0.01, 0.03])
    victim = world.worker("paused", url=proxy.url)
    world.worker("other", claim_idle=0.1, max_keys=100)
    for _ in range(world.chance.randint(1, 4)):
        world.flow(100)
        victim.signal(signal.SIGSTOP)
        world.inject("SIGSTOP of a worker")
        world.pause(0.1, 0.35)
        victim.signal(signal.SIGCONT)
    proxy.delay = 0.0


@row(34, "a worker's metrics raise after the apply", "B P D M R")
def broken_metrics(world: World) -> None:
    """What is counted stays counted, and is blamed on no entry: none is sent again, left pending or dead."""
    world.serve()
    world.crowd()
    share = world.chance.choice([0.3, 1.0])
    worker = world.worker("a", failing_metrics=share, max_deliveries=3, max_keys=100)
    world.inject("metrics that raise")
    for _ in range(world.chance.randint(1, 4)):
        world.flow(200)
    world.heal()
    said = worker.said()
    world.expect("entry.left_pending" not in said, f"an entry was blamed: {said[-1500:]}")
    world.expect("partition.paused" not in said, f"the worker paused: {said[-1500:]}")
    world.expect(not world.harness.dead(), f"{len(world.harness.dead())} entries are dead")
    world.expect("subscriber.failed" in said, "no line about metrics that raise")
